"""TLS without a network: a socket that behaves like a plain one, files that may be believed, and the small CA."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guestagent import pki
from guestagent.config import load_collect, load_run
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError
from guestagent.links.ramp import MOST_WRITE_BYTES, Ramp
from guestagent.links.secure import Credentials, SecureSocket, TlsError
from guestagent.links.stream import StreamLink
from guestagent.tapstream.session import Backoff
from tests.fakes import FakeOwner
from tests.repo.test_import_budget import loaded_by
from tests.streams import SkewedLoop


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with a collector and an agent."""
    folder = tmp_path_factory.mktemp("tls") / "pki"
    pki.make("init", "", (), str(folder))
    pki.make("collector", "collector-1", ("127.0.0.1",), str(folder))
    pki.make("agent", "vm-1", (), str(folder))
    return folder


def credentials(keys: Path, name: str, *, server_side: bool) -> Credentials:
    """Those of one end."""
    return Credentials(
        str(keys / "ca.crt"), str(keys / f"{name}.crt"), str(keys / f"{name}.key"), server_side=server_side
    )


@pytest.fixture
def ends(keys: Path) -> Iterator[tuple[SecureSocket, SecureSocket]]:
    """Agent and collector, not yet greeted, over small buffers."""
    plain = socket.socketpair()
    for one in plain:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    agent = credentials(keys, "vm-1", server_side=False).wrap(plain[0], "127.0.0.1")
    collector = credentials(keys, "collector-1", server_side=True).wrap(plain[1])
    yield agent, collector
    agent.close()
    collector.close()


