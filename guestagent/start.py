"""From config to the first captured packet, with as few imports as can be: the rest loads while the ring fills."""

import logging
import os
import time

from guestagent.capture.engine import Capture, Wish, open_capture
from guestagent.capture.interfaces import select
from guestagent.config import RunConfig
from guestagent.errors import AbsentError
from guestagent.observe.notify import Notifier
from guestagent.observe.reports import check_writable
from guestagent.rlimits import refuse_small
from guestagent.route import refuse_tunnel_loop
from guestagent.standback import stand_back
from guestagent.trust import is_exposed

log = logging.getLogger("guestagent.agent")

WAIT_SECONDS = 0.5
SEED_BYTES = 4
"""A seed that everybody knows would let a sender pick ports that are never copied."""


def begin(config: RunConfig) -> Capture:
    """Refuse what can be refused beforehand, then capture. Raises ConfigError, HostError."""
    refuse_small(writes_captures=config.to[0].scheme == "dir")
    check_writable(config.report)
    if config.wait:
        _wait_for_interfaces(config.interface)
    for endpoint in config.to:
        refuse_tunnel_loop(endpoint, config.interface)
        if is_exposed(endpoint):
            log.warning("copies go to %s in clear text, which is not a private address", endpoint)
    capture = open_capture(wish_of(config))
    stand_back()
    return capture


def _wait_for_interfaces(patterns: tuple[str, ...]) -> None:
    """Until each of them is there; the service manager hears that we live."""
    notifier, said = Notifier(), ""
    try:
        while True:
            try:
                select(patterns)
                return
            except AbsentError as absent:
                if str(absent) != said:
                    log.warning("waiting: %s", absent)
                    notifier.ready()
                said = str(absent)
                notifier.beat(f"waiting: {absent}")
            time.sleep(WAIT_SECONDS)
    finally:
        notifier.close()


def wish_of(config: RunConfig) -> Wish:
    """The part of the config that the capture engines know."""
    seed = int.from_bytes(os.urandom(SEED_BYTES), "big") if config.seed is None else config.seed
    return Wish(
        interfaces=config.interface,
        filter_expression=config.filter,
        slice=config.slice,
        keep=config.keep,
        seed=seed,
        ring_bytes=config.ring,
        promiscuous=config.promiscuous,
        engine=config.engine,
        sheds=not config.full or bool(config.cpu or config.rate or config.packets or config.yields),
    )
