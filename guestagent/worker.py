"""One worker of `collect --workers N`: what the process above knows of it, and the fork itself with its loop."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from guestagent.collector.handover import Handover, Mail
from guestagent.collector.lessor import DistantLessor
from guestagent.collector.lines import Lines
from guestagent.collector.registry import REPORT_SCHEMA
from guestagent.collector.sinks.directory import Share
from guestagent.config import CollectConfig
from guestagent.errors import GuestagentError
from guestagent.loop import READABLE, Loop
from guestagent.observe.status import StatusSocket, directory
from guestagent.reception import Crew, Door, Reception, collector_id_of, reloaded

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

BEAT_SECONDS = 1.0
LAST_WORDS_SECONDS = 2.0
MOST_DESCRIPTORS = 1 << 16
"""Tried where none can be listed; the process above has a few dozen, and each is the lowest number that was free."""
_SUFFIX = "worker"
"""Of its status socket, which the process above reads alone."""
_STANDARD = (0, 1, 2)


class Post(NamedTuple):
    """What a worker is given, and its successor again."""

    config: CollectConfig
    reread: Callable[[], CollectConfig]
    tls: "Credentials | None"
    number: int
    doors: list[Door]
    mail: Mail
    hold: int
    """The lock of the directory, -1 where nothing is written."""


class Worker:
    """What the process above knows of one."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.number = post.number
        self.pid = 0
        """0 while it is not there."""
        self.lines: Lines
        self.started_at = self.heard_at = self.restart_at = 0.0
        self.patience = 0.0
        """Seconds until it starts again."""
        self.restarts = self.connected = 0
        self.has_begun = False
        """Was it ever able to work?"""
        self.books: dict[str, Any] = {
            "connections": 0,
            "refused": 0,
            "schema": REPORT_SCHEMA,
            "collector_id": collector_id_of(post.config),
            "agents": {},
        }
        """As it told or was asked last."""

    @property
    def status_path(self) -> Path:
        """Where it can be asked."""
        return directory() / f"collector-{self.pid}.{_SUFFIX}"

    def hire(self, now: float) -> None:
        """Fork it. Raises OSError."""
        ours, theirs = socket.socketpair()
        self.lines = Lines(ours)
        pid = os.fork()
        if not pid:
            _be_worker(self.post, Lines(theirs))
        theirs.close()
        self.pid, self.started_at, self.heard_at = pid, now, now

    def kill(self) -> None:
        """It will not end by a word."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def bury(self) -> int:
        """It has ended: its exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        self.status_path.unlink(missing_ok=True)
        self.pid = self.connected = 0
        self.lines.close()
        return os.waitstatus_to_exitcode(status)


def _be_worker(post: Post, lines: Lines) -> None:
    """The fork's whole life. It never returns into what its parent was doing."""
    code = 1
    try:
        _let_go(post, lines)
        _work(post, lines)
        code = 0
    except GuestagentError as error:
        sys.stderr.write(f"guestagent: worker {post.number}: {error}\n")
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 - the process above starts another one
        log.error("worker %d: a bug of ours, %s: %s", post.number, type(error).__name__, error)
        if os.environ.get("GUESTAGENT_TRACEBACK"):
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _let_go(post: Post, lines: Lines) -> None:
    """Close what is the parent's: its status socket, its words with other workers, their doors and inboxes.

    The objects behind these descriptors live on in the parent's frames below, so none is closed a second time.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they come to the whole group; the process above says what to do
    sockets = [post.mail.inboxes[post.number], *post.mail.outboxes, *(listener for _, listener in post.doors)]
    kept = {*_STANDARD, post.hold, lines.fileno(), *(one.fileno() for one in sockets)}
    for descriptor in _descriptors() - kept:
        with suppress(OSError):  # the listing's own is closed by now
            os.close(descriptor)


def _descriptors() -> set[int]:
    """What is open. Before Linux 5.9 to try every number takes four minutes where a container has 2^30 of them."""
    try:
        return set(map(int, os.listdir("/proc/self/fd")))
    except OSError:  # a chroot without it
        return set(range(min(MOST_DESCRIPTORS, os.sysconf("SC_OPEN_MAX"))))


def _work(post: Post, lines: Lines) -> None:
    """Take copies until the process above says stop, or is gone."""
    loop = Loop()
    lessor = DistantLessor(lines.say)
    handover = Handover(post.number, post.mail.inboxes[post.number], post.mail.outboxes, loop)
    crew = Crew(Share(handover.is_ours, post.hold), lessor, handover)
    reception = Reception(post.config, loop, post.tls, crew)
    reception.open(post.doors, ())
    connections, config, stopped = reception.server.connections, post.config, False

    def books(report: dict[str, Any]) -> dict[str, Any]:
        return {**report, "cpu_seconds": round(time.process_time(), 3), "handed_over": handover.given}

    def listen(_events: int) -> None:
        nonlocal config, stopped
        for said in lines.heard():
            lessor.decided(said.get("leases", {}))
            if "reload" in said:
                config = reloaded(config, post.reread, reception.renew)
            stopped |= "stop" in said
        stopped |= lines.is_ended

    with ExitStack() as stack:
        status = StatusSocket("collector", lambda: books(reception.status()), suffix=_SUFFIX)
        stack.callback(status.close)
        loop.watch(status, READABLE, status.answer)
        loop.watch(lines, READABLE, listen)
        beat_at = 0.0
        try:
            while not stopped:
                now = loop.now()
                if now >= beat_at:
                    beat_at = now + BEAT_SECONDS
                    lines.say({"connected": len(connections)})
                reception.tick(now)
                lines.flush()
                loop.run_once(min(reception.deadline(now), beat_at) - loop.now())
        finally:
            lines.say_all({"books": books(reception.close())}, LAST_WORDS_SECONDS)
