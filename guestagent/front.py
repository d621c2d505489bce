"""What a collector shows while it works: status socket, metrics, the live line, its word to the service manager."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from guestagent import __version__
from guestagent.config import CollectConfig
from guestagent.loop import READABLE, Loop
from guestagent.observe.notify import Notifier
from guestagent.observe.status import StatusSocket
from guestagent.observe.words import LiveLine
from guestagent.privileges import CAP_NET_ADMIN, CAP_NET_RAW, keep_only

LIVE_SECONDS = 1.0
BEAT_SECONDS = 1.0


class Front:
    """Opened by its constructor, before a directory is held or a port is listened to: whoever finds these taken, as
    `check` does, finds the status socket beside them. It answers once the loop turns. Closed by `stack`.
    """

    def __init__(self, config: CollectConfig, stack: ExitStack) -> None:
        self._config = config
        self._status: Callable[[], dict[str, Any]] = dict
        self._connected: Callable[[], int] = int
        self._socket = StatusSocket("collector", self.snapshot)
        stack.callback(self._socket.close)
        self.notifier = Notifier()
        stack.callback(self.notifier.close)
        self._live = LiveLine()
        self._live_at = self._beat_at = 0.0

    def show(
        self, loop: Loop, status: Callable[[], dict[str, Any]], connected: Callable[[], int], stack: ExitStack
    ) -> None:
        """Answer from now on, until `stack` ends it; gives up the privileges that are not needed from here on."""
        config, self._status, self._connected = self._config, status, connected
        stack.callback(self._live.clear)
        loop.watch(self._socket, READABLE, self._socket.answer)
        stack.callback(loop.forget, self._socket)
        if config.metrics:
            from guestagent.observe.endpoint import serve

            stack.callback(serve(loop, config.metrics, self.snapshot).close)
        paths = (config.report, "" if config.write == "-" else config.write, config.metrics)
        places = [Path(path) for path in paths if path and isinstance(path, str)]
        keep_only(*_later_needs(config), writes=[self._socket.path, *places])

    def snapshot(self) -> dict[str, Any]:
        """What `guestagent status` and Prometheus read."""
        return {"role": "collector", "version": __version__, **self._status()}

    def tick(self, now: float) -> None:
        """Once a second: the live line, the beat for the service manager."""
        if self._live.is_on and now >= self._live_at:
            self._live_at = now + LIVE_SECONDS
            self._live.show(_live_text(self._status()))
        if now >= self._beat_at:
            self._beat_at = now + BEAT_SECONDS
            self.notifier.beat(f"{self._connected()} connected")

    def deadline(self) -> float:
        """When `tick` is due."""
        return min(self._beat_at, self._live_at) if self._live.is_on else self._beat_at


def _live_text(status: dict[str, Any]) -> str:
    sums = [sum(agent[key] for agent in status["agents"].values()) for key in ("received", "written", "gaps")]
    return f"{status['connections']} connected  received {sums[0]:,}  written {sums[1]:,}  gaps {sums[2]:,}"


def _later_needs(config: CollectConfig) -> list[int]:
    """Capabilities for what is opened while it runs: a TAP device for each agent, raw sockets to a sensor again."""
    needs = [CAP_NET_ADMIN] if "%a" in config.tap else []
    return [*needs, CAP_NET_RAW] if any(one.is_raw for one in config.relay) else needs
