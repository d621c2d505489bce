"""How large a ring may be: out of free memory and address space, whatever was asked for."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.engine import DEFAULT_RING_BYTES, ring_blocks
from guestagent.capture.ring import BLOCK_BYTES, FEWEST_BLOCKS
from guestagent.errors import ConfigError, HostError

LEAST_BYTES = FEWEST_BLOCKS * BLOCK_BYTES


@given(
    st.just(0) | st.integers(1, 1 << 30),
    st.integers(1, 64),
    st.integers(0, 1 << 36),
    st.just(inf) | st.integers(-(1 << 26), 1 << 34),
)
def test_rings_stay_inside_memory_and_address_space(wanted: int, interfaces: int, free: int, address: float) -> None:
    """All rings together take at most 5 % of what is free and fit what may be mapped; refusals name the fault's owner.

    The host's where no ring at all has room, the operator's where a size was asked for that does not fit.
    """
    room = min(free / 20, address)
    try:
        ring_bytes = ring_blocks(wanted, interfaces, free, address) * BLOCK_BYTES
    except HostError:
        assert room < interfaces * LEAST_BYTES
        return
    except ConfigError:
        assert wanted < LEAST_BYTES or wanted * interfaces > room - interfaces
        assert wanted
        return
    assert LEAST_BYTES <= ring_bytes <= (wanted or DEFAULT_RING_BYTES)
    assert ring_bytes * interfaces <= room
