"""A TAP device of the collector, as an IDS meets it: real tools on it report the flows that were made."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guestagent.lab.hosts import Host
from guestagent.lab.traffic import BULK_PORT, HTTP_PORT, fetch_pages, send_bulk, serve_bulk, serve_http
from tests.lab.rig import COLLECTOR, Process, Rig, wait_for
from tests.lab.wire import MARK, inject_all, is_watched, marked_frames, tshark

FRAMES = marked_frames(400, 1514)
ONLY_MARKED = ("--filter", f"ether src {MARK.hex(':')}")


def tap_of(rig: Rig, host: Host, *arguments: str, name: str = "tap0") -> Process:
    """A collector with a TAP device and no files, or what the arguments say."""
    flags = ["--listen", f"tcp://{COLLECTOR}", "--tap", name, *arguments]
    process = rig.start(host, "collect", *flags, report="collector.json")
    wait_for(lambda: "listens on" in process.log_text() or process.process.poll() is not None, "the collector")
    return process


def device_facts(name: str) -> dict[str, Any]:
    """What the kernel says of a device, {} where it is not there."""
    place = Path("/sys/class/net") / name
    if not place.exists():
        return {}
    ipv6 = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    return {
        "flags": int((place / "flags").read_text(), 16),
        "mtu": int((place / "mtu").read_text()),
        "ipv6_off": ipv6.read_text().strip() == "1" if ipv6.exists() else True,
    }


def test_every_frame_is_on_the_device_and_in_the_file(rig: Rig, pair: tuple[Host, Host], tmp_path: Path) -> None:
    """With --write beside it, device and capture hold the same frames, byte for byte, tagged ones too."""
    vm, peer = pair
    tagged = [frame[:12] + bytes.fromhex("81000064") + frame[12:] for frame in FRAMES if len(frame) < 1500][:50]
    collector = tap_of(rig, peer, "--write", str(rig.captures))
    agent = rig.agent(vm, *ONLY_MARKED)
    with tcpdump(peer, tmp_path):
        vm.call(inject_all, "eth0", FRAMES + tagged)
        agent.stop()
    report = collector.stop()
    seen = tshark(tmp_path / "seen.pcap", "-T", "fields", "-e", "frame.len", "-e", "vlan.id")
    assert sum("100" in line.split()[1:] for line in seen) == len(tagged)
    assert Counter(frames_in(tmp_path / "seen.pcap")) == Counter(FRAMES + tagged)
    assert Counter(frame.data for frame in rig.frames()) == Counter(FRAMES + tagged)
    assert report["tap"]["frames"] == report["agents"]["vm"]["written"] == len(FRAMES) + len(tagged)
    assert not report["tap"]["lost"]


@contextmanager
def tcpdump(host: Host, place: Path) -> Iterator[None]:
    """The tool on tap0 into `seen.pcap`; it hands frames over with their VLAN tags, as they were."""
    log = place / "tcpdump.log"
    words = ["tcpdump", "-i", "tap0", "-w", str(place / "seen.pcap"), "-U", "-Z", "root", "-B", "65536"]
    with log.open("wb") as stderr:
        tool = host.popen([*words, "--immediate-mode"], stderr=stderr)
        wait_for(lambda: b"listening" in log.read_bytes(), "tcpdump to listen")
        yield
        size = -1
        while size != (size := (place / "seen.pcap").stat().st_size):
            time.sleep(0.3)
        tool.send_signal(signal.SIGINT)
        tool.wait(5)


def frames_in(path: Path) -> Iterator[bytes]:
    """Every frame of a pcap file."""
    data, at = path.read_bytes(), 24
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "little")
        yield data[at + 16 : at + 16 + size]
        at += 16 + size


def test_the_device_is_quiet_and_goes(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Up, no ARP, no IPv6, jumbo MTU; the host answers nothing that it sees there; gone after the end and a kill."""
    _, peer = pair
    for end in (signal.SIGTERM, signal.SIGKILL):
        collector = tap_of(rig, peer)
        facts = peer.call(device_facts, "tap0")
        collector.process.send_signal(end)
        collector.process.wait(5)

        assert facts["flags"] & 0x81 == 0x81
        assert facts["mtu"] >= 9001
        assert facts["ipv6_off"]
        assert not peer.call(device_facts, "tap0")


