"""What is fuzzed: every parser that meets bytes of others, as a function of bytes that may fail in its own way alone.

Seeds are sound inputs, made by our own encoders; what fuzzing found beyond them is kept in tests/corpus/TARGET.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from guestagent.capture.block import LAYOUT_VIRTIO, LAYOUTS, VIRTIO, MalformedBlock, walk
from guestagent.capture.bpf import ACCEPT_BYTES, compose
from guestagent.capture.pcapfilter import compile_filter
from guestagent.collector import foreign
from guestagent.collector.fidelity import Fidelity
from guestagent.collector.leases import Member
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.wiresize import WireSizeEncoder
from guestagent.collector.summary import flow_of
from guestagent.config import load_collect, load_run
from guestagent.encap.decoded import MalformedTunnel
from guestagent.encap.fit import Fitter
from guestagent.encap.segment import Segmenter
from guestagent.encap.tunnel import TUNNELS
from guestagent.endpoint import parse_endpoint
from guestagent.errors import ConfigError, GuestagentError
from guestagent.merge import merge
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind, ProtocolError
from guestagent.tapstream.hello import (
    decode_agent_hello,
    decode_collector_hello,
    decode_interface,
    encode_agent_hello,
    encode_interface,
)
from guestagent.tapstream.lease import decode_lease
from tests.fakes import agent_hello, interface, packets_frame, run_of_records
from tests.frames import ethernet, ipv4, tcp, udp

MOST_PIECE_BYTES = 700
SCHEMES = tuple(TUNNELS)


class Target(NamedTuple):
    """One parser: what it is given first, and how it may refuse."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    refusals: tuple[type[Exception], ...] = ()


def _json(data: bytes) -> dict[str, Any]:
    """As a frame's payload is read. Raises ProtocolError."""
    return frames.decode_json(frames.Frame(Kind.REPORT, 0, 0, 1, memoryview(data)))


def _each(refusal: type[Exception], *calls: Callable[[], object]) -> None:
    """All of them, whichever refuse."""
    for call in calls:
        try:
            call()
        except refusal:
            continue


# -- tapstream ---------------------------------------------------------------------------------------------------------


def _frames(data: bytes) -> None:
    """A stream in pieces; its first byte says whether the hello was accepted."""
    deframer = Deframer()
    if data[:1] and data[0] & 1:
        deframer.welcome()
    for at in range(1, len(data), MOST_PIECE_BYTES):
        deframer.feed(data[at : at + MOST_PIECE_BYTES])
        for frame in deframer.frames():
            if frame.kind == Kind.BLOCK:
                count, records = frames.decode_block(frame)
                list(walk(records, min(count, 1000)))
            else:
                frames.decode_json(frame)


def _frames_seeds() -> Iterator[bytes]:
    hello = frames.encode_json(Kind.HELLO, encode_agent_hello(agent_hello()))
    yield b"\0" + frames.PREFACE + hello + frames.encode(Kind.PING)
    report = frames.encode_json(Kind.REPORT, {"interfaces": {"0": {"captured": 1}}}, sequence=2)
    yield b"\1" + frames.PREFACE + packets_frame(1, [bytes(60), bytes(9)]) + report + frames.encode(Kind.PONG)


def _hello(data: bytes) -> None:
    value = _json(data)
    _each(
        ProtocolError,
        lambda: decode_agent_hello(value, LAYOUTS),
        lambda: decode_collector_hello(value),
        lambda: decode_interface(value.get("interface")),
    )


def _hello_seeds() -> Iterator[bytes]:
    yield json.dumps(encode_agent_hello(agent_hello(dedupe="vpc", acknowledged={"c": 7}))).encode()
    yield json.dumps({"collector_id": "c", "version": "1", "held_sequence": 3, "unsupported_gso": {"0": 2}}).encode()
    yield json.dumps(encode_interface(interface())).encode()


def _report(data: bytes) -> None:
    """REPORT, ACK and LEASE: what the other end says while it streams."""
    value = _json(data)
    fidelity, member = Fidelity(), Member(agent_hello(dedupe="vpc"))
    fidelity.reported(value, 1)
    fidelity.ended(2)
    member.reported(value, 0.0)
    json.dumps([fidelity.intervals, list(member.standing())])
    _each(ProtocolError, lambda: decode_lease(value))


