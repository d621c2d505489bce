"""Traffic per second: of one flow, and what a full copy of all would have to take. Words, no decisions."""

from typing import NamedTuple


class Rates(NamedTuple):
    """Per second."""

    packets_in: float = 0.0
    packets_out: float = 0.0
    original_bytes: float = 0.0
    captured_bytes: float = 0.0

    @property
    def packets(self) -> float:
        """Both directions."""
        return self.packets_in + self.packets_out

    def scaled(self, by: float) -> "Rates":
        """All of them times a number."""
        return Rates(self.packets_in * by, self.packets_out * by, self.original_bytes * by, self.captured_bytes * by)

    def plus(self, other: "Rates") -> "Rates":
        """The sum."""
        return Rates(*map(float.__add__, self, other))


class Demand(NamedTuple):
    """What a full copy would have to take."""

    flows: tuple[tuple[int, Rates], ...] = ()
    """Those known one by one, most bytes and packets first."""
    rest: Rates = Rates()
    unselected: Rates = Rates()
    """What the user's filter leaves out: rejected under any limits but a pause."""

    @property
    def total(self) -> Rates:
        """Selected traffic."""
        return Rates(*map(sum, zip(self.rest, *(rates for _, rates in self.flows), strict=True)))
