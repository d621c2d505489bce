"""`collect --workers N`: the process above the workers. It takes no copies itself.

It forks the workers, starts one again that dies, decides on leases where all agents are seen, and sums
up what the workers know for status, metrics and report. A worker that dies loses no copy: its agents connect again, and
its successor finds in the files how far each run came.
"""

import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from guestagent.collector.handover import open_mail
from guestagent.collector.leases import CHECK_SECONDS, Leases, Standing
from guestagent.collector.summed import summed
from guestagent.config import CollectConfig
from guestagent.errors import ConfigError, HostError
from guestagent.front import Front
from guestagent.loop import READABLE, Loop
from guestagent.observe import reports
from guestagent.observe.status import ask
from guestagent.reception import Door, reloaded
from guestagent.worker import Post, Worker

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

STOP_SECONDS = 5.0
"""For the workers to end their runs; the unit kills after ten."""
STILL_SECONDS = 30.0
"""A worker that said nothing for so long stands still, as systemd's watchdog would find of a single process."""
FIRST_RESTART_SECONDS, MOST_RESTART_SECONDS = 0.1, 5.0
LASTING_SECONDS = 10.0
"""A worker that lived so long was well: the next restart is as quick as the first."""
_HOPELESS = (ConfigError.exit_code, HostError.exit_code)
"""Starting again would end the same way."""