def _report_seeds() -> Iterator[bytes]:
    limits = {"reduced": True, "probe": False, "slice": "headers", "sample": 0.5, "reason": "why", "since_ns": 5}
    yield json.dumps({"limits": limits, "interfaces": {"0": {"capped": 1}}, "clock": {"realtime_ns": 7}}).encode()
    yield json.dumps({"peers": ["10.0.0.1", "fd00::1"], "seconds": 5.0}).encode()


# -- records, frames, tunnels ------------------------------------------------------------------------------------------


def _records(data: bytes) -> None:
    """A run of records of a hostile agent, written both ways."""
    count, records = data[0] if data else 0, memoryview(data)[1:]
    for encoder in (pcapng.PacketEncoder(has_virtio=True), WireSizeEncoder(LAYOUT_VIRTIO, Segmenter())):
        written, _, _ = encoder.encode(records, count, 0)
        assert all(kind == pcapng.PACKET for kind, _, _ in reader.blocks(written))


def _records_seeds() -> Iterator[bytes]:
    frame = _super_packet()
    for fields in ({}, {"vlan": (5, 0x8100)}, {"virtio": VIRTIO.pack(1, 1, 54, 500, 34, 16)}, {"status": 0}):
        records, count = run_of_records([frame, frame[:70]], **fields)  # type: ignore[arg-type]
        yield bytes([count]) + records


def _super_packet() -> bytes:
    return ethernet(0x0800, ipv4(6, tcp(bytes(1200))))


def _segment(data: bytes) -> None:
    """A frame behind its virtio header, cut to the wire and to a narrower path."""
    head = data[: VIRTIO.size].ljust(VIRTIO.size, b"\0")
    frame, virtio = memoryview(data)[VIRTIO.size :], VIRTIO.unpack(head)
    for policy in ("split", "truncate", "drop"):
        for room in (100, 1450):
            for first, rest, original in Fitter(room, policy).frames(frame, virtio, len(frame)):
                assert 0 <= len(first) + len(rest) <= max(original, room)
    flow_of(bytes(frame))


def _segment_seeds() -> Iterator[bytes]:
    yield VIRTIO.pack(1, 1, 54, 500, 34, 16) + _super_packet()
    yield VIRTIO.pack(1, 5, 42, 500, 34, 6) + ethernet(0x0800, ipv4(17, udp(bytes(1200))))
    yield bytes(VIRTIO.size) + _super_packet()


def _tunnels(data: bytes) -> None:
    scheme = SCHEMES[data[0] % len(SCHEMES)] if data else SCHEMES[0]
    copy = foreign.read(scheme, memoryview(data)[1:], "10.0.0.1")
    foreign.sender_name(scheme, copy.source, copy.key)
    flow_of(bytes(copy.frame))


def _tunnels_seeds() -> Iterator[bytes]:
    frame = ethernet(0x0800, ipv4(17, udp(bytes(40))))
    for number, scheme in enumerate(SCHEMES):
        tunnel = TUNNELS[scheme]
        header = tunnel.header(7, 1) if tunnel.is_sequenced else tunnel.header(7)
        yield bytes([number]) + header + frame


# -- files -------------------------------------------------------------------------------------------------------------


def _pcapng(data: bytes) -> None:
    """Our own files after whatever happened to a disk: recovery, reports, summary, merge."""
    reader.is_ours(data)
    for from_last_mark in (False, True):
        assert reader.recover(memoryview(data), from_last_mark=from_last_mark).whole_bytes <= len(data)
    json.dumps([value for _, value in reader.reports(data)])
    for _, _, _, frame in reader.packets(data):
        flow_of(bytes(frame))
    with tempfile.TemporaryDirectory(prefix="guestagent-fuzz-") as folder:
        path = Path(folder) / "in.pcapng"
        path.write_bytes(data)
        merge([str(path)], f"{folder}/out.pcapng")


