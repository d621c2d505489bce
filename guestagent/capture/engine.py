"""Opens the sources of a run: interfaces chosen, ring sized to the memory, filter attached, engine by probe."""

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from guestagent.capture.bpf import MOST_HEAVY, Instruction, compose
from guestagent.capture.interfaces import ARPHRD_LOOPBACK, Link, describe, select
from guestagent.capture.packetsocket import prove
from guestagent.capture.probes import probe_virtio
from guestagent.capture.ring import BLOCK_BYTES, FEWEST_BLOCKS, Ring
from guestagent.capture.source import Source
from guestagent.errors import ConfigError, HostError, PrivilegeError
from guestagent.model import KEPT_EXCLUSIONS, MOST_INTERFACES, Exclusion, Selection
from guestagent.rlimits import address_room_bytes

log = logging.getLogger("guestagent.capture")

DEFAULT_RING_BYTES = 64 * 1024 * 1024
_OWN = tuple(Exclusion(socket.IPPROTO_TCP, f"fd00::{at}", 1, 1) for at in range(KEPT_EXCLUSIONS))
"""As many connections of our own as are left out at once, at their longest."""
_LARGEST = Selection("headers", 0.5, tuple(range(MOST_HEAVY)), 0.5)
"""All that shedding adds to a filter."""
MOST_MEMORY_FRACTION = 0.05
"""All rings together; their pages belong to no cgroup, so no other limit would hold them."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked of the capture."""

    interfaces: tuple[str, ...] = ()
    filter_expression: str = ""
    slice: str | int = "full"
    keep: float = 1.0
    seed: int = 0
    ring_bytes: int = 0
    promiscuous: bool = False
    engine: str = "auto"
    sheds: bool = True
    """May less be kept under load? Then the filter grows."""

    @property
    def selection(self) -> Selection:
        """What is kept while nothing asks for less."""
        return Selection(self.slice, self.keep)


@dataclass(frozen=True, slots=True)
class Capture:
    """The open sources, what makes their filters, and why this engine."""

    sources: list[Source]
    filters: dict[int, tuple[Instruction, ...]]
    """The compiled user filter by interface id; libpcap's code depends on the device."""
    links: dict[int, Link]
    wish: Wish
    engine: str
    reason: str

    def program(
        self, interface_id: int, exclusions: Sequence[Exclusion], selection: Selection | None = None
    ) -> tuple[Instruction, ...]:
        """The whole filter of one interface; without a selection, as the operator wished."""
        selection = selection or self.wish.selection
        return compose(
            exclusions=exclusions,
            loopback=self.links[interface_id].hardware_type == ARPHRD_LOOPBACK,
            user_filter=self.filters[interface_id],
            dedupe=selection.peers,
            heavy=selection.heavy,
            heavy_fraction=selection.heavy_fraction,
            sample=selection.sample,
            seed=self.wish.seed,
            slice_=selection.slice,
        )


def renewed(capture: Capture, wish: Wish) -> Capture:
    """The same sources with another filter, slice or fraction. Raises ConfigError for a bad expression."""
    filters = capture.filters
    if wish.filter_expression != capture.wish.filter_expression:
        filters = _compile(wish.filter_expression, list(capture.links.values()))
    kept = replace(capture.wish, filter_expression=wish.filter_expression, slice=wish.slice, keep=wish.keep)
    new = replace(capture, filters=filters, wish=replace(kept, sheds=wish.sheds))
    _prove(new)
    return new


def _prove(capture: Capture) -> None:
    """The filter at its longest, which must fit twice: it is swapped while the old one is held.

    Raises ConfigError where it doesn't. Under load it would be too late for that.
    """
    selection = _LARGEST if capture.wish.sheds else capture.wish.selection
    for at, link in capture.links.items():
        try:
            prove(link.name, capture.program(at, _OWN, selection))
        except ConfigError as error:
            raise ConfigError(f"{error}{', or shed nothing with --full' if capture.wish.sheds else ''}") from error


