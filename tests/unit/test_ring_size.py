"""How large a ring may be, out of free memory and address space, whatever was asked for; and how many there may be."""

from math import inf
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.engine import DEFAULT_RING_BYTES, Wish, open_capture, ring_blocks
from guestagent.capture.interfaces import ARPHRD_ETHER, Link
from guestagent.capture.ring import BLOCK_BYTES, FEWEST_BLOCKS
from guestagent.errors import ConfigError, HostError

LEAST_BYTES = FEWEST_BLOCKS * BLOCK_BYTES


@given(
    st.just(0) | st.integers(1, 1 << 30),
    st.integers(1, 64),
    st.integers(0, 1 << 36),
    st.just(inf) | st.integers(-(1 << 26), 1 << 34),
)
def test_rings_stay_inside_memory_and_address_space(wanted: int, interfaces: int, free: int, address: float) -> None:
    """All rings together take at most 5 % of what is free and fit what may be mapped; refusals name the fault's owner.

    The host's where no ring at all has room, the operator's where a size was asked for that does not fit.
    """
    room = min(free / 20, address)
    try:
        ring_bytes = ring_blocks(wanted, interfaces, free, address) * BLOCK_BYTES
    except HostError:
        assert room < interfaces * LEAST_BYTES
        return
    except ConfigError:
        assert wanted < LEAST_BYTES or wanted * interfaces > room - interfaces
        assert wanted
        return
    assert LEAST_BYTES <= ring_bytes <= (wanted or DEFAULT_RING_BYTES)
    assert ring_bytes * interfaces <= room


def test_more_interfaces_than_a_hello_names_are_refused() -> None:
    """A glob that fits a container host's hundreds of veths is refused at once; no collector would take the run."""
    found = [Link(at, f"veth{at}", ARPHRD_ETHER, "02:00:00:00:00:00", 1500, 0, "veth", True) for at in range(65)]
    with (
        mock.patch("guestagent.capture.engine.select", return_value=found),
        pytest.raises(ConfigError, match=r"^65 interfaces fit, and one agent taps 64 at most: name fewer with -i$"),
    ):
        open_capture(Wish(("veth*",)))
