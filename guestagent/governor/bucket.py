"""Token buckets for what leaves the VM: a cap in bytes/s and one in packets/s. Pure; time is an argument.

A bucket that holds at most 40 ms of its cap lets out, in any stretch of t seconds, at most cap x (t + 0.04): 1.04 caps
in a second. Forty is also enough: the agent may oversleep by 30 ms beyond the 10 that it waits for before a token is
lost, and it rests 20 ms while a cap holds something back. Nothing is spent ahead: a frame larger than what is there
leaves in pieces. A cap of less than a packet in 40 ms (300 kbit/s) lets out whole packets all the same: with 80 bytes
each 10 ms, `--rate 64kbit` was spent on headers, and `--packets 10` left as 100 packets a second.
"""

from math import inf, isinf

DEPTH_SECONDS = 0.04
ENOUGH_SECONDS = 0.01
"""Tokens of this time are worth waking up for; less would mean many small writes."""
PACKET_BYTES = 1514
"""A full one on Ethernet."""


class TokenBucket:
    """Spends what a rate brings in, and saves at most DEPTH_SECONDS of it, or the least that is worth leaving."""

    __slots__ = ("_at", "_depth", "_least", "_level", "_rate")

    def __init__(self, rate: float = inf, now: float = 0.0, least: float = 1.0) -> None:
        self._rate, self._at, self._least = rate, now, least
        self._depth = self._level = self._depth_of(rate)

    def _depth_of(self, rate: float) -> float:
        return max(self._least, rate * DEPTH_SECONDS)

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
        """How much may leave at this moment, 0 where that is less than the least; infinite without a cap."""
        self._fill(now)
        if isinf(self._level):
            return self._level
        return float(int(self._level)) if self._level >= self._least else 0.0

    def spend(self, amount: float) -> None:
        """Take what has left. More than was available (a frame header) is a debt, paid first."""
        self._level -= amount

    def ready_at(self, now: float, amount: float) -> float:
        """When `amount`, or what is worth a turn if that is less, will be available."""
        self._fill(now)
        missing = max(self._least, min(amount, self._rate * ENOUGH_SECONDS)) - self._level
        return now + missing / self._rate if missing > 0 else now


class Gate:
    """The bytes and packets that may leave, together."""

    __slots__ = ("bytes", "packets")

    def __init__(self, now: float) -> None:
        self.bytes = TokenBucket(inf, now, PACKET_BYTES)
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
