"""Whether the wall clock was set: it is compared with the monotonic one. Pure."""

LEAST_STEP_NS = 500_000_000
"""More than adjtime(3) slews in a second a thousand times over, and less than what confuses a reader of times."""


class ClockWatch:
    """Told both clocks every now and then."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def look(self, realtime_ns: int, monotonic_ns: int) -> str:
        """A sentence where the wall clock went further than time did, or less far; else empty.

        The monotonic clock stands still while the machine is suspended, so a sleep looks the same.
        """
        before, self._offset_ns = self._offset_ns, realtime_ns - monotonic_ns
        step_ns = 0 if before is None else self._offset_ns - before
        if abs(step_ns) < LEAST_STEP_NS:
            return ""
        return f"the wall clock was set by {step_ns / 1e9:+.1f} s, or the machine slept; times in the capture follow it"
