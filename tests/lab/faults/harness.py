"""Runs faults on a stage and holds the invariants: what each fault did, and a sentence for each promise it broke."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from statistics import median

from guestagent.observe.logs import DAMPING_SECONDS
from tests.lab.faults.production import DATAGRAM_BYTES, DATAGRAM_PORT, kept
from tests.lab.faults.stage import AGENT, RECOVERY_SECONDS, Stage, anonymous_bytes, descriptors, eventually
from tests.lab.faults.table import Fault
from tests.lab.rig import COLLECTOR, PORT, Frame, Process, udp_copies

VISIBLE_SECONDS = 5.0
CALM_SECONDS = 2.0
"""Before the first fault: what production does without one."""
LEAST_KEPT = 0.6
"""Of production's throughput, the median over all faults: single ones share the machine with whatever else it does."""
UDP = b"\x11"
MOST_GROWTH_BYTES = 4_000_000
MOST_CORES = 0.5
"""A loop that spins takes all of one; copying at this pace a tenth."""
POLL_SECONDS = 0.05
HELD_NS = 1_000_000_000
"""What is held of a run that dies ends less than this before its death: a block waits 100 ms, an ACK 20."""
SETTLING_SECONDS = 3.0
"""For what closes later than it is noticed: a watched connection, a resolver's thread."""


@dataclass(slots=True)
class Outcome:
    """What a fault did."""

    fault: Fault
    seen: str = ""
    seen_seconds: float = 0.0
    recovery_seconds: float = 0.0
    losses: dict[str, int] = field(default_factory=dict)
    kept: float = 0.0
    """Of production's throughput."""
    span: tuple[float, float] = (0.0, 0.0)
    """Monotonic seconds, recovery included."""
    wall_ns: tuple[int, int] = (0, 0)
    """The same by the wall clock."""
    complaints: list[str] = field(default_factory=list)


