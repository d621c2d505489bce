"""The contract of capture.source.Source, held by both engines: same frames, same records, same filters."""

import time

from guestagent.capture.assembler import assemble
from guestagent.capture.block import PACKET_HOST, PACKET_OUTGOING, STATUS_CSUM_NOT_READY
from guestagent.capture.bpf import REJECT_ALL, compose
from guestagent.capture.interfaces import links
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import UDP_PORT, ethernet, inject, udp_payload, udp_send_segmented
from tests.lab.engines import (
    LOCAL_EXPERIMENTAL,
    LOCAL_EXPERIMENTAL_2,
    OTHER_MAC,
    SERVICE_VLAN,
    VLAN,
    capturing,
    numbered,
    of_type,
)


def test_every_frame_is_there_byte_exact(kind: str, pair: tuple[Host, Host]) -> None:
    """Frames of all sizes to us, to all and to another are seen in their order, each with its direction."""
    agent, peer = pair
    mac = agent.call(links)["eth0"].mac
    frames = [
        ethernet(udp_payload(size, size), LOCAL_EXPERIMENTAL, destination)
        for size in (0, 1, 45, 46, 47, 255, 256, 1499, 1500)
        for destination in (mac, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", OTHER_MAC)
    ]
    with capturing(agent, kind) as tap:
        peer.call(inject, "eth0", frames)
        inbound = tap.collect(len(frames))
        agent.call(inject, "eth0", frames)
        outbound = tap.collect(len(frames))

    assert [(one.frame, one.original_bytes) for one in inbound] == [(frame, len(frame)) for frame in frames]
    assert [one.frame for one in outbound] == frames
    assert [one.direction for one in inbound] == [PACKET_HOST, 1, 2, 3] * 9
    assert {one.direction for one in outbound} == {PACKET_OUTGOING}
    assert not any(one.vlan for one in inbound + outbound)


def test_vlan_tags_stand_in_the_record(kind: str, pair: tuple[Host, Host]) -> None:
    """Of an incoming frame the outermost tag is in the record with its TPID, the inner ones stay in the frame."""
    agent, peer = pair
    payload = udp_payload(1, 100)
    tags = [[], [5], [0], [0xEFFF], [SERVICE_VLAN << 16 | 7], [SERVICE_VLAN << 16 | 7, 8]]
    with capturing(agent, kind, compose()) as tap:
        peer.call(inject, "eth0", [ethernet(payload, LOCAL_EXPERIMENTAL, vlans=vlans) for vlans in tags])
        seen = [one for one in tap.collect() if one.frame.endswith(payload)]

    plain, inner = ethernet(payload, LOCAL_EXPERIMENTAL), ethernet(payload, LOCAL_EXPERIMENTAL, vlans=[8])
    expected = [None, (VLAN, 5), (VLAN, 0), (VLAN, 0xEFFF), (SERVICE_VLAN, 7), (SERVICE_VLAN, 7)]
    assert [(one.frame, one.vlan) for one in seen] == list(zip([plain] * 5 + [inner], expected, strict=True))
    assert all(one.original_bytes == len(one.frame) for one in seen)


def test_a_slice_keeps_the_original_length(kind: str, pair: tuple[Host, Host]) -> None:
    """A filter that keeps 64 bytes leaves the first 64 and the length that the frame had; a shorter frame is whole."""
    agent, peer = pair
    frames = [*numbered(3, 1000), *numbered(3, 20)]
    with capturing(agent, kind, of_type(LOCAL_EXPERIMENTAL, 64)) as tap:
        peer.call(inject, "eth0", frames)
        seen = tap.collect(len(frames))

    assert [(one.frame, one.original_bytes) for one in seen] == [(frame[:64], len(frame)) for frame in frames]


def test_super_packets_are_whole(kind: str, pair: tuple[Host, Host]) -> None:
    """A UDP_SEGMENT train of ours is one record of 60 KB, marked as one whose checksum is not yet made."""
    agent, _ = pair
    udp = assemble("ldh [12]\n jne #0x800, no\n ldb [23]\n jne #17, no\n ret #262144\n no: ret #0")
    with capturing(agent, kind, compose(user_filter=udp)) as tap:
        agent.call(udp_send_segmented, "10.9.0.1", count=60, payload_bytes=1000)
        seen = tap.collect()

    sent = b"".join(udp_payload(i, 1000) for i in range(60))
    assert [(one.frame[42:], one.original_bytes) for one in seen] == [(sent, 42 + len(sent))]
    assert int.from_bytes(seen[0].frame[36:38], "big") == UDP_PORT
    assert seen[0].status & STATUS_CSUM_NOT_READY


def test_nothing_leaks_past_the_first_filter(kind: str, pair: tuple[Host, Host]) -> None:
    """Opened amid traffic that its filter refuses, a capture neither sees nor counts one frame of it."""
    agent, peer = pair
    flood = peer.start(inject, "eth0", numbered(40_000), 20_000)
    time.sleep(0.1)
    with capturing(agent, kind, REJECT_ALL) as tap:
        assert not flood.join(0), "the flood ended too early to prove anything"
        assert tap.collect() == []
        assert tap.statistics().captured == 0


def test_reject_all_stops_it(kind: str, pair: tuple[Host, Host]) -> None:
    """What came before reject-all is still handed over, what comes after is not, and the books are closed."""
    agent, peer = pair
    frames = numbered(20)
    with capturing(agent, kind) as tap:
        peer.call(inject, "eth0", frames[:10])
        tap.attach(REJECT_ALL)
        peer.call(inject, "eth0", frames[10:])
        seen = tap.collect()
        statistics = tap.statistics()

    assert [one.frame for one in seen] == frames[:10]
    assert (statistics.captured, statistics.dropped) == (10, 0)


def test_a_filter_is_swapped_live(kind: str, pair: tuple[Host, Host]) -> None:
    """While two kinds of frames keep coming, each is seen exactly while its filter is on."""
    agent, peer = pair
    one, other = numbered(500), numbered(500, ethertype=LOCAL_EXPERIMENTAL_2)
    both = [frame for couple in zip(one, other, strict=True) for frame in couple]
    with capturing(agent, kind) as tap:
        traffic = peer.start(inject, "eth0", both, 1000)
        before = tap.collect(50)
        tap.attach(of_type(LOCAL_EXPERIMENTAL_2))
        after = tap.collect(quiet=1.0)
        traffic.result()

    kinds = [int.from_bytes(one.frame[12:14], "big") for one in before + after]
    assert kinds == sorted(kinds)
    assert set(kinds) == {LOCAL_EXPERIMENTAL, LOCAL_EXPERIMENTAL_2}


def test_a_lost_interface_is_reported_and_comes_back(kind: str, pair: tuple[Host, Host]) -> None:
    """The interface that went down is an error told once; up again, and made anew, it is captured again."""
    agent, peer = pair
    with capturing(agent, kind) as tap:
        agent.run(["ip", "link", "set", "eth0", "down"])
        tap.collect()
        assert [tap.pending_error(), tap.pending_error()] == ["Network is down", ""]
        agent.run(["ip", "link", "set", "eth0", "up"])
        peer.call(inject, "eth0", numbered(5))
        assert len(tap.collect(5)) == 5

        agent.run(["ip", "link", "del", "eth0"])
        Lab.link(None, agent, peer)  # type: ignore[arg-type]
        tap.bind(agent.call(links)["eth0"].index)
        tap.collect()
        peer.call(inject, "eth0", numbered(5))
        assert len(tap.collect(5)) == 5
