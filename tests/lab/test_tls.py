"""TLS: copies reach the right collector from the right agent, or nobody; and nobody on the way reads them."""

import random
import socket
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from guestagent import pki
from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_payload, udp_send
from tests.lab.rig import PORT, Rig, assert_ledger_closes, udp_indexes, wait_for

PACE = 5000
PAYLOAD_BYTES = 258
RANDOM_KILLS = 50
COLLECTOR_NAME = "10.9.0.1"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """An authority, a collector's and an agent's certificate."""
    folder = tmp_path / "pki"
    pki.make("init", "", (), str(folder))
    pki.make("collector", "collector-1", (COLLECTOR_NAME,), str(folder))
    pki.make("agent", "vm", (), str(folder))
    return folder


def flags(folder: Path, name: str) -> list[str]:
    """What both verbs take."""
    return [f"--tls-ca={folder}/ca.crt", f"--tls-cert={folder}/{name}.crt", f"--tls-key={folder}/{name}.key"]


@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_no_payload_crosses_the_wire(rig: Rig, pair: tuple[Host, Host], keys: Path, scheme: str) -> None:
    """With tls:// the wire between agent and collector shows no byte of the tapped traffic; with tcp:// it does."""
    vm, peer = pair
    with_tls = scheme == "tls"
    collector = rig.collect(peer, *(flags(keys, "collector-1") if with_tls else ()), scheme=scheme)
    wire = rig.directory / "wire.pcap"
    sniffer = peer.popen(
        ["tcpdump", "-i", "eth0", "-U", "-w", str(wire), f"tcp port {PORT}"], stderr=subprocess.DEVNULL
    )
    wait_for(wire.exists, "tcpdump")
    agent = rig.agent(vm, *(flags(keys, "vm") if with_tls else ()), to=f"{scheme}://{COLLECTOR_NAME}")
    vm.call(udp_send, "10.9.0.1", 9000, PACE, PACE, PAYLOAD_BYTES)
    ledger, report = agent.stop(), collector.stop()
    sniffer.terminate()
    sniffer.wait()

    assert_ledger_closes(ledger, report)
    assert sorted(udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES)) == list(range(PACE))
    data = wire.read_bytes()
    assert len(data) > PACE * PAYLOAD_BYTES, "the copies crossed this wire"
    seen = [index for index in range(0, PACE, 50) if udp_payload(index, PAYLOAD_BYTES)[8:40] in data]
    assert bool(seen) != with_tls


def test_fifty_kills_at_random_moments_cost_nothing(rig: Rig, pair: tuple[Host, Host], keys: Path) -> None:
    """50 times kill -9 of the collector within handshakes, writes and ACKs; certificates renewed under load midway."""
    vm, peer = pair
    moments = random.Random(4795)
    collector = rig.collect(peer, *flags(keys, "collector-1"), scheme="tls")
    agent = rig.agent(vm, *flags(keys, "vm"), to=f"tls://{COLLECTOR_NAME}")
    sender = vm.start(udp_send, "10.9.0.1", 9000, 45 * PACE, PACE, PAYLOAD_BYTES)
    for number in range(RANDOM_KILLS):
        wait_for(lambda: moments.random() < 0.1, "a random moment")
        collector.kill()
        if number == RANDOM_KILLS // 2:
            pki.make("agent", "vm", (), str(keys))
            pki.make("collector", "collector-1", (COLLECTOR_NAME,), str(keys))
        collector = rig.collect(peer, *flags(keys, "collector-1"), scheme="tls")
    sender.terminate()
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be back", 10)
    ledger = agent.stop()
    collector.stop()

    assert "certificates were read again" in agent.log_text()
    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == ledger["in_flight"] == 0
    assert ledger["captured"] == ledger["delivered"] > RANDOM_KILLS * PACE / 10
    indexes = sorted(udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES))
    assert indexes == list(range(len(indexes)))


def test_renewed_certificates_count_without_a_restart(rig: Rig, pair: tuple[Host, Host], keys: Path) -> None:
    """A new connection shows the collector's new certificate; the stream that stands goes on, and nothing is lost."""
    vm, peer = pair
    collector = rig.collect(peer, *flags(keys, "collector-1"), scheme="tls")
    agent = rig.agent(vm, *flags(keys, "vm"), to=f"tls://{COLLECTOR_NAME}")
    sender = vm.start(udp_send, "10.9.0.1", 9000, 3 * PACE, PACE, PAYLOAD_BYTES)
    shown = [vm.call(serial, keys)]
    pki.make("collector", "collector-1", (COLLECTOR_NAME,), str(keys))
    shown.append(vm.call(serial, keys))
    (keys / "collector-1.crt").write_text("half a file")
    shown.append(vm.call(serial, keys))
    sender.result(30)
    ledger, report = agent.stop(), collector.stop()

    assert shown[0] != shown[1] == shown[2]
    assert "the new certificates are refused, the old ones stay in force" in collector.log_text()
    assert_ledger_closes(ledger, report)
    assert ledger["lost_on_link"] == ledger["dropped_by_ring"] == 0


