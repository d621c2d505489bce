"""Token buckets: no second carries more than the cap allows, and a cap in demand is used."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.governor.bucket import DEPTH_SECONDS, PACKET_BYTES, Gate, TokenBucket

RATES = st.floats(min_value=1e3, max_value=1e10)
GAPS = st.lists(st.floats(min_value=0, max_value=0.3), min_size=1, max_size=200)


def most_in_a_second(sent: list[tuple[float, float]]) -> float:
    """The largest sum of amounts within any second that begins with one of them."""
    return max(sum(amount for at, amount in sent if start <= at <= start + 1) for start, _ in sent)


@given(rate=RATES, gaps=GAPS)
def test_no_second_carries_more_than_the_cap(rate: float, gaps: list[float]) -> None:
    """However the turns fall, and with all that is allowed taken at each, a second has at most 1.05 caps."""
    bucket, now, sent = TokenBucket(rate), 0.0, []
    for gap in gaps:
        now += gap
        room = bucket.available(now)
        bucket.spend(room)
        sent.append((now, room))

    assert most_in_a_second(sent) <= rate * 1.05


@given(rate=st.floats(min_value=1e5, max_value=1e10), seed=st.integers(0, 1000), late=st.floats(0, 0.02))
def test_a_cap_in_demand_is_used(rate: float, seed: int, late: float) -> None:
    """With more to send than the cap, and wake-ups up to 20 ms late, at least nine tenths of the cap leave."""
    rng, bucket, now, sent = random.Random(seed), TokenBucket(rate), 0.0, 0.0
    while now < 3:
        room = bucket.available(now)
        bucket.spend(room)
        sent += room
        now = max(bucket.ready_at(now, 65536), now + 1e-4) + rng.random() * late

    assert sent >= 0.9 * rate * 3


@given(rate=RATES, idle=st.floats(0, 1e6), amount=st.floats(1, 1e9))
def test_what_is_ready_is_available(rate: float, idle: float, amount: float) -> None:
    """At the moment that was promised, something can leave; no promise is further than 10 ms or one unit away."""
    bucket = TokenBucket(rate)
    bucket.spend(bucket.available(idle))
    at = bucket.ready_at(idle, amount)

    assert bucket.available(at + 1e-6 * max(1.0, idle)) >= min(1, int(amount))
    assert at - idle <= max(0.01, 1.001 / rate) + 1e-6 * max(1.0, idle)


def test_bursts_after_idle_pass_whole() -> None:
    """2 Mbit/s in bursts under a cap of 1,000 Mbit/s are never delayed."""
    bucket = TokenBucket(125e6)
    for second in range(100):
        assert bucket.available(second) >= 250_000
        bucket.spend(250_000)


def test_a_tiny_cap_lets_single_packets_out() -> None:
    """At 10 packets/s the depth of 40 ms is less than a packet; one leaves each tenth of a second."""
    bucket, sent = TokenBucket(10.0), 0.0
    for turn in range(1000):
        room = bucket.available(turn * 0.01)
        bucket.spend(room)
        sent += room

    assert 95 <= sent <= 101


def test_a_debt_is_paid_first() -> None:
    """A frame header beyond what was available is taken from what comes next."""
    bucket = TokenBucket(1000.0)
    bucket.spend(bucket.available(0.0) + 16)

    assert bucket.available(0.016) == 0
    assert bucket.available(0.020) in (3, 4)


def test_time_that_stands_or_runs_back_gives_nothing() -> None:
    """The same moment asked twice, or an earlier one, brings no tokens."""
    bucket = TokenBucket(1e6, now=10.0)
    bucket.spend(bucket.available(10.0))

    assert bucket.available(10.0) == bucket.available(9.0) == 0
    assert bucket.available(10.01) == pytest.approx(10_000, abs=1)


def test_a_new_cap_brings_no_credit() -> None:
    """A cap after none begins empty; a lower one keeps at most its own depth; the same one changes nothing."""
    bucket = TokenBucket(inf)
    assert bucket.available(5.0) == inf
    bucket.set_rate(5.0, 1e6)
    assert bucket.available(5.0) == 0
    assert bucket.available(6.0) == 1e6 * DEPTH_SECONDS
    bucket.set_rate(6.0, 1e5)
    assert bucket.available(6.0) == 1e5 * DEPTH_SECONDS
    bucket.set_rate(6.0, 1e5)
    assert bucket.available(6.0) == 1e5 * DEPTH_SECONDS
    bucket.set_rate(6.0, inf)
    assert bucket.available(6.0) == inf


def test_the_gate_opens_when_both_are_ready() -> None:
    """Bytes and packets are counted apart; the later of the two decides when."""
    gate = Gate(0.0)
    gate.set_caps(0.0, 1e6, 100.0)

    assert gate.room(1.0) == (40_000, 4)
    gate.spend(40_000, 4)
    assert gate.room(1.0) == (0, 0)
    assert gate.ready_at(1.0, 100, 1) == pytest.approx(1.01)
    gate.set_caps(1.0, inf, inf)
    assert gate.room(1.0) == (inf, inf)
    assert gate.ready_at(1.0, 1e9, 1e9) == 1.0


@pytest.mark.parametrize("rate", [64e3 / 8, 150e3 / 8, 1e6 / 8, 20e6 / 8, 10 * 1400.0, 50 * 1400.0])
def test_a_small_cap_lets_out_whole_packets(rate: float) -> None:
    """Each write of a stream has a packet's worth at least, and a second has at most one packet too much."""
    gate, now, sent = Gate(0.0), 0.0, []
    gate.set_caps(now, rate, inf)
    while now < 10:
        room, _ = gate.room(now)
        if room:
            sent.append((now, room))
            gate.spend(room)
        now = max(gate.ready_at(now, 65536, 65536), now + 1e-4)

    assert min(room for _, room in sent) >= PACKET_BYTES
    assert sum(room for _, room in sent) >= 0.9 * rate * 10
    assert most_in_a_second(sent) <= max(1.05 * rate, rate + PACKET_BYTES)
    assert len(sent) <= 10 * max(100, rate / PACKET_BYTES) + 1
