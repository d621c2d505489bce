"""What several tests of the filter ask about: frames, packet types, peers of a lease, exclusions, the headers slice."""

from collections.abc import Sequence

from hypothesis import strategies as st

from guestagent.capture.bpf import compose
from guestagent.model import Exclusion
from tests.frames import KNOWN_FRAMES, PEER4, PEER6

PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST, PACKET_OTHERHOST, PACKET_OUTGOING = range(5)
SEED = 0x5EED
MOST = 2**32 - 1
HEADERS = compose(slice_="headers")
TWENTY = tuple(
    Exclusion(6, address.format(n), 4795, 40000 + n) for n in range(10) for address in ("10.0.0.{}", "fd00::{}")
)


@st.composite
def mutated_frame(draw: st.DrawFn, frames: Sequence[bytes]) -> bytes:
    """One of these, cut anywhere and with some bytes changed: the hostile neighbour of a sound one."""
    frame = bytearray(draw(st.sampled_from(frames)))
    for _ in range(draw(st.integers(0, 4))):
        if frame:
            frame[draw(st.integers(0, min(len(frame), 140) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(0, len(frame)))])


ANY_FRAME = st.one_of(st.sampled_from(KNOWN_FRAMES), mutated_frame(KNOWN_FRAMES), st.binary(max_size=200))
PEERS = (PEER4, "10.0.0.10", "192.168.7.1", PEER6, "fd00::10", "fd00:0:0:1::9", "2001:db8::9")
