"""`guestagent check`: what it says of a collector's config, and of a collector that an agent would go to."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestagent import check
from guestagent.cli import main
from guestagent.config import load_run
from guestagent.endpoint import Endpoint
from guestagent.observe import status
from tests.workers import Collector, Keys


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where status sockets are looked for."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str]]:
    """(exit code, what is said of each step, beginning with ok or FAIL)."""
    code = main(["check", *arguments])
    lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    return code, {head.split()[1]: f"{head.split()[0]} {said}" for head, _, said in lines}


def test_a_sound_collector_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step is tried and said; nothing is left behind, so it passes again."""
    keys = Keys(tmp_path / "pki")
    arguments = ["--listen", "tls://127.0.0.1:0", "--listen", "vxlan://127.0.0.1", "--write", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    for _ in range(2):
        code, said = checked(capsys, *arguments, *keys.flags())
        assert 0 == code
        assert {"limits", "tls", "exposure", "files", "listen", "outlets"} == set(said)
        assert all(one.startswith("ok") for one in said.values()), said
    assert "its key are of use" in said["tls"]


def config_file(tmp_path: Path, text: str) -> str:
    """A TOML file of the operator."""
    path = tmp_path / "collect.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


FAULTS: list[Any] = [
    pytest.param('listen = "tls://127.0.0.1:0"\n[tls]\nca = "/x"\ncert = "/x"\nkey = "/x"\n', 2, "tls", id="files"),
    pytest.param('listen = "tcp://127.0.0.1:0"\nwrite = "/etc/passwd/x"\n', 2, "files", id="write"),
    pytest.param('listen = "tcp://192.0.2.77:4795"\nallow_cleartext = true\n', 2, "listen", id="address"),
    pytest.param('listen = "tcp://127.0.0.1:0"\nreport = "/nowhere/x"\n', 2, "files", id="report"),
]


@pytest.mark.parametrize("text, expected, step", FAULTS)
def test_what_would_stop_collect_stops_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: int, step: str
) -> None:
    """The step that fails is named with its sentence, and the exit code is that of collect."""
    code, said = checked(capsys, "-c", config_file(tmp_path, text))
    assert expected == code
    assert [step] == [name for name, one in said.items() if one.startswith("FAIL")], said


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--listen", "tcp://127.0.0.1:0", "--filter", "udp"], "--filter has no meaning here"),
        (["--tap", "ids0"], "--tap has no meaning here"),
        (["--listen", "tcp://8.8.8.8"], "is not a private address"),
        (["--listen", "tcp://127.0.0.1:0", "--relay", "vxlan://8.8.8.8?vni=1"], "is not a private address"),
        (["--listen", "tcp://127.0.0.1", "--workers", "2", "--write", "-"], "one file has one writer"),
        (["--listen", "vxlan://127.0.0.1", "--workers", "2"], "is taken by one process"),
        (["--listen", "tcp://127.0.0.1", "--workers", "2", "--tap", "ids0"], "belongs to one process"),
        (["--listen", "tcp://127.0.0.1", "--workers", "0"], "must be a whole number from 1 to 64"),
    ],
)
def test_flags_that_contradict(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """One sentence and exit code 2, as from the verb itself."""
    assert 2 == main(["check", *arguments])
    assert said in capsys.readouterr().err


def test_a_taken_port_is_fine_where_it_is_our_own(
    start: Callable[..., Collector], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before a reload the collector runs already and has port and directory; a stranger's port is a fault."""
    collector = start("--workers", "1")
    arguments = ["--listen", f"tcp://127.0.0.1:{collector.port}", "--write", str(collector.captures)]
    code, said = checked(capsys, *arguments)
    assert (0, True) == (code, all(one.startswith("ok") for one in said.values())), said
    assert "the collector that runs now" in said["listen"]
    assert "the collector that runs now" in said["files"]
    collector.stop()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        arguments[1] = f"tcp://127.0.0.1:{stranger.getsockname()[1]}"
        code, said = checked(capsys, *arguments)
    assert 2 == code
    assert "Address already in use" in said["listen"]


WITNESS = """
import fcntl, os, signal, sys
from pathlib import Path
from guestagent.cli import main

real = fcntl.flock

def flock(*arguments):
    print(*(path.name for path in Path(os.environ["RUNTIME_DIRECTORY"]).glob("*.sock")), flush=True)
    signal.raise_signal(signal.SIGTERM)
    return real(*arguments)

fcntl.flock = flock
sys.exit(main(sys.argv[1:]))
"""
"""`guestagent` that prints the status sockets that are there when it takes a directory, and is told to stop then."""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_its_status_is_there_before_the_directory_is_taken(tmp_path: Path, workers: str) -> None:
    """Whoever finds the directory of a collector that starts held finds the collector, which can already be stopped."""
    words = ["collect", "--listen", "tcp://127.0.0.1:0", "--workers", workers]
    command = [sys.executable, "-c", WITNESS, *words, "--write", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate(timeout=60)
    assert 0 == process.returncode, err
    assert f"collector-{process.pid}.sock" in out.splitlines()[0]
    assert "stopped by a signal" in err
    assert [] == list((tmp_path / "run").iterdir())


def test_a_collector_that_stands_still_is_no_stranger(
    start: Callable[..., Collector], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not answer in time, as on a machine that is very busy, has its port and directory all the same."""
    monkeypatch.setattr(status, "ASK_SECONDS", 0.05)
    collector = start("--workers", "1")
    collector.process.send_signal(signal.SIGSTOP)
    listen = f"tcp://127.0.0.1:{collector.port}"
    code, said = checked(capsys, "--listen", listen, "--write", str(collector.captures))
    collector.process.send_signal(signal.SIGCONT)
    assert (0, True) == (code, all(one.startswith("ok") for one in said.values())), said
    assert f"the collector that runs now (collector-{collector.process.pid})" in said["files"]
    collector.stop()


def test_an_interface_that_is_waited_for_stops_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`run --wait` would wait for it, so `check` passes and says so; without `wait` both end with 2."""
    arguments = ["-i", "nosuch0", "--to", f"dir:{tmp_path}"]
    code, said = checked(capsys, *arguments, "--wait")
    assert 0 == code
    assert "nosuch0" in said["capture"]
    assert said["capture"].endswith("run would wait for it")
    code, said = checked(capsys, *arguments)
    assert 2 == code
    assert said["capture"].startswith("FAIL")


def test_what_a_collector_answers(start: Callable[..., Collector], tmp_path: Path) -> None:
    """It answers, and until when its certificate holds; wrong CA, plain text and nobody are said with the reason."""
    keys, others = Keys(tmp_path / "pki"), Keys(tmp_path / "others")
    collector = start("--workers", "1", *keys.flags(), scheme="tls")
    for folder, made in (("pki", keys), ("others", others)):
        made.agent("vm-1")
        assert (tmp_path / folder / "vm-1.crt").exists()

    def said(scheme: str, made: Keys, port: int) -> str:
        ca, cert, key = made.of("vm-1")
        flags = {"to": [f"{scheme}://127.0.0.1:{port}"], "tls_ca": ca, "tls_cert": cert, "tls_key": key}
        return check._collector(load_run(None, flags))

    right = said("tls", keys, collector.port)
    assert "answers over TLSv1.3; its certificate ends " in right
    assert right.endswith("GMT")
    assert "its certificate is refused" in said("tls", others, collector.port)
    assert "it said goodbye: it speaks no TLS, and this port takes tls:// alone" in said("tcp", keys, collector.port)
    collector.stop()
    assert "does not answer now (Connection refused); run would wait for it" in said("tls", keys, collector.port)


def test_two_names_of_one_collector_are_warned_of() -> None:
    """With a copy for each, what resolves to one address and port is said; another port or a name of nobody is not."""
    ends = [Endpoint("tcp", *place) for place in (("localhost", 1), ("127.0.0.1", 1), ("127.0.0.1", 2), ("a..b", 1))]
    (said,) = check.one_of_two_names(ends)

    assert said.startswith("tcp://127.0.0.1:1 and tcp://localhost:1 lead to one collector")


def test_check_warns_of_two_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` says it where every copy goes to all collectors, and where one takes over from another it does not."""
    for mode, expected in (("replicate", True), ("failover", False)):
        config = config_file(tmp_path, f"mode = '{mode}'\nto = ['tcp://localhost:1', 'tcp://127.0.0.1:1']\n")
        main(["check", "-i", "lo", "-c", config])
        assert expected is ("warn collector: " in capsys.readouterr().out)
