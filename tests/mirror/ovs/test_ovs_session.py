"""The way to an ovsdb-server: unix, tcp and ssl with the real one, and a sentence for each way that it can fail."""

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from guestagent import pki
from guestagent.cli import main
from guestagent.mirror.ovs import session as ovs_session
from tests.mirror.ovsdb_server import OvsdbServer

pytest.importorskip("ovsdbapp")
pytest.importorskip("cryptography")

Run = Callable[..., tuple[int, str]]
WORDS = ("--name", "web", "--source", "port:vm1", "--target", "erspan://10.0.0.9?session=7")


@pytest.fixture
def mirror(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `guestagent mirror ovs ...`: exit code, all that it said."""

    def run(*words: str) -> tuple[int, str]:
        code = main(["mirror", "ovs", *words])
        return code, "".join(capsys.readouterr())

    return run


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def files(folder: Path, name: str) -> list[str]:
    return ["--tls-ca", f"{folder}/ca.crt", "--tls-cert", f"{folder}/{name}.crt", "--tls-key", f"{folder}/{name}.key"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ours below `ours`, those of another authority below `other`: a server's and a client's each."""
    folder = tmp_path_factory.mktemp("certificates")
    for place in ("ours", "other"):
        pki.make("init", "", (), f"{folder}/{place}")
        pki.make("collector", "switch", ("127.0.0.1",), f"{folder}/{place}")
        pki.make("agent", "operator", (), f"{folder}/{place}")
    return folder


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[dict[str, str]]:
    """One server by all three ways: the address of each."""
    tcp, ssl = free_port(), free_port()
    ours = certificates / "ours"
    server = OvsdbServer(
        tmp_path_factory.mktemp("ovsdb"),
        f"--remote=ptcp:{tcp}:127.0.0.1",
        f"--remote=pssl:{ssl}:127.0.0.1",
        f"--private-key={ours}/switch.key",
        f"--certificate={ours}/switch.crt",
        f"--ca-cert={ours}/ca.crt",
    )
    server.vsctl("add-br br0 -- add-port br0 vm1")
    yield {"unix": server.db, "tcp": f"tcp:127.0.0.1:{tcp}", "ssl": f"ssl:127.0.0.1:{ssl}"}
    server.stop()


@pytest.mark.parametrize("way", ["unix", "tcp", "ssl"])
def test_each_way_leads_there(switch: dict[str, str], certificates: Path, mirror: Run, way: str) -> None:
    """A mirror is made by one way, seen in order, and removed."""
    where = ["--db", switch[way], *(files(certificates / "ours", "operator") if way == "ssl" else [])]

    assert mirror("create", *WORDS, *where)[0] == 0
    assert mirror("status", "--name", "web", *where)[0] == 0
    assert mirror("delete", "--name", "web", "--yes", *where)[0] == 0


def test_a_config_file_names_the_way(switch: dict[str, str], certificates: Path, mirror: Run, tmp_path: Path) -> None:
    """The keys of mirror.toml are those of the flags, the three files in a table [tls] as everywhere."""
    ours = certificates / "ours"
    (tmp_path / "mirror.toml").write_text(
        f'name = "web"\nsource = ["port:vm1"]\ntarget = "vlan:9"\ndb = "{switch["ssl"]}"\n'
        f'[tls]\nca = "{ours}/ca.crt"\ncert = "{ours}/operator.crt"\nkey = "{ours}/operator.key"\n'
    )

    assert mirror("plan", "-f", f"{tmp_path}/mirror.toml")[0] == 4


@pytest.mark.parametrize(
    "authority, client, sentence",
    [
        ("other", "ours", "the server's certificate is refused (self-signed certificate in certificate chain)"),
        ("ours", "other", "ovs-vsctl set-ssl"),
    ],
    ids=["theirs", "ours"],
)
def test_a_certificate_of_another_authority_is_told(
    switch: dict[str, str], certificates: Path, mirror: Run, authority: str, client: str, sentence: str
) -> None:
    """Which side refused, and what must fit."""
    flags = files(certificates / client, "operator")
    flags[1] = f"{certificates}/{authority}/ca.crt"

    code, said = mirror("list", "--db", switch["ssl"], *flags)

    assert code == 1
    assert sentence in said
    assert "--tls-ca" in said


def test_files_of_tls_are_checked_first(
    switch: dict[str, str], certificates: Path, mirror: Run, tmp_path: Path
) -> None:
    """A file that is missing, no certificate, or a key that others may read: exit 2 with its name."""
    good = files(certificates / "ours", "operator")
    key = tmp_path / "open.key"
    key.write_bytes(Path(good[5]).read_bytes())
    key.chmod(0o644)
    for flags, sentence in (
        (good[:4], "needs --tls-key"),
        ([*good[:5], str(key)], f"chmod 600 {key}"),
        ([*good[:5], "/nonexistent"], "/nonexistent: they can't be used: No such file"),
        ([*good[:3], str(key), *good[4:]], "they can't be used"),
    ):
        code, said = mirror("list", "--db", switch["ssl"], *flags)
        assert (code, sentence in said) == (2, True), said


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server of something else: takes one connection, says this, and waits for the other to go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            one, _ = listener.accept()
            with one:
                one.recv(1000)
                one.sendall(answer)
                one.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


@pytest.mark.parametrize(
    "answer, sentence",
    [
        (b"", "did not answer as an ovsdb-server does: timed out"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak JSON"),
        (b'{"id": 0, "result": {"name": "Open_vSwitch", "tables": {}}, "error": null}', "is none of a switch"),
        (b'{"id": 0, "result": null, "error": "unknown database"}', "has no database Open_vSwitch"),
    ],
    ids=["silence", "http", "schema", "database"],
)
def test_another_server_is_told(monkeypatch: pytest.MonkeyPatch, mirror: Run, answer: bytes, sentence: str) -> None:
    """What is no ovsdb-server, or has no switch, within the time for an answer."""
    monkeypatch.setattr(ovs_session, "ANSWER_SECONDS", 0.3)
    with answering(answer) as db:
        code, said = mirror("list", "--db", db)

    assert code == 1
    assert sentence in said
    assert "Traceback" not in said


def test_a_switch_that_was_never_set_up_is_told(mirror: Run, tmp_path: Path) -> None:
    """The database is there and empty."""
    server = OvsdbServer(tmp_path / "ovsdb", is_set_up=False)
    try:
        code, said = mirror("list", "--db", server.db)
    finally:
        server.stop()

    assert (code, "ovs-vsctl init" in said) == (1, True)


def test_a_server_that_takes_no_changes_is_told(switch: dict[str, str], mirror: Run, tmp_path: Path) -> None:
    """A standby copy may be read; its refusal names what is needed, and a dry run hears it, too."""
    standby = OvsdbServer(tmp_path / "ovsdb", f"--sync-from={switch['unix']}", is_set_up=False)
    try:
        where = ("--db", standby.db)
        for _ in range(200):
            if mirror("plan", *WORDS, *where)[0] == 4:
                break
        for words in (("create", *WORDS), ("plan", *WORDS, "--dry-run")):
            code, said = mirror(*words, *where)
            assert code == 1
            assert "takes no changes from us" in said
            assert "guestagent mirror ovs policy" in said
    finally:
        standby.stop()


def test_no_socket_and_a_dead_one_are_told(mirror: Run, tmp_path: Path) -> None:
    """Nothing there is this host's lack (exit 3); nobody behind it is a failure (1); nonsense is usage (2)."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"{tmp_path}/dead.sock")
    for db, expected, sentence in (
        (f"unix:{tmp_path}/none.sock", 3, "there is no such socket: is Open vSwitch running here?"),
        (f"unix:{tmp_path}/dead.sock", 1, "nobody listens there"),
        (f"tcp:127.0.0.1:{free_port()}", 1, "nobody listens there"),
        ("tcp:127.0.0.1", 2, "is no address of an ovsdb-server"),
        ("db.sock", 2, "is no address of an ovsdb-server"),
    ):
        code, said = mirror("list", "--db", db)
        assert (code, sentence in said) == (expected, True), said


@pytest.mark.root
def test_a_socket_that_we_may_not_use_is_told(switch: dict[str, str], mirror: Run) -> None:
    """A plain user before the socket of root: exit 3, and who may."""
    assert mirror("list", "--db", switch["unix"])[0] == 0  # everything is imported before the rights go
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            with redirect_stderr(io.StringIO()) as said:
                code = main(["mirror", "ovs", "list", "--db", switch["unix"]])
            os._exit(code if "we may not connect: run as root" in said.getvalue() else 98)
        finally:
            os._exit(99)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_policy_asks_nobody(mirror: Run) -> None:
    """It is JSON, and its commands name the port of --db."""
    code, said = mirror("policy", "--db", "ssl:10.0.0.5:7000")

    assert code == 0
    assert "pssl:7000" in said
