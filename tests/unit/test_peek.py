"""The governor's look into a block: who the first records are of, by the same hash as the filter's."""

from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.block import BlockWriter
from guestagent.capture.flowhash import flow_hash
from guestagent.capture.peek import NO_FLOW, Peek
from guestagent.capture.source import RetiredBlock
from tests import frames
from tests.bpf_cases import ANY_FRAME

SEED = 0x5EED


def block_of(cut: list[bytes]) -> RetiredBlock:
    """A block with one record for each frame, or as many as have room."""
    memory = bytearray(256 << 10)
    writer = BlockWriter(memory, 0)
    for frame in cut:
        assert writer.add(frame, 1)
    return RetiredBlock(0, memoryview(memory), writer.start, writer.end, writer.count, 1, writer.end)


def expected(cut: list[bytes]) -> list[int]:
    """Their hashes."""
    hashes = [flow_hash(frame, SEED) for frame in cut]
    return [NO_FLOW if one is None else one for one in hashes]


@given(st.lists(ANY_FRAME, min_size=1, max_size=8), st.integers(0, 100))
def test_what_is_remembered_is_the_hash(found: list[bytes], bytes_kept: int) -> None:
    """Whatever the frames, whole or cut, met for the first time or again."""
    cut = [*found, *(frame[:bytes_kept] for frame in found), *found]
    peek = Peek(SEED)

    assert expected(cut) == [flow for _, flow, _, _, _ in peek(block_of(cut), len(cut))]


def test_datagrams_cut_to_their_headers_are_remembered() -> None:
    """42 bytes are all of a UDP header: under a slice of headers a flow is hashed once, not with each record."""
    frame = frames.ethernet(frames.IPV4, frames.ipv4(frames.UDP, frames.udp(bytes(100))))[:42]
    peek = Peek(SEED)
    flows = [flow for _, flow, _, _, _ in peek(block_of([frame] * 3), 3)]

    assert expected([frame] * 3) == flows
    assert len(peek._known) == 1
