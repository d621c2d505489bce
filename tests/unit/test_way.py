"""The way to one sensor: what waits, what leaves, what a narrower path makes of it, and what is lost by which name."""

import errno
from math import inf

import pytest

from guestagent.encap.segment import NO_OFFLOAD
from guestagent.encap.tunnel import TUNNELS
from tests.frames import IPV4, TCP, UDP, ethernet, ipv4, tcp, udp
from tests.ways import FRAMES, FakeSender, add, way_of


def test_a_full_socket_is_waited_for() -> None:
    """What the kernel did not take stays, in order, and nothing is lost."""
    sender = FakeSender(1472, [(2, errno.EAGAIN), (0, errno.ENOBUFS)])
    way = way_of(sender)
    add(way, *FRAMES)
    blocked = []
    while not way.is_empty:
        way.flush()
        blocked.append(way.is_blocked)

    assert blocked == [True, True, False]
    assert [one[8:] for one in sender.sent] == FRAMES
    assert (way.records, way.lost_records, way.frames) == (5, 0, 5)


def test_an_allowance_lets_out_what_it_has_room_for() -> None:
    """Outer headers count, a datagram too large for what is there takes a debt, the rest waits."""
    way = way_of(FakeSender(1472))
    add(way, *FRAMES)
    each = len(FRAMES[0]) + 8 + 42

    assert [way.flush(allowed) for allowed in (2 * each + 1, 1, inf, inf)] == [2 * each, each, 2 * each, 0]


def test_a_narrower_path_splits_what_waits() -> None:
    """After EMSGSIZE what no longer fits is split by the policy, once more, and all bytes leave."""
    payload = bytes(range(250)) * 5
    frame = ethernet(IPV4, ipv4(TCP, tcp(payload)))
    sender = FakeSender(1472, [(1, errno.EMSGSIZE)])
    way = way_of(sender)
    add(way, FRAMES[0], frame, FRAMES[1])
    way.flush()

    assert max(map(len, sender.sent)) <= 1000
    assert [sender.sent[at][8:] for at in (0, -1)] == FRAMES[:2]
    assert b"".join(one[8 + 54 :] for one in sender.sent[1:-1]) == payload
    assert (way.records, way.lost_records) == (3, 0)


@pytest.mark.parametrize("policy, lost", [("truncate", 0), ("drop", 1)])
def test_other_policies_of_a_narrower_path(policy: str, lost: int) -> None:
    """Truncated it leaves, dropped it is a lost record of that name."""
    frame = ethernet(IPV4, ipv4(UDP, udp(bytes(1300))))
    sender = FakeSender(1472, [(0, errno.EMSGSIZE)])
    way = way_of(sender, policy)
    add(way, frame, FRAMES[0])
    way.flush()

    assert way.lost_records == lost == way.lost_frames["oversize"]
    assert way.fitter.truncated == 1 - lost
    assert len(sender.sent) == 2 - lost


def test_without_a_way_the_lane_is_lost_by_reason() -> None:
    """Records are counted once, however many frames they had; other lanes go on."""
    sender = FakeSender(1472, [(1, errno.ENETUNREACH)])
    way = way_of(sender)
    add(way, *FRAMES)
    add(way, FRAMES[0], lane=4)
    way.flush()

    assert dict(way.lost_frames) == {"network_is_unreachable": 4}
    assert (way.records, way.lost_records, len(sender.sent)) == (2, 4, 2)


def test_erspan_numbers_each_frame() -> None:
    """Sequence numbers count frames, and a frame that was cut short says so."""
    sender = FakeSender(1480)
    way = way_of(sender, scheme="erspan")
    add(way, FRAMES[0])
    way.add((memoryview(FRAMES[1])[:60], NO_OFFLOAD, 142, None), way.lanes[0], 7)
    way.flush()
    found = [TUNNELS["erspan"].decode(memoryview(one)) for one in sender.sent]

    assert [one.sequence for one in found] == [1, 2]
    assert [one.is_truncated for one in found] == [False, True]


def test_a_record_that_is_dropped_leaves_nothing_waiting() -> None:
    """A frame too long for the path is lost at once: the way is as empty as before, and its lane is there once."""
    way = way_of(FakeSender(1472), "drop")
    add(way, ethernet(IPV4, ipv4(UDP, udp(bytes(1500)))))
    assert way.is_empty
    assert way.lost_records == 1
    add(way, FRAMES[0])
    way.keep(200)
    assert way.lost_records == 1
