"""The lab's bad wire: each kind of weather does what it says, in the share that it says, and the same for each seed."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from tests.lab.faults.relay import MOST_HELD_BYTES, Weather, Wire, tcp_segment

FRAMES = 4000
UDP_FRAME = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(dst="10.0.0.1") / UDP() / (b"x" * 1400))


def segment(payload: bytes = b"hello", flags: str = "PA", sport: int = 4000) -> bytes:
    """A TCP frame as a kernel would send it."""
    tcp = TCP(sport=sport, dport=4795, seq=1000, ack=5000, flags=flags)
    return bytes(
        Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(src="10.0.0.2", dst="10.0.0.1") / tcp / payload
    )


def carried(weather: Weather, frames: list[bytes], seed: int = 1, side: int = 0) -> list[tuple[int, bytes]]:
    """What leaves once all have passed, a millisecond apart."""
    wire = Wire(seed)
    wire.change(weather)
    left = []
    for at, frame in enumerate(frames):
        wire.take(side, frame, at / 1000)
        left += wire.due(at / 1000)
    return left + wire.due(1e9)


def numbered(count: int = FRAMES) -> list[bytes]:
    """Frames that differ."""
    return [UDP_FRAME[:100] + at.to_bytes(4, "big") + UDP_FRAME[104:] for at in range(count)]


@pytest.mark.parametrize("side", [0, 1])
def test_a_fair_wire_carries_all_in_order(side: int) -> None:
    """Without weather every frame leaves on the other side, unchanged and in order."""
    assert carried(Weather(), numbered(100), side=side) == [(1 - side, frame) for frame in numbered(100)]


def test_loss_and_duplicates_come_in_their_share() -> None:
    """Of 4,000 frames the share that was asked for is lost, or comes twice, within a tenth."""
    frames = numbered()
    lost = carried(Weather(loss=0.3), frames)
    twice = carried(Weather(duplicate=0.3), frames)

    assert 0.27 < 1 - len(lost) / FRAMES < 0.33
    assert 0.27 < len(twice) / FRAMES - 1 < 0.33
    assert {frame for _, frame in twice} == set(frames)
    assert not carried(Weather(loss=1.0), frames)


def test_a_seed_decides() -> None:
    """The same seed loses the same frames, another one others."""
    weather, frames = Weather(loss=0.5), numbered(100)

    assert carried(weather, frames, seed=7) == carried(weather, frames, seed=7)
    assert carried(weather, frames, seed=7) != carried(weather, frames, seed=8)


def test_corruption_turns_one_bit_behind_the_addresses() -> None:
    """A corrupt frame differs in one bit, and reaches the right host."""
    for (_, frame), was in zip(carried(Weather(corrupt=1.0), numbered(200)), numbered(200), strict=True):
        turned = int.from_bytes(frame, "big") ^ int.from_bytes(was, "big")
        assert (turned.bit_count(), frame[:14]) == (1, was[:14])


def test_reordered_frames_come_late_and_none_is_lost() -> None:
    """Reordering lets later frames pass, and delivers each once."""
    frames = numbered(1000)
    left = [frame for _, frame in carried(Weather(reorder=0.2, reorder_seconds=0.0035), frames)]

    assert left != frames
    assert sorted(left) == frames
    assert max(abs(frames.index(frame) - at) for at, frame in enumerate(left)) <= 4


def test_a_delay_holds_each_frame_so_long() -> None:
    """Nothing leaves before its time, all of it then; `next_due` says when."""
    wire = Wire(1)
    wire.change(Weather(delay_seconds=0.5))
    wire.take(0, UDP_FRAME, 10.0)

    assert wire.next_due() == 10.5
    assert wire.due(10.49) == []
    assert wire.due(10.5) == [(1, UDP_FRAME)]
    assert wire.next_due() is None


def test_what_the_wire_holds_is_bounded() -> None:
    """A delay at full speed fills the queue and no more."""
    wire = Wire(1)
    wire.change(Weather(delay_seconds=1e6))
    for _ in range(MOST_HELD_BYTES // len(UDP_FRAME) + 100):
        wire.take(0, UDP_FRAME, 0.0)

    assert wire.counts["overflow"] == 100


def test_a_black_hole_swallows_what_is_too_long() -> None:
    """Packets above the MTU vanish without a word, shorter ones pass."""
    short, long = segment(b"x" * 100), segment(b"x" * 1400)

    assert carried(Weather(mtu_bytes=1000), [short, long]) == [(1, short)]


def test_a_claimed_mtu_reaches_the_sender() -> None:
    """The forged ICMP is whole for scapy, quotes the packet, names the MTU; the packet passes."""
    long = segment(b"x" * 1400)
    (back, claim), (on, frame) = carried(Weather(claims_mtu_bytes=68), [long])
    parsed, original = Ether(claim), Ether(long)

    assert (back, on, frame) == (0, 1, long)
    assert (parsed.src, parsed.dst, parsed[IP].dst) == (original.dst, original.src, original[IP].src)
    assert (parsed[ICMP].type, parsed[ICMP].code, parsed[ICMP].nexthopmtu) == (3, 4, 68)
    assert bytes(parsed[ICMP].payload) == long[14:42]
    assert summed(claim)


def test_a_reset_is_one_that_both_ends_believe() -> None:
    """Each end gets a RST with the number that it expects next, and the segment is gone."""
    (there, forward), (here, backward) = carried(Weather(reset=1.0), [segment()])
    forward, backward = Ether(forward), Ether(backward)

    assert (there, here) == (1, 0)
    assert (forward[TCP].flags, forward[TCP].seq, forward[TCP].dport, forward[IP].dst) == ("R", 1000, 4795, "10.0.0.1")
    assert (backward[TCP].flags, backward[TCP].seq, backward[TCP].dport, backward[IP].dst) == (
        "R",
        5000,
        4000,
        "10.0.0.2",
    )
    assert summed(bytes(forward))
    assert summed(bytes(backward))
    assert carried(Weather(reset=1.0), [UDP_FRAME]) == [(1, UDP_FRAME)]


def test_a_nat_that_forgot_knows_new_connections_alone() -> None:
    """Segments of connections of before are dropped, those behind a SYN pass, in both directions; others, too."""
    old, syn, new, answer = segment(), segment(b"", "S", 4001), segment(sport=4001), segment(b"", "SA", 4002)

    assert carried(Weather(forgets=True), [old, syn, new, answer, UDP_FRAME]) == [(1, syn), (1, new), (1, UDP_FRAME)]


def test_a_segment_is_read_from_its_header() -> None:
    """Flow, flags and numbers are those that scapy wrote; what is no TCP over IPv4 is none."""
    found = tcp_segment(segment(b"hello"))

    assert found
    assert (found.sequence, found.acknowledgement) == (1000, 5000)
    assert found.flow == tcp_segment(segment(b"", "A")).flow
    for other in (UDP_FRAME, UDP_FRAME[:20], b"", segment()[:50]):
        assert tcp_segment(other) is None


def summed(frame: bytes) -> bool:
    """Does scapy compute the same checksums?"""
    parsed = Ether(frame)
    for layer in (IP, TCP, ICMP):
        if layer in parsed:
            del parsed[layer].chksum
    return bytes(parsed) == frame
