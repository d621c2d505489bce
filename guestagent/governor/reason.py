"""Limits as a sentence for people: what asked for them, what is reduced, how far. Pure."""

from guestagent.governor.limits import Budgets, Limits
from guestagent.governor.predict import Cost


def sentence(limits: Limits, cause: str, part: str, full: Cost, *, budgets: Budgets, cores: int) -> str:
    """Why a full copy can't be had, and what is kept instead."""
    return f"{_why(cause, part, full, budgets, cores)}: {kept(limits)}"


def kept(limits: Limits) -> str:
    """What these limits keep."""
    if limits.paused:
        return "the capture is paused but for a look each second"
    pieces = []
    if limits.heavy:
        flows = "1 heavy flow" if len(limits.heavy) == 1 else f"{len(limits.heavy)} heavy flows"
        share = "" if limits.heavy_fraction == 1 else f"{limits.heavy_fraction:.1%} of the packets of "
        pieces.append(f"{share}{flows} cut to headers")
    if limits.slice == "headers":
        pieces.append("all other packets cut to headers" if limits.heavy else "all packets cut to headers")
    if limits.sample < 1:
        pieces.append(f"{limits.sample:.1%} of all {'other ' if limits.heavy else ''}flows kept")
    return ", ".join(pieces)


def _why(cause: str, part: str, full: Cost, budgets: Budgets, cores: int) -> str:
    if cause == "cpu" and part == "own":
        return f"a full copy would take {full.own:.2f} of a core and the agent is one thread"
    if cause == "cpu":
        return f"a full copy would take {full.cpu / cores:.1%} of the VM's CPU, the budget is {budgets.cpu_percent:g} %"
    if cause in ("rate", "packets"):
        if part == "packets":
            return f"a full copy would be {full.packets:.0f} packets/s, the cap is {budgets.packets_per_second:.0f}"
        return f"a full copy would be {_mbit(full.bytes)}, the cap is {_mbit(budgets.bytes_per_second)}"
    if cause == "collector":
        return f"the collector takes less than the {_mbit(full.bytes)} of a full copy"
    return f"the VM is under pressure ({cause})"


def _mbit(bytes_per_second: float) -> str:
    return f"{bytes_per_second * 8 / 1e6:.3g} Mbit/s"
