"""The agent's desk: it sees all rooms and lets them work together; no other room sees it.

    kernel ring ──► tap.take ──► window (numbered, unacknowledged) ──► link ──► collector
         ▲                                                              │
         └───────────── tap.settle ◄── acknowledged ◄───────────────────┘

Everything happens in one loop. A block is taken from the ring when the link asks for the next frame, so with the link
down the ring is the only buffer, and the kernel drops and counts when it is full.
"""

import logging
import os
import secrets
import signal
import time
from collections import deque
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from guestagent import __version__, identity
from guestagent.capture.engine import Capture, Wish, open_capture
from guestagent.capture.interfaces import links
from guestagent.capture.ring import RETIRE_MS
from guestagent.capture.tap import Tap
from guestagent.config import Endpoint, RunConfig
from guestagent.errors import RunError
from guestagent.governor.feedback import LoopDetector, Sample, Verdict
from guestagent.governor.meter import interface_bytes, interface_packets
from guestagent.links.owner import Link
from guestagent.loop import EDGE, READABLE, Loop
from guestagent.model import Exclusion, Interface
from guestagent.observe import reports
from guestagent.observe.status import StatusSocket
from guestagent.observe.words import LiveLine, RateLine, ledger_sentence
from guestagent.route import refuse_tunnel_loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind, ProtocolError
from guestagent.tapstream.hello import AgentHello, CollectorHello, decode_counts, encode_interface
from guestagent.tapstream.session import Pending, SendWindow

log = logging.getLogger("guestagent.agent")

LEDGER_SCHEMA = "guestagent.ledger/1"
REPORT_SECONDS = 1.0
DETECT_SECONDS = 0.25
HELD_DETECT_SECONDS = 0.03
"""The loop detector looks so often: one look costs about 0.1 ms, and a hold should not outlast its purpose."""
QUIET_DRAIN_SECONDS = 2.2 * RETIRE_MS / 1000
"""After the filter rejects all, the last records leave the kernel within two retire times."""
DRAIN_SECONDS = 1.6
"""SIGTERM to exit stays under 2 s, also with a collector that is gone."""
DRAIN_STEP_SECONDS = 0.02
NICENESS = 10
"""The application goes first. Never SCHED_IDLE: 200 ms delays of the loop were measured."""
KEPT_EXCLUSIONS = 4
"""Closed connections of ours may still say FIN or be answered by RST; the last few stay left out."""