def _pcapng_seeds() -> Iterator[bytes]:
    run_id, facts = bytes(range(16)), interface()
    data = pcapng.section("agent vm", "guestagent 1", "Linux")
    data += (description := pcapng.interface(facts, "vm", "host", run_id))
    records, count = run_of_records([bytes(60), bytes(61)])
    data += pcapng.PacketEncoder(has_virtio=True).encode(memoryview(records), count, 0)[0]
    data += pcapng.report(run_id, {"interfaces": {}})
    data += pcapng.mark(run_id, 1, len(data), 1, [(0, pcapng.tag_of(description), 0, 0, 2)])
    yield data + pcapng.statistics(0, 5, {"captured": 2}, 2, "done")


def _config(data: bytes) -> None:
    """TOML of an operator, for both verbs."""
    with tempfile.NamedTemporaryFile(prefix="guestagent-fuzz-") as file:
        file.write(data)
        file.flush()
        _each(ConfigError, lambda: asdict(load_run(file.name, {})), lambda: asdict(load_collect(file.name, {})))


def _config_seeds() -> Iterator[bytes]:
    yield (
        b'interface = ["eth0"]\nto = ["tls://a", "tls://b:1"]\nmode = "spread"\nfilter = "udp"\nslice = 128\n'
        b'keep = 0.5\nseed = 7\nring = "8MiB"\ncpu = 5.0\nrate = "100mbit"\nyield = "off"\n'
        b'shed = ["heavy"]\nmetrics = "unix:/x"\n'
        b'[tls]\nca = "a"\ncert = "b"\nkey = "c"\n'
    )
    yield b'listen = "tcp://127.0.0.1"\nrelay = "vxlan://10.0.0.9?vni=1"\nworkers = 2\n[keys]\n"vm/eth0 in" = 5\n'
    yield b'to = ["vxlan://10.0.0.9?vni=1", "geneve://10.0.0.8?vni=2"]\nmode = "replicate"\n[keys]\nin = 5\n'
    yield b'to = ["tcp://10.0.0.9", "tls://c1:4795"]\nmode = "replicate"\ndedupe = "vpc-1"\n'


def _endpoint(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    _each(
        ConfigError,
        lambda: str(parse_endpoint(text, "to")),
        lambda: str(parse_endpoint(text, "listen", passive=True)),
    )


def _endpoint_seeds() -> Iterator[bytes]:
    for text in ("tls://[fe80::1%eth0]:4795", "tcp://h", "vxlan://h:1?vni=16777215&check=22", "gre://h?key=1", "dir:x"):
        yield text.encode()


def _filter(data: bytes) -> None:
    """An expression that an operator typed, compiled by libpcap and set among our stages."""
    program = compile_filter(data.decode("utf-8", "replace"), "lo")
    for slice_ in ("full", "headers", 64):
        composed = compose(user_filter=program, slice_=slice_, sample=0.5, seed=1)
        assert all(jt < len(composed) - at and jf < len(composed) - at for at, (_, jt, jf, _) in enumerate(composed))
        assert all(k <= ACCEPT_BYTES for code, _, _, k in composed if code == 0x06)


def _filter_seeds() -> Iterator[bytes]:
    for text in ("tcp port 80 or vlan 5 and ip6", "not (host 10.0.0.1 and udp[4:2] > 9)", "ether proto 0x88cc", ""):
        yield text.encode()


TARGETS = {
    "frames": Target(_frames, _frames_seeds, (ProtocolError, MalformedBlock)),
    "hello": Target(_hello, _hello_seeds, (ProtocolError,)),
    "report": Target(_report, _report_seeds, (ProtocolError,)),
    "records": Target(_records, _records_seeds, (MalformedBlock,)),
    "segment": Target(_segment, _segment_seeds),
    "tunnels": Target(_tunnels, _tunnels_seeds, (MalformedTunnel,)),
    "pcapng": Target(_pcapng, _pcapng_seeds, (GuestagentError,)),
    "config": Target(_config, _config_seeds),
    "endpoint": Target(_endpoint, _endpoint_seeds),
    "filter": Target(_filter, _filter_seeds, (GuestagentError,)),
}