def test_tshark_on_the_device_reports_the_flows(rig: Rig, pair: tuple[Host, Host], tmp_path: Path) -> None:
    """HTTP and a bulk transfer through offloading cards: wire-size frames, good checksums, no gap in the streams."""
    vm, peer = pair
    vm.start(serve_http)
    vm.start(serve_bulk)
    vm.wait_for_port(BULK_PORT)
    vm.wait_for_port(HTTP_PORT)
    collector = tap_of(rig, peer)
    agent = rig.agent(vm)
    file = tmp_path / "seen.pcap"
    with tcpdump(peer, tmp_path):
        peer.call(fetch_pages, "10.9.0.2", 5)
        peer.call(send_bulk, "10.9.0.2", 3_000_000)
        agent.stop()
    report = collector.stop()
    checks = ("-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")
    lengths = [int(one) for one in tshark(file, "-T", "fields", "-e", "frame.len")]

    assert len(tshark(file, "-Y", 'http.request.method == "GET"')) == 5
    assert max(lengths) <= 1514
    assert sum(lengths) > 3_000_000
    assert report["tap"]["super_packets"] > 0
    assert not tshark(file, *checks, "-Y", "tcp.checksum.status == Bad or ip.checksum.status == Bad")
    assert (
        gaps(
            tshark(
                file,
                "-Y",
                f"tcp.dstport == {BULK_PORT} && tcp.len > 0",
                "-T",
                "fields",
                "-e",
                "tcp.seq",
                "-e",
                "tcp.len",
            )
        )
        == []
    )


def gaps(rows: list[str]) -> list[int]:
    """Where a stream's bytes are missing, of (relative sequence, length) rows in any order: two CPUs fill a ring."""
    found, expected = [], 1
    for start, size in sorted(tuple(map(int, row.split())) for row in rows):
        if start > expected:
            found.append(expected)
        expected = max(expected, start + size)
    assert expected > 3_000_000
    return found


def test_a_reader_that_stands_still_costs_its_own_drops(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A packet socket that nobody reads loses frames in its own counter; the collector takes and writes them all."""
    vm, peer = pair
    collector = tap_of(rig, peer, "--write", str(rig.captures))
    agent = rig.agent(vm, *ONLY_MARKED)
    read_end, write_end = os.pipe()
    sleeper = peer.start(stand_still, "tap0", read_end, write_end)
    wait_for(lambda: peer.call(is_watched), "the reader")
    vm.call(inject_all, "eth0", FRAMES * 10)
    ledger = agent.stop()
    report = collector.stop()
    os.close(write_end)
    os.close(read_end)
    kept, dropped = sleeper.result()

    assert ledger["captured"] == ledger["delivered"] == 10 * len(FRAMES)
    assert report["tap"]["frames"] == report["agents"]["vm"]["written"] == 10 * len(FRAMES)
    assert dropped > 0
    assert kept + dropped == 10 * len(FRAMES)


def stand_still(ifname: str, read_end: int, write_end: int) -> tuple[int, int]:
    """Open a packet socket with little room, read nothing until the pipe is closed: (kept, dropped) by the kernel."""
    os.close(write_end)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        tap.bind((ifname, 3))
        os.read(read_end, 1)
        statistics = tap.getsockopt(263, 6, 8)  # SOL_PACKET, PACKET_STATISTICS
    came, dropped = int.from_bytes(statistics[:4], "little"), int.from_bytes(statistics[4:], "little")
    return came - dropped, dropped


def test_a_device_that_is_down_or_gone_is_counted(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Someone sets it down, then deletes it: frames are lost by that name, the file goes on."""
    vm, peer = pair
    collector = tap_of(rig, peer, "--write", str(rig.captures))
    agent = rig.agent(vm, *ONLY_MARKED)
    for number, command in enumerate((["set", "tap0", "down"], ["del", "tap0"]), start=1):
        peer.run(["ip", "link", *command])
        vm.call(inject_all, "eth0", FRAMES)
        wait_for(
            lambda most=number: collector.status()["agents"]["vm"]["received"] == most * len(FRAMES), "frames to come"
        )
    agent.stop()
    report = collector.stop()

    assert report["tap"]["lost"] == {"device_is_down": len(FRAMES), "device_was_removed": len(FRAMES)}
    assert report["agents"]["vm"]["written"] == 2 * len(FRAMES)


def test_each_agent_has_its_device(rig: Rig, pair: tuple[Host, Host]) -> None:
    """With %a a device comes with its agent and goes with it; a name that is too long becomes a hash."""
    vm, peer = pair
    collector = tap_of(rig, peer, name="t-%a")
    agent = rig.agent(vm, *ONLY_MARKED, name="web1")
    other = rig.agent(vm, *ONLY_MARKED, name="i-0123456789abcdef0")
    names = [one["device"] for one in collector.status()["tap"]["devices"]]
    there = [bool(peer.call(device_facts, name)) for name in names]
    vm.call(inject_all, "eth0", FRAMES)
    agent.stop()
    wait_for(lambda: not peer.call(device_facts, "t-web1"), "the device to go")
    other.stop()
    report = collector.stop()

    assert names[0] == "t-web1"
    assert len(names[1]) == len("t-12345678")
    assert there == [True, True]
    assert report["tap"]["frames"] == 2 * len(FRAMES)


def test_refusals(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A name that is taken, or that can't be one, is one sentence and exit code 2."""
    _, peer = pair
    for name, word in (
        ("eth0", "eth0"),
        ("a" * 16, "device name"),
        ("much-too-long-%a", "%a"),
        ("../x", "device name"),
    ):
        collector = tap_of(rig, peer, name=name)
        collector.ended(code=2)
        said = collector.log_text().strip().splitlines()

        assert len(said) == 1
        assert word in said[0]
