"""Token buckets for what leaves the VM: a cap in bytes/s and one in packets/s. Pure; time is an argument.

A bucket that holds at most 40 ms of its cap lets out, in any stretch of t seconds, at most cap x (t + 0.04): 1.04 caps
in a second. Forty is also enough: the agent may oversleep by 30 ms beyond the 10 that it waits for before a token is
lost, and it rests 20 ms while a cap holds something back. Nothing is spent ahead: a frame larger than what is there
leaves in pieces.
"""

from math import inf, isinf

DEPTH_SECONDS = 0.04
ENOUGH_SECONDS = 0.01
"""Tokens of this time are worth waking up for; less would mean many small writes."""


class TokenBucket:
    """Spends what a rate brings in, and saves at most DEPTH_SECONDS of it."""

    __slots__ = ("_at", "_depth", "_level", "_rate")

    def __init__(self, rate: float = inf, now: float = 0.0) -> None:
        self._rate, self._at = rate, now
        self._depth = self._level = self._depth_of(rate)

    @staticmethod
    def _depth_of(rate: float) -> float:
        return max(1.0, rate * DEPTH_SECONDS)  # one packet at least, or a cap of 10 packets/s would let none out

    @property
    def rate(self) -> float:
        """The cap, a second."""
        return self._rate

    @property
    def depth(self) -> float:
        """How much it saves at most; infinite without a cap."""
        return self._depth

    def set_rate(self, now: float, rate: float) -> None:
        """Hold another cap from now on; of what was saved under the old one, what the new one could save is kept."""
        if rate != self._rate:
            self._fill(now)
            unlimited = isinf(self._rate)
            self._rate, self._depth = rate, self._depth_of(rate)
            self._level = self._depth if isinf(rate) else 0.0 if unlimited else min(self._level, self._depth)

    def _fill(self, now: float) -> None:
        if now > self._at and not isinf(self._rate):
            self._level = min(self._depth, self._level + (now - self._at) * self._rate)
        self._at = max(self._at, now)

    def available(self, now: float) -> float:
        """How much may leave at this moment; infinite without a cap."""
        self._fill(now)
        return self._level if isinf(self._level) else float(max(0, int(self._level)))

    def spend(self, amount: float) -> None:
        """Take what has left. More than was available (a frame header) is a debt, paid first."""
        self._level -= amount

    def ready_at(self, now: float, amount: float) -> float:
        """When `amount`, or what is worth a turn if that is less, will be available."""
        self._fill(now)
        missing = min(amount, max(1.0, self._rate * ENOUGH_SECONDS)) - self._level
        return now + missing / self._rate if missing > 0 else now


class Gate:
    """The bytes and packets that may leave, together."""

    __slots__ = ("bytes", "packets")

    def __init__(self, now: float) -> None:
        self.bytes = TokenBucket(inf, now)
        self.packets = TokenBucket(inf, now)

    def set_caps(self, now: float, byte_cap: float, packet_cap: float) -> None:
        """Follow the caps of the limits in force."""
        self.bytes.set_rate(now, byte_cap)
        self.packets.set_rate(now, packet_cap)

    def room(self, now: float) -> tuple[float, float]:
        """Bytes and packets that may leave now."""
        return self.bytes.available(now), self.packets.available(now)

    def spend(self, size: float, packets: float = 0) -> None:
        """Count bytes as they are written; packets with the first piece of their frame."""
        self.bytes.spend(size)
        self.packets.spend(packets)

    def ready_at(self, now: float, size: float, packets: float) -> float:
        """When both have something worth a turn."""
        return max(self.bytes.ready_at(now, size), self.packets.ready_at(now, packets))