class Supervisor:
    """See above."""

    def __init__(
        self,
        config: CollectConfig,
        reread: Callable[[], CollectConfig],
        tls: "Credentials | None",
        front: Front,
        stack: ExitStack,
    ) -> None:
        self._config, self._reread, self._tls, self._front, self._stack = config, reread, tls, front, stack
        self._loop = Loop()
        stack.callback(self._loop.close)
        self._loop.on_signals(
            {signal.SIGINT: self._signalled, signal.SIGTERM: self._signalled, signal.SIGHUP: self._reload}
        )
        self._leases = Leases()
        self._standings: dict[str, Standing] = {}
        self._worker_of: dict[str, Worker] = {}
        """Who serves a run of a domain."""
        self._workers: list[Worker] = []
        self._stop_reason = ""
        self._exit_code = 0

    def run(self, doors: Sequence[list[Door]], hold: int) -> int:
        """Until the end; the exit code. `doors` are those of each worker, `hold` the lock of the directory or -1."""
        config = self._config
        mail = open_mail(len(doors))
        self._stack.callback(mail.close)
        self._front.show(self._loop, self._status, lambda: sum(one.connected for one in self._workers), self._stack)
        posts = (Post(config, self._reread, self._tls, number, mine, mail, hold) for number, mine in enumerate(doors))
        self._workers = [Worker(post) for post in posts]
        for worker in self._workers:
            self._start(worker)
        try:
            self._work()
        finally:
            self._front.notifier.stopping()
            self._end()
            if config.report:
                reports.write(config.report, self._summed([one.books for one in self._workers]))
        log.info("%s", self._stop_reason)
        return self._exit_code

    # -- the loop -------------------------------------------------------------------------------------------------

    def _signalled(self) -> None:
        self._stop_reason = "stopped by a signal"

    def _reload(self) -> None:
        self._front.notifier.reloading()
        self._config = reloaded(self._config, self._reread, self._renew)
        self._front.notifier.ready()

    def _work(self) -> None:
        front = self._front
        until = self._loop.now() + self._config.duration if self._config.duration else float("inf")
        is_ready = False
        while not self._stop_reason:
            now = self._loop.now()
            if now >= until:
                self._stop_reason = "the duration is over"
            if not is_ready and all(one.has_begun for one in self._workers):
                is_ready = True
                front.notifier.ready()
            front.tick(now)
            for worker in self._workers:
                self._look_after(worker, now)
            self._lease(now)
            self._loop.run_once(min(front.deadline(), until, now + CHECK_SECONDS) - self._loop.now())

    def _start(self, worker: Worker) -> None:
        worker.hire(self._loop.now())
        self._loop.watch(worker.lines, READABLE, lambda _events: self._heard(worker))

    def _look_after(self, worker: Worker, now: float) -> None:
        if worker.pid and now - worker.heard_at > STILL_SECONDS:
            log.error("worker %d stands still for %.0f s: it is killed", worker.number, STILL_SECONDS)
            worker.kill()
            worker.heard_at = now
        if not worker.pid and now >= worker.restart_at:
            worker.restarts += 1
            self._start(worker)
        elif worker.pid:
            worker.lines.flush()

    def _renew(self, config: CollectConfig) -> None:
        """The file is read once more by each worker, which then says the same of it."""
        if self._tls is not None:
            self._tls.renew(config.tls_ca, config.tls_cert, config.tls_key)  # for workers that start later
        for worker in self._workers:
            worker.post = worker.post._replace(config=config)
            if worker.pid:
                worker.lines.say({"reload": True})

    # -- what workers say -----------------------------------------------------------------------------------------

    def _heard(self, worker: Worker) -> None:
        now = self._loop.now()
        worker.heard_at = now
        for said in worker.lines.heard():
            worker.connected = said.get("connected", worker.connected)
            worker.has_begun |= "connected" in said
            worker.books = said.get("books", worker.books)
            for run_id, standing in said.get("standings", {}).items():
                domain, addresses, selection, whole_until = standing
                self._standings[run_id] = Standing(domain, tuple(addresses), tuple(selection), whole_until)
                self._worker_of[run_id] = worker
            for run_id in said.get("gone", ()):
                if self._worker_of.get(run_id) is worker:
                    self._forget_run(run_id)
        if worker.lines.is_ended:
            self._lost(worker, now)

    def _forget_run(self, run_id: str) -> None:
        self._standings.pop(run_id, None)
        self._worker_of.pop(run_id, None)

    def _lost(self, worker: Worker, now: float) -> None:
        """A worker is gone: by our word, or for a fault of its own."""
        self._loop.forget(worker.lines)
        code = worker.bury()
        for run_id in [key for key, one in self._worker_of.items() if one is worker]:
            self._forget_run(run_id)
        if self._stop_reason:
            return
        if code in _HOPELESS:
            self._exit_code, self._stop_reason = code, f"worker {worker.number} can't work"
            return
        lasted = now - worker.started_at >= LASTING_SECONDS
        worker.patience = FIRST_RESTART_SECONDS if lasted else min(2 * worker.patience, MOST_RESTART_SECONDS)
        worker.restart_at = now + worker.patience
        log.error("worker %d ended (%s), it starts again; its agents connect again", worker.number, code)

    def _lease(self, now: float) -> None:
        decided: dict[int, dict[str, Any]] = {}
        for run_id, lease in self._leases.due(self._standings, now).items():
            decided.setdefault(self._worker_of[run_id].number, {})[run_id] = list(lease)
        for number, leases in decided.items():
            self._workers[number].lines.say({"leases": leases})

    # -- the sum --------------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        """Asked of each worker now; one that does not answer is shown as it was."""
        for worker in self._workers:
            worker.books = (ask(worker.status_path) if worker.pid else None) or worker.books
        return self._summed([one.books for one in self._workers])

    def _summed(self, books: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [
            {
                "pid": worker.pid,
                "restarts": worker.restarts,
                **{key: known.get(key, 0) for key in ("connections", "cpu_seconds", "handed_over")},
            }
            for worker, known in zip(self._workers, books, strict=True)
        ]
        return {**summed([known for known in books if known]), "workers": rows}

    # -- the end --------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """All end their runs and tell their books; whoever takes too long is killed."""
        for worker in self._workers:
            if worker.pid:
                worker.lines.say({"stop": True})
        until = self._loop.now() + STOP_SECONDS
        while any(one.pid for one in self._workers) and self._loop.now() < until:
            self._loop.run_once(until - self._loop.now())
        for worker in self._workers:
            if worker.pid:
                log.error("worker %d did not end within %.0f s: it is killed", worker.number, STOP_SECONDS)
                worker.kill()
                self._loop.forget(worker.lines)
                worker.bury()
