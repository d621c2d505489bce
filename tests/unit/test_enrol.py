"""Enrolment over real TLS: a key that never leaves, a token that ends, and everything that must be refused."""

import http.client
import os
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from guestagent import pki
from guestagent.cli import main
from guestagent.enrol import client, server, tokens
from guestagent.enrol.command import address
from guestagent.errors import ConfigError
from guestagent.links.secure import Credentials

NAME = "web-1"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A fresh one with a server's certificate."""
    folder = tmp_path / "pki"
    pki.make("init", "", (), str(folder))
    pki.make("collector", "collector-1", ("127.0.0.1",), str(folder))
    return folder


@pytest.fixture
def port(authority: Path) -> Iterator[int]:
    """The served authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(authority / "collector-1.crt", authority / "collector-1.key")
    with server.listen(server.Desk(authority), context, "127.0.0.1", 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


@pytest.fixture
def vm(authority: Path, tmp_path: Path) -> Path:
    """What cloud-init laid in /etc/guestagent of a VM."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    (folder / "guestagent.toml").write_text(
        f'to = "tls://collector-1"\nagent_id = "{NAME}"\n[tls]\n'
        + "".join(f'{key} = "{folder}/{file}"\n' for key, file in zip(("ca", "cert", "key"), FILES, strict=True))
    )
    return folder


FILES = ("ca.crt", "agent.crt", "agent.key")


def enrol(vm: Path, port: int, token: str) -> int:
    """The command as cloud-init runs it."""
    path = vm / "token"
    path.touch(mode=0o600)
    path.write_text(f"{token}\n")
    where = f"127.0.0.1:{port}"
    return main(["enrol", where, "--token-file", str(path), "--config", str(vm / "guestagent.toml")])


def request_of(name: str, curve: str = "prime256v1") -> bytes:
    """A request by another tool."""
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-nodes"]
    return subprocess.run(
        [*command, "-keyout", "/dev/null", "-subj", f"/CN={name}"], check=True, capture_output=True
    ).stdout


def asked(authority: Path, port: int, token: str, body: bytes, path: str = "/enrol") -> tuple[int, bytes]:
    """One HTTP request by hand."""
    context = ssl.create_default_context(cafile=authority / "ca.crt")
    line = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    line.request("POST", path, body, {"Authorization": f"Bearer {token}"})
    answer = line.getresponse()
    said = answer.read()
    line.close()
    return answer.status, said


