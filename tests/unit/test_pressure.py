"""The account, the signs of pressure, and the pace of a slow collector."""

from math import inf

import pytest

from guestagent.governor.bounds import ORDINARY_SHARE, Account, Overheads
from guestagent.governor.limits import DEFAULT_ORDER, Counters, Rung, Usage
from guestagent.governor.pressure import BackPressure, Yielding

NO_ELEPHANT = Overheads(500.0, 0.01, 0.0)


def test_a_debt_is_bounded_and_paid_back() -> None:
    """After a minute of ten times the budget a tenth of it is allowed, and after a few seconds at that, all."""
    account = Account(0.1)
    for _ in range(600):
        account.spend(0.1, 1.0)
    assert [one.aim.cpu for one in account.bounds((), NO_ELEPHANT)] == pytest.approx([0.01])
    for _ in range(25):
        account.spend(0.1, 0.01)
    assert [one.aim.cpu for one in account.bounds((), NO_ELEPHANT)] == pytest.approx([0.09], abs=0.005)


def test_an_elephant_that_cannot_be_paid_for_takes_no_more_than_others_leave() -> None:
    """What its rejection costs opens the budget for the flows beside it, and not for more of its own packets."""
    account = Account(0.1)
    elephant, everyone = account.bounds(DEFAULT_ORDER, Overheads(500.0, 0.02, 0.15))

    assert elephant.aim.cpu == pytest.approx(0.09)
    assert everyone.aim.cpu == pytest.approx(0.02 + 0.15 + ORDINARY_SHARE * 0.1)
    assert (elephant.order, everyone.order) == ((Rung.HEAVY, Rung.THIN), DEFAULT_ORDER)


def test_a_suspended_vm_owes_little() -> None:
    """An hour in one step is booked as a second."""
    account = Account(0.1)
    account.spend(3600.0, 0.2)

    assert account.balance_seconds >= -0.1


SIGNS = {
    "tasks wait": lambda now: Usage(2, stalled_seconds=0.9 * now),
    "hypervisor": lambda now: Usage(2, stolen_seconds=0.5 * now),
    "more tasks": lambda now: Usage(2, running=9),
    "sent again": lambda now: Usage(2, retransmitted=int(100 * now)),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_is_believed_within_a_second(sign: str) -> None:
    """From each of the four signs alone; and let go within four seconds of its end."""
    yielding, read = Yielding(), SIGNS[sign]
    seen = {tick: yielding.step(tick / 10, read(tick / 10)) for tick in range(30)}
    assert sign in seen[9]
    end = read(2.9)._replace(running=None if read(2.9).running is None else 0)
    after = [yielding.step(2.9 + tick / 10, end) for tick in range(1, 41)]
    assert not after[-1]


def test_a_busy_vm_is_under_no_pressure() -> None:
    """Both cores busy, a task on each and now and then one waiting, is what a VM is for; so is a moment's stall."""
    yielding = Yielding()
    for tick in range(100):
        now = tick / 10
        assert not yielding.step(now, Usage(2, now, 0.2 * now, 0.02 * now, tick % 3, tick // 10))
    assert not yielding.step(10.0, Usage(2, 10.0, 0.2 * 9.9 + 0.1, 0.2, 2, 10))


def test_hosts_without_readings_show_no_pressure() -> None:
    """Where nothing is known, nothing is claimed."""
    assert not any(Yielding().step(tick / 10, Usage()) for tick in range(100))


def counters(acked: float, fill: float, lag: float = 0.0) -> Counters:
    """With a ring of 64 MB."""
    return Counters(0, None, int(acked), 64 << 20, fill, lag)


def test_a_full_ring_asks_for_nine_tenths_of_the_acknowledged_rate() -> None:
    """From half full until a quarter full, the cap is 0.9 of the last second's rate."""
    pressure = BackPressure()
    caps = [pressure.step(tick / 10, counters(2e6 * tick, min(0.9, tick / 20))) for tick in range(40)]

    assert caps[:10] == [inf] * 10
    assert caps[-1] == pytest.approx(18e6)
    assert pressure.step(4.0, counters(80e6, 0.3)) < inf
    assert pressure.step(4.1, counters(82e6, 0.2)) == inf


def test_idle_seconds_are_no_part_of_the_pace() -> None:
    """A backlog that begins after a minute of nothing is judged by the seconds since."""
    pressure = BackPressure()
    for tick in range(600):
        assert pressure.step(tick / 10, counters(0, 0.0)) == inf
    pressure.step(60.0, counters(0, 0.1))
    cap = pressure.step(60.1, counters(10e6, 0.6))

    assert cap == pytest.approx(0.9 * 10e6 / 0.2, rel=0.1) or cap == pytest.approx(0.9 * 10e6 / 0.1, rel=0.1)


def test_a_growing_lag_is_back_pressure_before_the_ring_fills() -> None:
    """Frames that wait ever longer for their acknowledgement ask for less; a long steady path doesn't."""
    growing, steady = BackPressure(), BackPressure()
    caps = [growing.step(tick / 10, counters(1e6 * tick, 0.1, tick / 10)) for tick in range(20)]

    assert caps[-1] == pytest.approx(9e6)
    assert all(steady.step(tick / 10, counters(1e6 * tick, 0.1, 0.4)) == inf for tick in range(50))


def test_without_a_collector_the_ring_is_spent_slowly() -> None:
    """Nothing acknowledged: a tenth of the room that is left, each second, so that it never quite fills."""
    pressure = BackPressure()
    caps = [pressure.step(tick / 10, counters(0, 0.75, 10 + tick / 10)) for tick in range(20)]

    assert caps[-1] == pytest.approx((16 << 20) / 10)
