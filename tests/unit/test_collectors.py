"""Which collector is tried next, and when the run goes back. No sockets."""

from math import inf

from guestagent.endpoint import Endpoint
from guestagent.links.collectors import FIRST_RETURN_SECONDS, LASTING_SECONDS, MOST_RETURN_SECONDS, Rota, ordered


def test_a_round_tries_each_address_of_each_collector_once() -> None:
    """Addresses in turn, then the next collector; the round is over when the first is at turn again."""
    rota, tried = Rota(3), []
    for _ in range(6):
        tried.append((rota.at, rota.address(2)))
        over = rota.failed(2)
    assert tried == [(at, address) for at in range(3) for address in range(2)]
    assert over
    assert Rota(1).failed(0)


def test_the_preferred_one_is_left_alone_and_others_are_not() -> None:
    """While the first serves nobody is watched; while another serves, every better one is, in turn."""
    rota = Rota(3)
    rota.serves(0.0)
    assert rota.look_at == inf
    rota.failed(1)
    rota.failed(1)
    rota.serves(10.0)
    assert rota.look_at == 10.0 + FIRST_RETURN_SECONDS
    assert {rota.look(now) for now in (15.0, 20.0)} == {0, 1}


def test_returns_that_do_not_last_come_ever_later() -> None:
    """Each break soon after a return doubles the wait, up to a bound; one that lasted starts afresh."""
    rota, waits, now = Rota(2), [], 0.0
    for _ in range(9):
        rota.broke(now)
        rota.failed(1)
        rota.serves(now)
        waits.append(rota.look_at - now)
        now = rota.look_at
        rota.returned(0, now)
        rota.serves(now)
        now += LASTING_SECONDS / 2
    assert waits[:4] == [5.0, 10.0, 20.0, 40.0]
    assert waits[-1] == MOST_RETURN_SECONDS
    rota.broke(now + LASTING_SECONDS)
    rota.failed(1)
    rota.serves(now)
    assert rota.look_at == now + FIRST_RETURN_SECONDS


def test_one_return_is_judged_once() -> None:
    """Who is returned to, and refuses again and again before another one serves, doubles the wait once."""
    rota = Rota(2)
    rota.returned(0, 100.0)
    for at in range(3):
        rota.broke(101.0 + at)
    rota.failed(1)
    rota.serves(104.0)
    assert rota.look_at == 104.0 + 2 * FIRST_RETURN_SECONDS


def test_on_the_way_back_nobody_is_watched() -> None:
    """A machine that stood still while it returned looks for no better one than the best: there is none to ask."""
    rota = Rota(2)
    rota.failed(1)
    rota.serves(0.0)
    rota.look(FIRST_RETURN_SECONDS)
    rota.returned(0, 100.0)
    assert rota.look_at == inf


def test_agents_spread_evenly_and_losing_one_moves_its_own() -> None:
    """Of 3,000 agents each of three collectors is first for about a third; without one, only its agents move."""
    three = [Endpoint("tls", f"10.0.0.{number}", 4795) for number in range(3)]
    agents = [f"i-{number:08x}" for number in range(3000)]
    first = {agent: ordered(three, agent)[0] for agent in agents}
    counts = [sum(one == endpoint for one in first.values()) for endpoint in three]
    assert min(counts) > 850
    for agent in agents:
        left = ordered(three[:2], agent)[0]
        assert left == first[agent] or first[agent] == three[2]