class Trial:
    """Faults one after the other on one stage; `end` closes the books over all of them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        time.sleep(CALM_SECONDS)
        stage.wait_until_settled()
        self._sizes = {who: self._size(who) for who in ("agent", "collector")}
        self.outcomes: list[Outcome] = []
        self.complaints: list[str] = []
        self._told_at: dict[str, float] = {}
        """When a log said it last; it does not say the same again at once."""
        self.received = 0
        """Datagrams that production got, known at the end."""

    def _process(self, who: str) -> Process:
        return self.stage.agent if who == "agent" else self.stage.collector

    def _size(self, who: str) -> tuple[int, int]:
        process = self._process(who)
        return descriptors(process), anonymous_bytes(process)

    def endure(self, fault: Fault, hold_seconds: float, look: Callable[[], None] = lambda: None) -> Outcome:
        """Let one fault happen for at least so long; `look` is called now and then."""
        stage, outcome = self.stage, Outcome(fault)
        before, log_from = stage.books(), len(self._process(fault.teller).log_text())
        reconnects = stage.agent.status()["link"]["reconnects"]
        burnt = {who: (self._process(who).pid, self._process(who).cpu_seconds()) for who in ("agent", "collector")}
        start, start_ns = time.monotonic(), time.time_ns()
        with fault.inject(stage):
            entered = time.monotonic()
            self._watch(fault, outcome, log_from, start, look)
            while time.monotonic() < entered + hold_seconds:
                look()
                time.sleep(POLL_SECONDS)
            if fault.within or not fault.words:
                outcome.recovery_seconds = self._settle(outcome)
            self._watch_on(fault, outcome, log_from)
        settled_seconds = self._settle(outcome)
        if not fault.within:
            outcome.recovery_seconds = settled_seconds
        outcome.span, outcome.wall_ns = (start, time.monotonic()), (start_ns, time.time_ns())
        for who, (pid, seconds) in burnt.items():
            if (process := self._process(who)).pid == pid:
                cores = (process.cpu_seconds() - seconds) / (time.monotonic() - start)
                if cores > MOST_CORES:
                    outcome.complaints.append(f"{who} took {cores:.2f} of a core")
        after = stage.books()
        base = {} if fault.gap else before.losses  # a new agent begins at 0
        outcome.losses = {key: now - base.get(key, 0) for key, now in after.losses.items() if now > base.get(key, 0)}
        self._judge(fault, outcome, stage.agent.status()["link"]["reconnects"] - reconnects)
        self.outcomes.append(outcome)
        return outcome

    def _settle(self, outcome: Outcome) -> float:
        try:
            return self.stage.wait_until_settled()
        except AssertionError as error:
            said = [line for line in self.stage.words("agent", 0) if line]
            outcome.complaints.append(f"{error}: {said}")
            return RECOVERY_SECONDS

    def _watch(self, fault: Fault, outcome: Outcome, log_from: int, start: float, look: Callable[[], None]) -> None:
        def is_told() -> bool:
            look()
            for line in self.stage.words(fault.teller, log_from):
                if re.search(fault.words, line):
                    outcome.seen, self._told_at[fault.words] = line, time.monotonic()
                    return True
            return False

        if fault.words:
            damped = time.monotonic() - self._told_at.get(fault.words, -inf) < DAMPING_SECONDS
            if not eventually(is_told, VISIBLE_SECONDS) and not damped:
                said = [line for line in self.stage.words(fault.teller, log_from) if line]
                outcome.complaints.append(f"{fault.words!r} was not told within {VISIBLE_SECONDS} s, but {said}")
            outcome.seen_seconds = time.monotonic() - start

    def _watch_on(self, fault: Fault, outcome: Outcome, log_from: int) -> None:
        if fault.then:
            told = [line for line in self.stage.words(fault.teller, log_from) if re.search(fault.then, line)]
            if not told and fault.then not in self._told_at:
                outcome.complaints.append(f"{fault.then!r} was not told at all")
            self._told_at[fault.then] = time.monotonic()
            outcome.seen += f"; then: {' '.join(told[:1])}"

    def _judge(self, fault: Fault, outcome: Outcome, reconnects: int) -> None:
        if not fault.words and reconnects:
            outcome.complaints.append(f"{reconnects} reconnects, where nothing should change")
        for key in outcome.losses.keys() - fault.may_lose:
            outcome.complaints.append(f"{outcome.losses[key]} {key}")
        for who, (files, own_bytes) in self._sizes.items():
            process = self._process(who)
            if not eventually(lambda process=process, files=files: descriptors(process) <= files, SETTLING_SECONDS):
                outcome.complaints.append(f"{who} holds {descriptors(process)} files, {files} before")
            if (grown := anonymous_bytes(process) - own_bytes) > MOST_GROWTH_BYTES:
                outcome.complaints.append(f"{who} grew by {grown} bytes")
        try:
            self.stage.production.assert_well()
        except Exception as error:  # noqa: BLE001 - whatever production met is a complaint
            outcome.complaints.append(f"production failed: {error}")

    # -- the end ------------------------------------------------------------------------------------------------------

    def end(self) -> list[str]:
        """Stop everything; what is wrong over the whole trial."""
        stage = self.stage
        transfers, spans = stage.production.transfers(), [one.span for one in self.outcomes]
        for outcome in self.outcomes:
            outcome.kept = kept(transfers, spans, outcome.span)
        if (usual := median(outcome.kept for outcome in self.outcomes)) < LEAST_KEPT:
            self._complain("production's throughput, as a part of that without faults", f"{usual:.2f}")
        self.received = stage.production.end()
        ledger, report = stage.agent.stop(10.0), stage.collector.stop(10.0)
        self._close_books(ledger, report, self.received)
        if not eventually(lambda: stage.remains() == stage.before, SETTLING_SECONDS):
            self._complain("left behind or missing", sorted({*stage.remains()} ^ {*stage.before}))
        return self.complaints + [f"{one.fault.title}: {text}" for one in self.outcomes for text in one.complaints]

    def _complain(self, what: str, value: object) -> None:
        self.complaints.append(f"{what}: {value}")

    def _close_books(self, ledger: dict, report: dict, sent: int) -> None:
        lost = sum(ledger[key] for key in ("capped", "dropped_by_ring", "unsupported_gso", "lost_on_link"))
        if ledger["in_flight"] or ledger["captured"] != ledger["delivered"] + lost:
            self._complain("the agent's ledger is open", ledger)
        theirs = report["agents"][AGENT]
        if theirs["gaps"] or theirs["received"] - theirs["unsupported_gso"] != theirs["written"]:
            self._complain("the collector's books are open", theirs)
        self._check_gaps(theirs["unclean_ends"])
        found = self.stage.site.call(survey, self.stage)
        has_gap = any(one.fault.gap for one in self.outcomes)
        if not has_gap and found.frames != ledger["delivered"]:
            self._complain("frames in the files and delivered", (found.frames, ledger["delivered"]))
        if found.twice:
            self._complain("datagrams that are there twice", found.twice)
        if found.own:
            self._complain("copies of our own stream", found.own)
        if not lost and not has_gap and not found.cut and found.distinct != sent:
            self._complain("datagrams sent and found", (sent, found.distinct))

    def _check_gaps(self, ends: list[dict]) -> None:
        """Each death of the agent is reported with two times that hold it between them."""
        deaths = [one.wall_ns for one in self.outcomes if one.fault.gap == "unclean"]
        right = len(ends) == len(deaths) and all(
            began - HELD_NS < end["last_held_ns"] < end["until_ns"] < ended and began < end["until_ns"]
            for end, (began, ended) in zip(ends, deaths, strict=True)
        )
        if not right:
            self._complain("unclean ends, and the times of deaths", (ends, deaths))


@dataclass(frozen=True, slots=True)
class Survey:
    """What the files hold."""

    frames: int
    distinct: int
    twice: int
    cut: int
    own: int
    """Packets of the stream with data in them, on their way out; what comes in, a bad wire may have made."""


def carries_data(tcp: bytes) -> bool:
    """Has this TCP segment over IPv4 a payload? The RST of a connection that is long over is no copy of anything."""
    return int.from_bytes(tcp[16:18], "big") > 20 + (tcp[46] >> 4) * 4


def survey(stage: Stage) -> Survey:
    """Read every file of the agent, packet by packet; runs where the files are."""
    own_target = socket.inet_aton(COLLECTOR), PORT.to_bytes(2, "big")
    frames = own = 0

    def datagrams() -> Iterator[Frame]:
        nonlocal frames, own
        for frame in stage.rig.frames(AGENT):
            frames += 1
            own += (frame.data[30:34], frame.data[36:38]) == own_target and carries_data(frame.data)
            if frame.data[23:24] == UDP:
                yield frame

    whole, cut = udp_copies(datagrams(), DATAGRAM_PORT, DATAGRAM_BYTES)
    distinct = len(set(whole))
    return Survey(frames, distinct, len(whole) - distinct, len(cut), own)