def test_a_write_that_was_taken_in_part_is_repeated_whole(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """Through small buffers, with an allowance that shrinks between tries, every byte arrives once and in order."""
    agent, collector = ends
    data = os.urandom(700_000)
    ramp, got, room = Ramp(), bytearray(), memoryview(bytearray(10_000))
    ramp.load(data[:24], data[24:])
    allowance = 500_000
    while len(got) < len(data):
        try:
            while ramp:
                ramp.push(agent, allowance)
        except BlockingIOError:
            allowance = 500_000 if allowance < 500_000 else 5000
        try:
            while count := collector.recv_into(room):
                got += room[:count]
        except BlockingIOError:
            pass
        try:
            agent.recv_into(bytearray(100))
        except BlockingIOError:
            pass

    assert bytes(got) == data
    assert collector.agent_id("whoever") == "vm-1"
    assert MOST_WRITE_BYTES <= 65_536


def test_a_full_view_hides_nothing(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """A read that fills less than its view has drained socket and record, so a loop may wait for the next event."""
    agent, collector = ends
    writer = threading.Thread(target=_write_all, args=(agent, bytes(50_000)), daemon=True)
    writer.start()
    total = 0
    while total < 50_000:
        try:
            count = collector.recv_into(bytearray(7000))
        except BlockingIOError:
            continue
        total += count
        if count < 7000:
            assert collector.pending() == 0
    writer.join()


def _write_all(sock: SecureSocket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            try:
                sock.recv_into(bytearray(10))
            except BlockingIOError:
                pass


def test_who_speaks_no_tls_is_told_in_plain(keys: Path) -> None:
    """The server's end names it and may still send one plain sentence; nothing of what came is taken."""
    stranger, ours = socket.socketpair()
    ours.setblocking(False)
    secure = credentials(keys, "collector-1", server_side=True).wrap(ours)
    stranger.send(b"tapstrm\x01")
    with pytest.raises(TlsError, match="it speaks no TLS"):
        secure.recv_into(bytearray(100))
    secure.send(b"this port takes tls://")

    assert stranger.recv(100) == b"this port takes tls://"
    secure.close()
    stranger.close()


@pytest.mark.parametrize(
    "name, mode, sentence",
    [
        ("vm-1.key", 0o644, "can be read or written by others: chmod 600"),
        ("vm-1.key", 0o620, "can be read or written by others"),
        ("vm-1.crt", 0o666, "can be written by others than its owner: chmod go-w"),
        ("ca.crt", 0o664, "can be written by others than its owner"),
    ],
)
def test_files_that_others_can_touch_are_refused(
    tmp_path: Path, keys: Path, name: str, mode: int, sentence: str
) -> None:
    """A key that others can read, or anything that others can write, is refused with the cure; 0640 keys pass."""
    for path in keys.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).chmod(0o640)
    credentials(tmp_path, "vm-1", server_side=False)
    (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=sentence):
        credentials(tmp_path, "vm-1", server_side=False)


@pytest.mark.root
@pytest.mark.parametrize("name", ["vm-1.key", "vm-1.crt", "ca.crt"])
def test_files_of_another_user_are_refused(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whoever owns a file can swap it, a key as well as a certificate; the user who called sudo may own them."""
    for path in keys.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).chmod(0o600)
    os.chown(tmp_path / name, 4711, 0)
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(ConfigError, match=f"{name} belongs to user 4711, who can .*: chown root"):
        credentials(tmp_path, "vm-1", server_side=False)
    monkeypatch.setenv("SUDO_UID", "4711")
    credentials(tmp_path, "vm-1", server_side=False)


def test_files_that_are_no_use_are_one_sentence(tmp_path: Path, keys: Path) -> None:
    """Missing, garbled or mismatched files are named."""
    whole = {"ca": "ca.crt", "cert": "vm-1.crt", "key": "vm-1.key"}
    (tmp_path / "bad").write_text("no PEM")
    (tmp_path / "bad").chmod(0o600)
    for part, wrong, sentence in (
        ("ca", "none", "can't be read: No such file"),
        ("ca", "bad", "is no use"),
        ("cert", "bad", "is no use"),
        ("key", str(keys / "collector-1.key"), "don't belong together"),
    ):
        files = {key: str(keys / value) for key, value in whole.items()} | {part: str(tmp_path / wrong)}
        with pytest.raises(ConfigError, match=sentence) as caught:
            Credentials(files["ca"], files["cert"], files["key"], server_side=False)
        assert "\n" not in str(caught.value)


def test_a_config_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Whoever writes the config chooses where the copies go."""
    path = tmp_path / "guestagent.toml"
    path.write_text("to = 'dir:x'")
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="can be written by others than its owner: chmod go-w"):
        load_run(str(path), {})


def test_tls_needs_its_files_and_clear_text_a_private_address() -> None:
    """tls:// without a file, and clear text to or on a public address, are one sentence; allow_cleartext lets it."""
    with pytest.raises(ConfigError, match=r"tls://h:4795 needs --tls-ca"):
        load_run(None, {"to": ["tls://h"]})
    for url in ("tcp://203.0.113.5", "vxlan://203.0.113.5?vni=1", "gre://[2001:db8::1]?key=1"):
        with pytest.raises(ConfigError, match="is not a private address, and copies would be readable"):
            load_run(None, {"to": [url]})
        assert load_run(None, {"to": [url], "allow_cleartext": True}).allow_cleartext
    with pytest.raises(ConfigError, match="is not a private address"):
        load_collect(None, {"listen": ["tcp://203.0.113.5"]})


def test_tls_is_loaded_only_where_it_is_asked_for() -> None:
    """An agent over tcp:// does not pay the 4 MB of OpenSSL."""
    code = "import guestagent.agent, guestagent.links.stream, guestagent.links.keyring, guestagent.collector.server"
    assert "ssl" not in loaded_by(code)


def test_openssl_agrees_with_the_ca(keys: Path) -> None:
    """openssl verify -x509_strict takes each certificate for its own purpose and no other; keys are 0600."""

    def verify(name: str, purpose: str) -> bool:
        argv = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", keys / "ca.crt", keys / name]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    assert verify("collector-1.crt", "sslserver")
    assert verify("vm-1.crt", "sslclient")
    assert not verify("vm-1.crt", "sslserver")
    assert not verify("collector-1.crt", "sslclient")
    assert {path.stat().st_mode & 0o777 for path in keys.glob("*.key")} == {0o600}


def test_the_ca_is_made_once(keys: Path, tmp_path: Path) -> None:
    """A second init, a bad name, and a leaf without an authority are one sentence each."""
    before = (keys / "ca.crt").read_bytes()
    for what, name, folder, sentence in (
        ("init", "", keys, "holds an authority already"),
        ("agent", "a/b", keys, "must be 1 to 64 of"),
        ("agent", "x", tmp_path / "none", "begin with `guestagent pki init`"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            pki.make(what, name, (), str(folder))
    assert (keys / "ca.crt").read_bytes() == before


def test_a_peer_that_dies_is_said_to_be_gone(ends: tuple[SecureSocket, SecureSocket]) -> None:
    """An end without TLS's own goodbye, as by kill -9, has its sentence where a write meets it."""
    agent, collector = ends
    for one in (agent, collector, agent, collector):
        with suppress(BlockingIOError):
            one.send(b"x")
    plain = socket.socket(fileno=collector.detach())
    plain.close()
    with pytest.raises(TlsError, match="it ended without goodbye"):
        agent.send(b"x" * 100)


def test_a_port_that_speaks_something_else_is_named_each_time(keys: Path) -> None:
    """Whichever of sending and receiving meets it first, the link says that the other end speaks no TLS."""
    owner, loop, held = FakeOwner(), SkewedLoop(), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            with suppress(OSError):
                while True:
                    one, _ = server.accept()
                    one.sendall(bytes(600))
                    held.append(one)

        threading.Thread(target=babble, daemon=True).start()
        endpoint = Endpoint("tls", "127.0.0.1", server.getsockname()[1])
        link = StreamLink([endpoint], owner, loop, credentials(keys, "vm-1", server_side=False), Backoff(lambda: 0.0))
        while len(owner.changes) < 20:
            loop.skew += 0.1  # of the back-off
            link.tick(loop.now())
            loop.run_once(0.001)
            link.pump(loop.now())
        link.close()
        server.shutdown(socket.SHUT_RDWR)
    loop.close()
    for one in held:
        one.close()

    assert {"it speaks no TLS" in text for _, text in owner.changes} == {True}, owner.changes