def test_a_vm_gets_its_certificate(authority: Path, port: int, vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Key and certificate fit, TLS takes them, OpenSSL verifies them, the token is gone here and there."""
    token = tokens.grant(authority, "web-*", 10, 1, time.time())

    assert enrol(vm, port, token) == 0, capsys.readouterr().err
    Credentials(*(str(vm / name) for name in FILES), server_side=False)
    purpose = ["openssl", "verify", "-purpose", "sslclient", "-CAfile", authority / "ca.crt", vm / "agent.crt"]
    assert subprocess.run(purpose, check=False, capture_output=True).returncode == 0
    assert stat.S_IMODE(os.stat(vm / "agent.key").st_mode) == 0o640
    assert not (authority / f"{NAME}.key").exists()
    assert not (vm / "token").exists()
    assert not list(vm.glob(".enrol-*"))
    assert enrol(vm, port, token) == 1
    assert "used up" in capsys.readouterr().err


def test_the_certificate_is_an_agents_whatever_was_asked(authority: Path, port: int) -> None:
    """Extensions of the request are not taken over: no CA, no server, no other name."""
    command = [
        "openssl",
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
    ]
    more = ["-addext", "basicConstraints=CA:TRUE", "-addext", "subjectAltName=DNS:collector-1"]
    body = subprocess.run([*command, "/dev/null", "-subj", "/CN=web-2", *more], check=True, capture_output=True).stdout
    status, said = asked(authority, port, tokens.grant(authority, "web-2", 10, 1, time.time()), body)
    certificate = x509.load_pem_x509_certificate(said)

    assert status == 200
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web-2"]


@pytest.mark.parametrize(
    "names, minutes_ago, status",
    [("web-*", 0, 200), ("db-*", 0, 403), ("web-*", 11, 403)],
)
def test_a_token_is_for_its_names_and_its_time(
    authority: Path, port: int, names: str, minutes_ago: int, status: int
) -> None:
    """Another pattern or a minute too late: nothing is signed."""
    token = tokens.grant(authority, names, 10, 1, time.time() - 60 * minutes_ago)

    assert asked(authority, port, token, request_of(NAME))[0] == status
    assert (authority / f"{NAME}.crt").exists() == (status == 200)


def test_uses_are_counted_under_a_crowd(authority: Path, port: int) -> None:
    """Of twelve that ask at once with a token for five, five are signed."""
    token = tokens.grant(authority, "*", 10, 5, time.time())
    answers: list[int] = []
    bodies = [request_of(f"vm-{number}") for number in range(12)]
    threads = [
        threading.Thread(target=lambda body=body: answers.append(asked(authority, port, token, body)[0]))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [200] * 5 + [403] * 7
    assert len(list(authority.glob("vm-*.crt"))) == 5


@pytest.mark.parametrize("name", ["collector-1", "ca", NAME])
def test_nobody_becomes_another(authority: Path, port: int, name: str) -> None:
    """A name that holds a certificate, as the authority and the collector do, gets no second one; the token stays."""
    pki.make("agent", NAME, (), str(authority))
    before = {path: path.read_bytes() for path in authority.glob("*.crt")}
    token = tokens.grant(authority, "*", 10, 1, time.time())

    assert asked(authority, port, token, request_of(name))[0] == 409
    assert before == {path: path.read_bytes() for path in authority.glob("*.crt")}
    assert tokens.find(authority, token, "x", time.time())


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", 400),
        (request_of("..%2Fx".replace("%2F", "\\/")), 400),
        (request_of("web-9", "secp384r1"), 400),
        (bytes(9000), 413),
    ],
)
def test_a_hostile_request_is_refused(authority: Path, port: int, body: bytes, status: int) -> None:
    """No request, a broken one, a path for a name, another curve, too long: one sentence, nothing is written."""
    before = sorted(authority.rglob("*.crt"))
    answer, said = asked(authority, port, tokens.grant(authority, "*", 10, 9, time.time()), body)

    assert (answer, said.count(b"\n")) == (status, 1), said
    assert before == sorted(authority.rglob("*.crt"))


def test_a_stranger_with_another_authority_is_not_believed(
    authority: Path, port: int, vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The VM sends its token to nobody whom its own authority does not vouch for."""
    other = tmp_path / "other"
    pki.make("init", "", (), str(other))
    (vm / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    token = tokens.grant(authority, "*", 10, 1, time.time())

    assert enrol(vm, port, token) == 1
    assert "is not believed" in capsys.readouterr().err
    assert tokens.find(authority, token, NAME, time.time())
    assert (vm / "token").exists()


def test_silent_peers_do_not_hold_others_up(authority: Path, port: int) -> None:
    """Thirty connections that say nothing leave room for one that asks."""
    import socket

    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    began = time.monotonic()
    status, _ = asked(authority, port, tokens.grant(authority, "*", 10, 1, time.time()), request_of(NAME))
    for one in silent:
        one.close()

    assert status == 200
    assert time.monotonic() - began < server.PATIENCE_SECONDS / 2


def test_tokens_are_kept_as_hashes(authority: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a token that stands in no file, and bad wishes get a sentence."""
    assert main(["pki", "token", "web-*", "--dir", str(authority)]) == 0
    token = capsys.readouterr().out.strip()

    assert len(token) == 2 * tokens.TOKEN_BYTES
    assert tokens.find(authority, token, NAME, time.time())
    for path in authority.rglob("*"):
        assert token not in path.name
        assert path.is_dir() or token.encode() not in path.read_bytes()
    for words in (["--minutes", "0"], ["--uses", "0"], ["--dir", "/nowhere"]):
        assert main(["pki", "token", "web-*", "--dir", str(authority), *words]) == 2


def test_ended_tokens_are_swept(authority: Path) -> None:
    """A new token removes the files of those that have ended."""
    tokens.grant(authority, "a", 1, 1, 0.0)
    tokens.grant(authority, "b", 1, 1, 1000.0)

    assert len(list((authority / tokens.FOLDER).iterdir())) == 1


@pytest.mark.parametrize(
    "text, found",
    [
        ("ca.example", ("ca.example", 4796)),
        ("10.0.0.9:5000", ("10.0.0.9", 5000)),
        ("[fd00::9]", ("fd00::9", 4796)),
        ("[fd00::9]:5000", ("fd00::9", 5000)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    """HOST and HOST:PORT, of both families."""
    assert address(text, "enrol") == found


def test_a_config_without_tls_is_refused(tmp_path: Path) -> None:
    """There would be nobody to believe."""
    path = tmp_path / "c.toml"
    path.write_text('to = "tcp://10.0.0.9"\n')
    from guestagent.config import load_run

    with pytest.raises(ConfigError, match="ca, cert and key"):
        client.enrol(load_run(str(path), {}), str(path), "h", 1, "t")
