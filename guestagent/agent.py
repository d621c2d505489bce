"""The agent: it sees all rooms and lets them work together; no other room sees it.

    kernel ring ──► tap.take ──► window (numbered, unacknowledged) ──► link ──► collector
         ▲                                                              │
         └───────────── tap.settle ◄── acknowledged ◄───────────────────┘

Everything happens in one loop. A block is taken from the ring when the link asks for the next frame, so with the link
down the ring is the only buffer, and the kernel drops and counts when it is full.
"""

import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from guestagent import __version__, identity
from guestagent.capture.engine import Capture
from guestagent.capture.ring import RETIRE_MS
from guestagent.cloud import CloudChild
from guestagent.config import RunConfig
from guestagent.desk import Desk
from guestagent.errors import RunError
from guestagent.follow import Follower
from guestagent.governor.feedback import LoopDetector, Sample, Verdict
from guestagent.governor.limits import Traffic
from guestagent.loop import EDGE, OUT_OF_FILES, READABLE, Loop
from guestagent.lull import Lull
from guestagent.neighbours import meet
from guestagent.observe import reports
from guestagent.observe.clock import ClockWatch
from guestagent.observe.notify import Notifier
from guestagent.observe.status import StatusSocket
from guestagent.observe.words import LiveLine, RateLine, ledger_sentence, limits_word
from guestagent.privileges import CAP_NET_RAW, keep_only
from guestagent.reload import reload
from guestagent.steering import Steering
from guestagent.way import open_link

log = logging.getLogger("guestagent.agent")

LEDGER_SCHEMA = "guestagent.ledger/1"
REPORT_SECONDS = 1.0
QUIET_DRAIN_SECONDS = 2.2 * RETIRE_MS / 1000
"""After the filter rejects all, the last records leave the kernel within two retire times."""
DRAIN_SECONDS = 1.6
"""SIGTERM to exit stays under 2 s, also with a collector that is gone."""
LAST_ACK_SECONDS = 0.7
"""Of the drain, for what is on its way when no new frame goes out any more: 64 KB at 1 Mbit/s take half a second."""
DRAIN_STEP_SECONDS = 0.02
BLIND_SECONDS = 1.0
"""Without a free descriptor the host can't be looked at: the capture goes on, the looks come later."""


def run_agent(
    config: RunConfig, capture: Capture, reread: Callable[[], RunConfig], cloud: CloudChild | None = None
) -> int:
    """Tap until a signal, the duration or a fault ends it; the exit code. Raises GuestagentError."""
    with ExitStack() as stack:
        agent = Agent(config, capture, stack, reread, cloud)
        agent.work()
        agent.drain()
        agent.finish()
    return 0


