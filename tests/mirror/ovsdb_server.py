"""The real ovsdb-server with the schema of Open vSwitch and no switch behind it; and a proxy that hears all."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
FAR_AHEAD = 1_000_000
"""As cur_cfg: as if ovs-vswitchd had taken over every change at once."""
Json = dict[str, Any]


class OvsdbServer:
    """One server with files of its own, below a directory."""

    def __init__(self, place: Path, *options: str, schema: Path = SCHEMA, is_set_up: bool = True) -> None:
        if not shutil.which("ovsdb-server"):
            pytest.skip("ovsdb-server is not installed")
        place.mkdir(exist_ok=True)
        self.socket = place / "db.sock"
        self.db = f"unix:{self.socket}"
        self._log = place / "ovsdb.log"
        subprocess.run(["ovsdb-tool", "create", place / "conf.db", schema], check=True)
        command = ["ovsdb-server", place / "conf.db", f"--remote=p{self.db}", f"--unixctl={place}/ctl", *options]
        environment = {**os.environ, "OVS_RUNDIR": str(place)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self._listens():
            assert time.monotonic() < deadline, self._log.read_text()
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.005)
        if is_set_up:
            self.transact({"op": "insert", "table": "Open_vSwitch", "row": {"cur_cfg": FAR_AHEAD}})

    def _listens(self) -> bool:
        """The socket has its name before it listens."""
        with socket.socket(socket.AF_UNIX) as server:
            return server.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def vsctl(self, words: str) -> str:
        """Change or ask by Open vSwitch's own tool."""
        command = ["ovs-vsctl", f"--db={self.db}", "--no-wait", "--timeout=5", *words.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def transact(self, *operations: Json) -> list[Json]:
        """Results of a transaction that must succeed."""
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self.socket))
            request = {"id": 0, "method": "transact", "params": ["Open_vSwitch", *operations]}
            server.sendall(json.dumps(request).encode())
            answer = next(_documents(lambda: server.recv(1 << 20)))
        assert not answer["error"], answer
        found: list[Json] = answer["result"]
        assert not any("error" in one for one in found if one), found
        return found

    def rows(self, table: str, *but: str) -> dict[str, Json]:
        """All rows by identifier, without some columns."""
        (found,) = self.transact({"op": "select", "table": table, "where": []})
        unseen = {"_version", *but}
        return {
            row["_uuid"][1]: {name: value for name, value in row.items() if name not in unseen} for row in found["rows"]
        }

    def reset(self) -> None:
        """No bridge, so nothing at all."""
        self.transact({"op": "update", "table": "Open_vSwitch", "where": [], "row": {"bridges": ["set", []]}})


def _documents(receive: Callable[[], bytes]) -> Any:
    """The JSON texts of a stream, one after the other."""
    decoder, heard = json.JSONDecoder(), ""
    while piece := receive():
        heard += piece.decode()
        while heard:
            try:
                document, end = decoder.raw_decode(heard)
            except ValueError:
                break
            heard = heard[end:].lstrip()
            yield document


class Severed(Exception):
    """Raised by `before` or `after`: nothing more goes to the server."""


class Proxy:
    """Between a client and the server: keeps each request, and may stop one by `before` or its answer by `after`."""

    def __init__(self, place: Path, server: OvsdbServer) -> None:
        self._target = str(server.socket)
        self.db = f"unix:{place}/proxy.sock"
        self.requests: list[Json] = []
        self.connections = 0
        self.before: Callable[[Json], None] = lambda request: None
        self.after: Callable[[Json], None] = lambda request: None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{place}/proxy.sock")
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self.connections += 1
            for work in (self._requests, self._answers):
                thread = threading.Thread(target=work, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with server:
            with suppress(OSError, Severed):
                for request in _documents(lambda: client.recv(1 << 20)):
                    self.requests.append(request)
                    self.before(request)
                    server.sendall(json.dumps(request).encode())
                    self.after(request)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes the other thread

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with client, suppress(OSError):
            while piece := server.recv(1 << 20):
                client.sendall(piece)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def operations(self) -> list[Json]:
        """Of all transactions that were asked for."""
        return [
            operation
            for request in self.requests
            if request["method"] == "transact"
            for operation in request["params"][1:]
        ]