def ring_blocks(wanted_bytes: int, interfaces: int, available_bytes: int, address_bytes: float = inf) -> int:
    """Blocks of each interface's ring, out of the memory that is free and the address space that may be mapped.

    Raises HostError where there is no room for the least, ConfigError where more was asked for than there is.
    """
    room_bytes, name = min(
        (available_bytes * MOST_MEMORY_FRACTION, f"{MOST_MEMORY_FRACTION:.0%} of the free memory"),
        (address_bytes, "what RLIMIT_AS leaves"),
    )
    least, most = FEWEST_BLOCKS * BLOCK_BYTES, int(max(room_bytes, 0)) // interfaces
    if most < least:
        raise HostError(
            f"{name}, {max(room_bytes, 0) / 1e6:.1f} MB, leaves no room for a ring of {least / 1e6:.1f} MB on each of "
            f"{interfaces} interfaces: free some memory, raise the limit or tap fewer interfaces"
        )
    if wanted_bytes > most:
        raise ConfigError(
            f"a ring of {wanted_bytes / 1e6:.0f} MB on each of {interfaces} interfaces is over {name}: "
            f"ask for at most {most / 1e6:.1f} MB with --ring"
        )
    if 0 < wanted_bytes < least:
        raise ConfigError(f"--ring: {wanted_bytes / 1e6:.1f} MB is too small: ask for at least {least / 1e6:.1f} MB")
    return (wanted_bytes or min(DEFAULT_RING_BYTES, most)) // BLOCK_BYTES


def open_capture(wish: Wish, exclusions: Sequence[Exclusion] = ()) -> Capture:
    """Bind a source to every wished interface. Raises ConfigError, HostError."""
    links = select(wish.interfaces)
    if len(links) > MOST_INTERFACES:
        raise ConfigError(
            f"{len(links)} interfaces fit, and one agent taps {MOST_INTERFACES} at most: name fewer with -i"
        )
    filters = _compile(wish.filter_expression, links)
    capture = Capture([], filters, dict(enumerate(links)), wish, wish.engine, "asked for")
    _prove(capture)
    programs = {at: capture.program(at, exclusions) for at in filters}
    blocks = ring_blocks(wish.ring_bytes, len(links), _available_bytes(), address_room_bytes())
    if wish.engine != "portable":
        try:
            return _with_rings(capture, programs, blocks)
        except HostError as error:
            if wish.engine == "ring" or isinstance(error, PrivilegeError):
                raise
            log.warning("the ring engine can't run here (%s); falling back to the portable engine", error)
            capture = Capture([], filters, capture.links, wish, "portable", str(error))
    return _portable(capture, programs, blocks)


def _available_bytes() -> int:
    """Memory that is free. Raises HostError where nothing tells it, as in a chroot without /proc."""
    import psutil

    try:
        return psutil.virtual_memory().available
    except OSError as error:
        raise HostError(
            f"the free memory is not known ({error.filename}: {error.strerror}), so no ring can be sized: "
            "mount /proc, and leave ProcSubset=pid out of a unit"
        ) from error


def _compile(expression: str, links: Sequence[Link]) -> dict[int, tuple[Instruction, ...]]:
    if not expression:
        return dict.fromkeys(range(len(links)), ())
    from guestagent.capture.pcapfilter import compile_filter

    return {at: compile_filter(expression, link.name) for at, link in enumerate(links)}


def _with_rings(capture: Capture, programs: dict[int, tuple[Instruction, ...]], blocks: int) -> Capture:
    virtio = probe_virtio()
    if not virtio.ok:
        log.warning("%s", virtio.detail)
    sources = _open_each(
        capture,
        lambda at, link: Ring(
            describe(link, at),
            link.index,
            programs[at],
            block_count=blocks,
            virtio=virtio.ok,
            promiscuous=capture.wish.promiscuous,
        ),
    )
    return Capture(sources, capture.filters, capture.links, capture.wish, "ring", virtio.detail)


def _portable(capture: Capture, programs: dict[int, tuple[Instruction, ...]], blocks: int) -> Capture:
    from guestagent.capture.portable import PortableSource

    sources = _open_each(
        capture,
        lambda at, link: PortableSource(
            describe(link, at), link.index, programs[at], block_count=blocks, promiscuous=capture.wish.promiscuous
        ),
    )
    return Capture(sources, capture.filters, capture.links, capture.wish, "portable", capture.reason)


def _open_each(capture: Capture, make: Callable[[int, Link], Source]) -> list[Source]:
    """A source for every link, or none at all."""
    sources: list[Source] = []
    try:
        for at, link in capture.links.items():
            sources.append(make(at, link))
    except BaseException:
        for source in sources:
            source.close()
        raise
    return sources