def serial(keys: Path) -> str:
    """The serial number of the certificate that the collector shows."""
    context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    context.load_cert_chain(keys / "vm.crt", keys / "vm.key")
    with (
        socket.create_connection((COLLECTOR_NAME, PORT), 5) as plain,
        context.wrap_socket(plain, server_hostname=COLLECTOR_NAME) as secure,
    ):
        return secure.getpeercert()["serialNumber"]


def test_everybody_else_is_refused_with_a_sentence_on_both_sides(
    rig: Rig, pair: tuple[Host, Host], keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong CA, expired, unlisted, no certificate, plain text, wrong name: both ends say why; the right one goes on."""
    vm, peer = pair
    other = tmp_path / "other"
    pki.make("init", "", (), str(other))
    pki.make("agent", "vm", (), str(other))
    (other / "ours.crt").write_bytes((keys / "ca.crt").read_bytes())
    pki.make("agent", "stranger", (), str(keys))
    with monkeypatch.context() as past:
        past.setattr(pki, "SKEW", timedelta(days=9))
        past.setattr(pki, "LEAF_DAYS", -1)
        pki.make("agent", "late", (), str(keys))
    config = tmp_path / "collect.toml"
    config.write_text('tls = {allow = ["vm", "late"]}\n')
    config.chmod(0o600)
    collector = rig.collect(peer, "-c", str(config), *flags(keys, "collector-1"), scheme="tls")
    right = rig.agent(vm, *flags(keys, "vm"), to=f"tls://{COLLECTOR_NAME}")
    vm.run(["ip", "address", "add", "10.9.0.77/24", "dev", "eth0"])
    peer.run(["ip", "address", "add", "10.9.0.7/24", "dev", "eth0"])
    mixed = [f"--tls-ca={other}/ours.crt", f"--tls-cert={other}/vm.crt", f"--tls-key={other}/vm.key"]
    wrong_name = rig.collect(
        peer,
        *flags(keys, "collector-1"),
        scheme="tls",
        listen="10.9.0.7",
        report="7.json",
        write=str(tmp_path / "seven"),
    )
    cases = {
        # name: (flags, url, what the agent says, what the collector says)
        "foreign": (mixed, "tls", "does not trust the authority of our certificate", "certificate is refused: "),
        "late": (flags(keys, "late"), "tls", "our certificate has expired", "refused: certificate has expired"),
        "stranger": (
            flags(keys, "stranger"),
            "tls",
            "agent stranger is not on the list of tls.allow",
            "agent stranger is not on the list of tls.allow",
        ),
        "plain": ([], "tcp", "it speaks no TLS, and this port takes tls:// alone", "it speaks no TLS"),
        "believer": (flags(other, "vm"), "tls", "its certificate is refused: ", "does not trust the authority"),
    }
    agents = {
        name: rig.agent(vm, *words, to=f"{scheme}://{COLLECTOR_NAME}", name=name, connected=False)
        for name, (words, scheme, _, _) in cases.items()
    }
    misled = rig.agent(vm, *flags(keys, "vm"), to="tls://10.9.0.7", name="misled", connected=False)
    vm.run(["timeout", "5", "openssl", "s_client", "-connect", f"{COLLECTOR_NAME}:{PORT}"], check=False, input="x\n")
    for name, (_, _, ours, theirs) in cases.items():
        wait_for(lambda name=name, ours=ours: ours in agents[name].log_text(), f"{name} to hear why")
        wait_for(lambda theirs=theirs: theirs in collector.log_text(), f"the collector to say why of {name}")
    wait_for(lambda: "its certificate is refused: IP address mismatch" in misled.log_text(), "the wrong name")
    wait_for(lambda: "it refuses our certificate" in wrong_name.log_text(), "the other side of the wrong name")
    assert "it shows no certificate" in collector.log_text()
    vm.call(udp_send, "10.9.0.1", 9000, 1000, PACE, PAYLOAD_BYTES)
    for agent in (*agents.values(), misled):
        ledger = agent.stop()
        assert (ledger["delivered"], ledger["in_flight"]) == (0, 0), ledger
        assert ledger["lost_on_link"] > 1000, "it captured all the while"
    right.stop()
    report = collector.stop()
    wrong_name.stop()

    assert list(report["agents"]) == ["vm"]
    assert report["refused"] >= len(cases)
    assert sorted(udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES)) == list(range(1000))