class Agent:
    """One run: the desk, the link, and what time asks for. Everything it opens, `stack` closes."""

    def __init__(
        self,
        config: RunConfig,
        capture: Capture,
        stack: ExitStack,
        reread: Callable[[], RunConfig],
        cloud: CloudChild | None = None,
    ) -> None:
        self._config, self._reread = config, reread
        self._stop_reason = self._failure = ""
        self._blind_until = 0.0
        self._loop = Loop()
        stack.callback(self._loop.close)
        handlers = {signal.SIGINT: self._stopped, signal.SIGTERM: self._stopped, signal.SIGHUP: self._reload}
        self._loop.on_signals(handlers)
        self._desk = Desk(capture, config.agent_id or identity.agent_id(), config.dedupe, config.tags)
        self._tap = self._desk.tap
        stack.callback(self._tap.close)
        self._until = self._loop.now() + config.duration if config.duration else inf
        for source in self._tap.sources:
            self._loop.watch(source, READABLE | EDGE, self._records_wait, is_patient=True)
        self._follower = Follower(self._desk)
        stack.callback(self._follower.close)
        self._steering = Steering(config, self._desk, self._loop.now())
        stack.callback(self._steering.close)
        self._packets_before = self._traffic().packets
        self._detector = LoopDetector(self._loop.now() if config.to[0].scheme != "dir" else inf)
        self._clock, self._live, self._rates = ClockWatch(), LiveLine(), RateLine()
        stack.callback(self._live.clear)
        log.info("capturing %s with the %s engine (%s)", ", ".join(self._names()), capture.engine, capture.reason)
        if cloud:
            stack.callback(cloud.close)
            cloud.follow(self._loop, partial(setattr, self._desk, "cloud"))
        self._neighbours = meet(self._loop, self._desk)
        stack.callback(self._neighbours.close)
        self._link = open_link(config, self._desk, self._loop, stack)
        self._lull = Lull(self._link, self._desk)
        status = StatusSocket("agent", self.snapshot)
        stack.callback(status.close)
        self._loop.watch(status, READABLE, status.answer)
        self._serve_metrics(stack)
        self._give_up_privileges(status.path)
        self._notifier = Notifier()
        stack.callback(self._notifier.close)
        self._notifier.ready()

    def _serve_metrics(self, stack: ExitStack) -> None:
        if self._config.metrics:
            from guestagent.observe.endpoint import serve

            stack.callback(serve(self._loop, self._config.metrics, self.snapshot).close)

    def _give_up_privileges(self, *writes: Path) -> None:
        """All sockets are open; a filter that is read again is compiled on a live handle, which takes CAP_NET_RAW."""
        config = self._config
        paths = [config.report, config.to[0].path, config.metrics if isinstance(config.metrics, str) else ""]
        keep_only(CAP_NET_RAW, writes=[*writes, *(Path(path) for path in paths if path)])

    def _traffic(self) -> Traffic:
        return self._steering.traffic() or Traffic()

    def _names(self) -> list[str]:
        return [source.interface.name for source in self._tap.sources]

    def _stopped(self) -> None:
        self._stop_reason = self._stop_reason or "stopped by a signal"

    def _reload(self) -> None:
        self._notifier.reloading()
        self._config = reload(self._config, self._reread, self._desk, self._steering, self._loop.now())
        self._notifier.ready()
        self._desk.window.add_report(self._report_body())

    # -- the loop -------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Until there is a reason to stop."""
        report_at, has_more = self._loop.now(), False
        while not self._stop_reason:
            now = self._loop.now()
            if now >= self._until:
                self._stop_reason = "the duration is over"
                return
            if now >= report_at:
                report_at = now + REPORT_SECONDS
                self._report(now)
                self._look(lambda _: self._follower.look(), now)
            if now >= self._detector.due_at:
                self._look(self._detect, now)
            self._link.tick(now)
            self._desk.tick(now)
            self._look(self._steer, now)
            due = min(report_at, self._until, self._link.deadline(), self._desk.deadline())
            due = min(due, max(min(self._steering.due_at, self._detector.due_at), self._blind_until))
            self._loop.run_once(0.0 if has_more else due - self._loop.now(), self._lull.rest(now))
            now = self._loop.now()
            self._steering.look(now)
            has_more = self._pump(now)

    def _look(self, step: Callable[[float], None], now: float) -> None:
        """Do what looks at the host and takes descriptors for it."""
        try:
            if now >= self._blind_until:
                step(now)
        except OSError as error:
            if error.errno not in OUT_OF_FILES:
                raise
            self._blind_until, self._desk.is_held = now + BLIND_SECONDS, False
            log.warning("the host can't be looked at, copying goes on: %s", error.strerror)

    def _steer(self, now: float) -> None:
        if now >= self._steering.early_at and self._steering.tick(now, self._link):
            self._desk.window.add_report(self._report_body())

    def _pump(self, now: float) -> bool:
        self._desk.gate_opens_at = inf
        try:
            return self._link.pump(now)
        except RunError as fault:  # of a capture below `dir:`
            self._stop_reason = self._failure = str(fault)
            return False

    def _records_wait(self, _events: int) -> None:
        """A ring needs no more than the wake-up, `work` pumps after it; an engine without one reads its socket here."""
        for source in self._tap.sources:
            source.peek()

    def _report(self, now: float) -> None:
        """What needs no descriptor, so that neither a watchdog nor a neighbour misses us while there is none."""
        self._neighbours.tick()
        if step := self._clock.look(time.time_ns(), time.monotonic_ns()):
            log.warning("%s", step)
        self._notifier.beat(f"{self._link.state.text}; {self._steering.limits.reason or 'full copy'}")
        total = self._tap.refresh()
        self._desk.window.add_report(self._report_body())
        if self._live.is_on:
            kept = limits_word(self._steering.describe(now))
            line = self._rates.line(now, total, self._tap.held_fraction(), self._link.state.text)
            self._live.show(f"{kept}  {line}" if kept else line)

    def _report_body(self) -> dict[str, Any]:
        return {
            "interfaces": {str(key): ledger.as_dict() for key, ledger in self._tap.ledgers.items()},
            "limits": self._steering.describe(self._loop.now()),
            "clock": {"realtime_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()},
            "filter_swaps_ns": list(self._desk.swaps_ns),
        }

    def _detect(self, now: float) -> None:
        """Ask the loop detector; hold the sending while it wants to see what the capture does."""
        state = self._link.state
        sample = Sample(self._traffic().bytes, self._tap.wire_bytes, state.sent_bytes, state.copies)
        verdict = self._detector.step(now, sample)
        self._desk.is_held = verdict is Verdict.HOLD
        if verdict is Verdict.LOOP:
            self._stop_reason = "feedback loop"
            self._failure = (
                f"the copies sent to {self._config.to[0]} come back into the capture, wrapped or rewritten on the way, "
                "so it was stopped: leave them out with --filter, or tap another interface"
            )

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let nothing new in, bring out what the kernel holds, and see that all that was sent is acknowledged."""
        self._notifier.stopping()
        self._live.clear()
        self._desk.reject_all()
        self._desk.is_held = False
        start, is_quiet = self._loop.now(), False
        while (now := self._loop.now()) < start + DRAIN_SECONDS:
            if now > start + DRAIN_SECONDS - LAST_ACK_SECONDS:
                self._desk.last_call()
            has_more = self._pump(now)
            if not is_quiet and not has_more and now >= start + QUIET_DRAIN_SECONDS:
                is_quiet = True
                self._tap.refresh()
                self._desk.window.add_report(self._report_body())
                self._pump(now)
            if is_quiet and self._desk.is_settled:
                return
            self._link.tick(now)
            self._loop.run_once(0.0 if has_more else DRAIN_STEP_SECONDS)

    def finish(self) -> None:
        """Say goodbye, close the books, write the report. Raises RunError where a fault ended the run."""
        self._link.finish(self._stop_reason)  # before the ring is given up: it still sends, and reads what is kept
        self._desk.abandon()
        snapshot = self.snapshot()
        log.info("%s: %s", self._stop_reason, ledger_sentence(snapshot))
        if self._config.report:
            reports.write(self._config.report, snapshot)
        if self._failure:
            raise RunError(self._failure)

    def snapshot(self) -> dict[str, Any]:
        """The ledger as `status`, the report file and the tests read it."""
        total = self._tap.refresh()
        return {
            "schema": LEDGER_SCHEMA,
            "role": "agent",
            "version": __version__,
            "run_id": self._desk.run_id,
            "agent_id": self._desk.agent_id,
            **total.as_dict(),
            "cpu_seconds": round(time.process_time(), 3),
            "engine": self._desk.capture.engine,
            "engine_reason": self._desk.capture.reason,
            "interfaces": {name: ledger.as_dict() for name, ledger in self._tap.by_name().items()},
            "interfaces_up": dict(self._follower.is_up),
            "limits": self._steering.describe(self._loop.now()),
            "budgets": self._steering.describe_budgets(),
            "ring_bytes": self._tap.ring_bytes,
            "ring_held_fraction": round(self._tap.held_fraction(), 4),
            "not_selected_estimate": max(0, self._traffic().packets - self._packets_before - total.captured),
            "link": asdict(self._link.state),
            "collector_note": self._desk.collector_note,
            "stopped": self._stop_reason,
        }