class Agent:
    """One run. `run()` blocks until it ends and returns the exit code."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._loop = Loop()
        self._window = SendWindow()
        self._exclusions: deque[Exclusion] = deque(maxlen=KEPT_EXCLUSIONS)
        self._swaps_ns: deque[int] = deque(maxlen=16)
        self._run_id = secrets.token_hex(16)
        self._started_ns = time.time_ns()
        self._detector = LoopDetector()
        self._is_held = False
        self._stop_reason = self._failure = ""
        self._agent_id = config.agent_id or identity.agent_id()
        self._live, self._rates = LiveLine(), RateLine()
        self._link: Link | None = None
        self._status: StatusSocket | None = None
        self._embedded: Any = None
        self._packets_before = 0

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Open everything, loop, drain, report. Raises GuestagentError where the run can't begin."""
        reports.check_writable(self._config.report)
        refuse_tunnel_loop(self._config.to[0], self._config.interface)
        self._loop.on_signals(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._signalled))
        try:
            self._open()
            self._work()
            self._drain()
            return self._finish()
        finally:
            self._close()

    def _open(self) -> None:
        config = self._config
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        wish = Wish(config.interface, config.filter, config.slice, config.ring, config.promiscuous, config.engine)
        self.capture: Capture = open_capture(wish)
        self.tap = Tap(self.capture.sources)
        self._until = self._loop.now() + config.duration if config.duration else float("inf")
        for source in self.tap.sources:
            self._loop.watch(source, READABLE | EDGE, self._records_wait)
        names = ", ".join(source.interface.name for source in self.tap.sources)
        self._packets_before = interface_packets(source.interface.name for source in self.tap.sources)
        log.info("capturing %s with the %s engine (%s)", names, self.capture.engine, self.capture.reason)
        self._link = self._make_link(config.to[0])
        self._status = StatusSocket("agent", self.snapshot)
        self._loop.watch(self._status, READABLE, self._status.answer)

    def _make_link(self, endpoint: Endpoint) -> Link:
        if endpoint.scheme == "dir":
            from guestagent.collector.embedded import EmbeddedCollector
            from guestagent.links.local import LocalLink

            self._embedded = EmbeddedCollector(endpoint.path, self._config)
            return LocalLink(endpoint.path, self._embedded, self, self._loop.now())
        from guestagent.links.stream import StreamLink

        return StreamLink(endpoint.host, endpoint.port, self, self._loop)

    def _signalled(self) -> None:
        self._stop_reason = self._stop_reason or "stopped by a signal"

    def _work(self) -> None:
        report_at = self._loop.now()
        detect_at = report_at if self._config.to[0].scheme != "dir" else float("inf")
        has_more = False
        while not self._stop_reason:
            now = self._loop.now()
            if now >= self._until:
                self._stop_reason = "the duration is over"
                return
            if now >= report_at:
                report_at = now + REPORT_SECONDS
                self._report()
            if now >= detect_at:
                self._detect(now)
                detect_at = now + (HELD_DETECT_SECONDS if self._is_held else DETECT_SECONDS)
            assert self._link is not None
            self._link.tick(now)
            due = min(report_at, detect_at, self._until, self._link.deadline())
            self._loop.run_once(0.0 if has_more else due - self._loop.now())
            has_more = self._pump()

    def _records_wait(self, _events: int) -> None:
        self._pump()

    def _pump(self) -> bool:
        return self._link is not None and self._link.pump(self._loop.now())

    # -- what the link asks of its owner (links.owner.LinkOwner) --------------------------------------------------

    def hello(self) -> AgentHello:
        """This run, as of now."""
        return AgentHello(
            agent_id=self._agent_id,
            run_id=self._run_id,
            host=identity.host_name(),
            version=__version__,
            layout=self.tap.sources[0].layout,
            ring_bytes=self.tap.ring_bytes,
            started_ns=self._started_ns,
            first_sequence=self._window.first_sequence,
            interfaces=tuple(source.interface for source in self.tap.sources),
        )

    def exclude(self, exclusion: Exclusion) -> None:
        """Leave one more connection of ours out of the capture."""
        self._exclusions.append(exclusion)
        for source in self.tap.sources:
            source.attach(self.capture.program(source.interface.id, tuple(self._exclusions)))
        self._swaps_ns.append(time.time_ns())

    def resumed(self, answer: CollectorHello) -> None:
        """A collector took the run: what it holds is settled, the rest goes out again."""
        if answer.held_sequence is not None:
            self._settle(answer.held_sequence, answer.collector_id, answer.unsupported_gso)
        self._window.rewind()

    def next_frame(self) -> Pending | None:
        """The next numbered frame, made from the next block where none waits."""
        if self._is_held:
            return None
        if not self._window.unsent:
            loan = self.tap.take()
            if loan is None:
                return None
            source, block = loan
            self._window.add(
                Kind.BLOCK,
                lambda sequence: frames.write_block_header(
                    block.memory,
                    block.start,
                    block.end,
                    interface=source.interface.id,
                    sequence=sequence,
                    records=block.records,
                    flags=frames.FLAG_LAST_OF_BLOCK,
                ),
                loan,
            )
        return self._window.send_next()

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Settle what a collector made safe."""
        self._settle(sequence, collector_id, decode_counts(notes.get("unsupported_gso", {})))
        if note := str(notes.get("note", ""))[:200]:
            log.warning("collector %s says: %s", collector_id, frames.printable(note))

    def _settle(self, sequence: int, collector_id: str, unsupported: dict[int, int]) -> None:
        if sequence >= self._window.next_sequence:
            raise ProtocolError(f"it acknowledges frame {sequence}, which was never sent")
        self.tap.settle((pending.loan for pending in self._window.acknowledge(sequence)), delivered=True)
        self.tap.note_unsupported(collector_id, unsupported)

    def link_changed(self, connected: bool, text: str) -> None:
        """Say how the link is."""
        self._live.clear()
        if connected:
            log.info("%s", text)
        else:
            log.warning("%s; the ring holds on", text)

    # -- now and then ---------------------------------------------------------------------------------------------

    def _report(self) -> None:
        self._follow_interfaces()
        total = self.tap.refresh()
        self._window.add_report(self._report_body())
        if self._live.is_on and self._link is not None:
            self._live.show(self._rates.line(self._loop.now(), total, self.tap.held_fraction(), self._link.state.text))
        self._pump()

    def _report_body(self) -> dict[str, Any]:
        return {
            "interfaces": {str(key): ledger.as_dict() for key, ledger in self.tap.ledgers.items()},
            "limits": {"slice": self._config.slice, "filter": self._config.filter, "reason": "as configured"},
            "clock": {"realtime_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()},
            "filter_swaps_ns": list(self._swaps_ns),
        }

    def _follow_interfaces(self) -> None:
        """Tell the collector of a new MTU or MAC; bind again to a device that was made anew under its old name."""
        known = links()
        for source in self.tap.sources:
            if trouble := source.pending_error():
                log.warning("interface %s: %s", source.interface.name, trouble)
            link = known.get(source.interface.name)
            if link is None:
                continue
            if link.index != source.index:
                source.bind(link.index)
                log.warning("interface %s was made anew; capturing it again", link.name)
            if (link.mac, link.mtu) != (source.interface.mac, source.interface.mtu):
                source.interface = replace(source.interface, mac=link.mac, mtu=link.mtu)
                self._window.add(Kind.INFO, partial(_info_frame, source.interface))

    def _detect(self, now: float) -> None:
        """Ask the loop detector; hold the sending while it wants to see what the capture does."""
        assert self._link is not None
        seen = interface_bytes(source.interface.name for source in self.tap.sources)
        verdict = self._detector.step(now, Sample(seen, self.tap.wire_bytes, self._link.state.sent_bytes))
        self._is_held = verdict is Verdict.HOLD
        if verdict is Verdict.LOOP:
            self._stop_reason = "feedback loop"
            self._failure = (
                f"the copies sent to {self._config.to[0]} come back into the capture, wrapped or rewritten on the way, "
                "so it was stopped: leave them out with --filter, or tap another interface"
            )

    # -- the end --------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Let nothing new in, bring out what the kernel holds, wait a little for the last acknowledgements."""
        self._live.clear()
        self.tap.reject_all()
        self._is_held = False
        start = self._loop.now()
        is_quiet = False
        while (now := self._loop.now()) < start + DRAIN_SECONDS:
            if not is_quiet and now >= start + QUIET_DRAIN_SECONDS and not self._pump():
                is_quiet = True
                self.tap.refresh()
                self._window.add_report(self._report_body())
            self._pump()
            if is_quiet and not len(self._window):
                break
            assert self._link is not None
            self._link.tick(now)
            self._loop.run_once(DRAIN_STEP_SECONDS)

    def _finish(self) -> int:
        """Close the books; say goodbye; write the report."""
        assert self._link is not None
        self.tap.settle((pending.loan for pending in self._window.abandon()), delivered=False)
        self.tap.abandon_rest()
        total = self.tap.refresh()
        self._link.finish(self._stop_reason)
        if self._embedded is not None:
            self._embedded.close()
        log.info("%s: %s", self._stop_reason, ledger_sentence(total.as_dict()))
        if self._config.report:
            reports.write(self._config.report, self.snapshot())
        if self._failure:
            raise RunError(self._failure)
        return 0

    def snapshot(self) -> dict[str, Any]:
        """The ledger as `status`, the report file and the tests read it."""
        total = self.tap.refresh()
        link = self._link.state if self._link is not None else None
        return {
            "schema": LEDGER_SCHEMA,
            "role": "agent",
            "version": __version__,
            "run_id": self._run_id,
            "agent_id": self._agent_id,
            **total.as_dict(),
            "cpu_seconds": round(time.process_time(), 3),
            "engine": self.capture.engine,
            "engine_reason": self.capture.reason,
            "interfaces": {
                source.interface.name: self.tap.ledgers[source.interface.id].as_dict() for source in self.tap.sources
            },
            "limits": {"slice": self._config.slice, "filter": self._config.filter, "reason": "as configured"},
            "ring_bytes": self.tap.ring_bytes,
            "ring_held_fraction": round(self.tap.held_fraction(), 4),
            "not_selected_estimate": self._not_selected(total.captured),
            "link": asdict(link) if link else None,
            "stopped": self._stop_reason,
        }

    def _not_selected(self, captured: int) -> int:
        """Packets that the interfaces counted and the filter left out: an estimate, the counters see wire packets."""
        seen = interface_packets(one.interface.name for one in self.tap.sources)
        return max(0, seen - self._packets_before - captured)

    def _close(self) -> None:
        self._live.clear()
        for closable in (self._link, self._status, self._embedded, getattr(self, "tap", None), self._loop):
            if closable is not None:
                closable.close()


def _info_frame(interface: Interface, sequence: int) -> bytes:
    return frames.encode_json(Kind.INFO, encode_interface(interface), sequence=sequence)
