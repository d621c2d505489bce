"""SIGHUP: the config read again, and as much of it taken over as can change while the capture runs."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace

from guestagent.capture.engine import renewed
from guestagent.config import RunConfig
from guestagent.desk import Desk
from guestagent.errors import GuestagentError
from guestagent.start import wish_of
from guestagent.steering import Steering

log = logging.getLogger("guestagent.agent")

LIVE = ("filter", "slice", "keep", "cpu", "rate", "packets", "yields", "full", "shed", "floor")
"""What changes at once; everything else is read at the start alone."""


def reload(old: RunConfig, reread: Callable[[], RunConfig], desk: Desk, steering: Steering, now: float) -> RunConfig:
    """The config in force from now on: the old one, said why, where the new one is bad in any way."""
    try:
        read = reread()
        new = replace(old, **{name: getattr(read, name) for name in LIVE})
        desk.renew(renewed(desk.capture, wish_of(new)), steering.limits.selection)
    except GuestagentError as error:
        log.error("the config was read again and refused, the old one stays in force: %s", error)
        return old
    steering.renew(new, now)
    changed = [one.name for one in fields(RunConfig) if getattr(old, one.name) != getattr(read, one.name)]
    later = [name for name in changed if name not in LIVE]
    log.info("the config was read again: %s", ", ".join(name for name in changed if name in LIVE) or "nothing changed")
    if later:
        log.warning("restart to change what is read at the start alone: %s", ", ".join(later))
    return new
