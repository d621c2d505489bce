"""The lab's traffic is real, whole and as much as was asked for."""

import socket
from collections.abc import Callable

import pytest

from guestagent.errors import RunError
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import Received, Sent, ethernet, inject, udp_payload, udp_send, udp_send_segmented, udp_sink
from guestagent.lab.traffic import dns_query, fetch_pages, mixed, resolve_names, send_bulk, serve_all, serve_bulk

PEERS = ("10.9.0.1", "fd00:9::1")
Pair = tuple[Host, Host]


@pytest.fixture
def client(pair: Pair) -> Host:
    """A host whose peer serves everything."""
    agent, peer = pair
    peer.start(serve_all)
    for port in (80, 53, 5001):
        peer.wait_for_port(port)
    return agent


@pytest.mark.parametrize("peer", PEERS)
def test_pages_and_names_arrive(client: Host, peer: str) -> None:
    """Pages of every size and answers for every name come back as the client expects them."""
    assert client.call(fetch_pages, peer, 3, 0) == 0
    assert client.call(fetch_pages, peer, 20, 100_000) == 2_000_000
    assert client.call(resolve_names, peer, 20) == 40


def test_names_as_others_read_them() -> None:
    """A query is what RFC 1035 prescribes, byte by byte."""
    assert dns_query(7, "a.bc", 28).hex() == "000701000001000000000000" + "016102626300" + "001c0001"


@pytest.mark.parametrize("peer", PEERS)
def test_bulk_is_whole(pair: Pair, peer: str) -> None:
    """Sender and receiver of a stream name the same size and SHA-256."""
    agent, server = pair
    receiver = server.start(serve_bulk, streams=1)
    server.wait_for_port(5001)
    digest = agent.call(send_bulk, peer, 20_000_001)
    assert receiver.result() == [(20_000_001, digest)]


def test_mixed_does_all_kinds(client: Host) -> None:
    """Within its time the mix has fetched, resolved and streamed over both families."""
    done = client.call(mixed, 0.5)
    assert min(done.values()) > 0
    assert done["bulk_streams"] >= 2


def test_a_client_without_server_says_so(pair: Pair) -> None:
    """Where nobody serves, a client raises instead of counting nothing."""
    with pytest.raises(RunError, match="ConnectionRefusedError"):
        pair[0].call(fetch_pages, PEERS[0])


def test_payloads_are_known_and_differ() -> None:
    """A payload starts with its index, has its size, and is shared by no other of the first thousand indices."""
    payloads = [udp_payload(index, 512) for index in range(1000)]
    assert [int.from_bytes(payload[:8], "big") for payload in payloads] == list(range(1000))
    assert {len(payload) for payload in payloads} == {512}
    assert len({payload[8:] for payload in payloads}) == 1000
    assert [len(udp_payload(5, size)) for size in (0, 3, 8, 65_536)] == [0, 3, 8, 65_536]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("send, pace", [(udp_send, 20_000), (udp_send, None), (udp_send_segmented, 20_000)])
def test_every_datagram_arrives_once(pair: Pair, peer: str, send: Callable[..., Sent], pace: float | None) -> None:
    """What was sent is what the sink got: each index once, none with other bytes."""
    agent, server = pair
    sink = server.start(udp_sink, 9000, 5000)
    server.wait_for_port(9000)
    sent = agent.call(send, peer, 9000, 5000, pace, 700)
    assert sent[:2] == (5000, 3_500_000)
    assert sink.result() == Received(packets=5000, bytes=3_500_000, distinct=5000, corrupt=0)


def test_pace_is_kept(pair: Pair) -> None:
    """A paced sender takes the time that count and pace ask for, and is never early."""
    agent, peer = pair
    peer.start(udp_sink)
    peer.wait_for_port(9000)
    sent = agent.call(udp_send, PEERS[0], count=10_000, packets_per_second=20_000)
    assert 0.499 <= sent.seconds < 2.0  # late only where the machine is busy


def test_sender_survives_a_closed_port(pair: Pair) -> None:
    """ICMP refusals cost a sender no datagram, and its source port is the one that was asked for."""
    agent, peer = pair
    before = peer.counters().rx_packets
    assert agent.call(udp_send, PEERS[0], count=2000, source_port=4444).packets == 2000
    assert peer.counters().rx_packets - before >= 2000


def test_frames_of_any_shape_arrive(lab: Lab) -> None:
    """Runts, tagged, double-tagged, jumbo and ARP frames reach the other end's wire."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, mtu=9000)
    frames = [
        ethernet(b"", 0x88B5),
        ethernet(b"tagged", 0x88B5, vlans=[42]),
        ethernet(b"twice", 0x88B5, vlans=[0x88A8_0007, 42]),
        ethernet(bytes(9000), 0x88B5),
        ethernet(bytes(28), 0x0806),
    ]
    assert frames[2][12:22].hex() == "88a80007" + "8100002a" + "88b5"
    seen = b.start(_catch, len(frames))
    while " 0003 " not in b.run(["cat", "/proc/net/packet"]).stdout:  # until the catcher listens
        assert seen.poll() is None
    assert a.call(inject, "eth0", frames, 1000).packets == len(frames)
    # The kernel takes the outer tag off a frame that it receives, and keeps it beside the packet.
    assert seen.result() == [frames[0], *(frame[:12] + frame[16:] for frame in frames[1:3]), *frames[3:]]


def _catch(count: int) -> list[bytes]:
    """The next frames from our injector's address."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as raw:
        raw.settimeout(5)
        caught: list[bytes] = []
        while len(caught) < count:
            frame = raw.recv(65_536)
            if frame[6:12].hex() == "020000000001":
                caught.append(frame)
        return caught
