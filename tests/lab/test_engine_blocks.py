"""Both engines lend blocks alike: bounded, handed over in time, used again, and the books close under a flood."""

import time

from guestagent.capture.ring import BLOCK_BYTES, FEWEST_BLOCKS, RETIRE_MS
from guestagent.lab.hosts import Host
from guestagent.lab.packets import inject
from tests.lab.engines import capturing, numbered


def test_the_books_close_under_a_flood(kind: str, pair: tuple[Host, Host]) -> None:
    """Of frames sent at full speed each is either seen, once and in order, or counted as dropped."""
    agent, peer = pair
    frames = numbered(30_000)
    with capturing(agent, kind) as tap:
        flood = peer.start(inject, "eth0", frames)
        seen = [one.frame for one in tap.collect(quiet=1.0)]
        flood.result()
        seen += [one.frame for one in tap.collect()]
        statistics = tap.statistics()

    assert statistics.captured == len(frames) == len(seen) + statistics.dropped
    kept = set(seen)
    assert seen == [frame for frame in frames if frame in kept]


def test_what_waits_unseen_is_handed_over(kind: str, pair: tuple[Host, Host]) -> None:
    """Frames that came while the reader was busy are all handed over once it looks, though no further frame comes."""
    agent, peer = pair
    frames = numbered(2500, 60)
    with capturing(agent, kind, block_count=8 * FEWEST_BLOCKS) as tap:
        peer.call(inject, "eth0", frames)
        seen = tap.collect()
        statistics = tap.statistics()

    assert len(frames) == statistics.captured == len(seen) + statistics.dropped


def test_unreleased_blocks_are_bounded(kind: str, pair: tuple[Host, Host]) -> None:
    """With no block given back, as many as were asked for are lent and the rest is dropped and counted; what waits
    meanwhile wakes nobody, and the capture goes on once they are back."""
    agent, peer = pair
    frames = numbered(5 * FEWEST_BLOCKS * BLOCK_BYTES // 1400, 1300)
    with capturing(agent, kind) as tap:
        flood = peer.start(inject, "eth0", frames, 20_000)
        seen = tap.collect(hold=True, quiet=1.0)
        flood.result()
        held, capacity = tap.held_blocks(), FEWEST_BLOCKS * BLOCK_BYTES
        edges = tap.edges(3 * RETIRE_MS / 1000)
        tap.release()
        rest = tap.collect()
        statistics = tap.statistics()
        peer.call(inject, "eth0", frames[:10])
        after = tap.collect(10)

    assert held == FEWEST_BLOCKS
    assert 0.9 * capacity < sum(len(one.frame) + 92 for one in seen) < capacity
    assert edges <= 1
    assert statistics.dropped > len(frames) / 2
    assert statistics.captured == len(frames) == len(seen) + len(rest) + statistics.dropped
    assert [one.frame for one in after] == frames[:10]


def test_an_idle_partial_block_is_handed_over(kind: str, pair: tuple[Host, Host]) -> None:
    """A lone frame on an idle link reaches the reader within three retire times, also while older blocks are held."""
    agent, peer = pair
    waits = []
    with capturing(agent, kind) as tap:
        for frame in numbered(5):
            peer.call(inject, "eth0", [frame])
            (one,) = tap.collect(1, hold=True)
            assert one.frame == frame
            waits.append(one.waited_seconds)
            assert tap.edges(2 * RETIRE_MS / 1000) <= 1

    assert max(waits) < 3 * RETIRE_MS / 1000


def test_a_steady_trickle_is_handed_over_in_blocks(kind: str, pair: tuple[Host, Host]) -> None:
    """Frames that keep coming delay no block, and are lent many at a time."""
    agent, peer = pair
    frames = numbered(1000)
    with capturing(agent, kind) as tap:
        peer.start(inject, "eth0", frames, 1000)
        seen = tap.collect(len(frames))
        blocks = len(tap.block_addresses())

    assert [one.frame for one in seen] == frames
    assert max(one.waited_seconds for one in seen) < 3 * RETIRE_MS / 1000
    assert blocks < 30


def test_a_ring_says_when_so_much_has_gathered(pair: tuple[Host, Host]) -> None:
    """One question turns true with the block that it names, one for more than is free is true at once."""
    agent, peer = pair
    with capturing(agent, "ring") as tap:
        tap.ask(3)
        said = [tap.is_enough()]
        for frame in numbered(3):
            peer.call(inject, "eth0", [frame])
            time.sleep(3 * RETIRE_MS / 1000)
            said.append(tap.is_enough())
        tap.collect(1, hold=True)
        tap.ask(FEWEST_BLOCKS)
        said.append(tap.is_enough())

    assert said == [False, False, False, True, True]


def test_released_memory_is_used_again(kind: str, pair: tuple[Host, Host]) -> None:
    """However many blocks pass through, they lie in no more places than were asked for."""
    agent, peer = pair
    frames = numbered(3 * FEWEST_BLOCKS * BLOCK_BYTES // 1400, 1300)
    with capturing(agent, kind) as tap:
        peer.start(inject, "eth0", frames, 5_000)
        seen = tap.collect(len(frames))
        addresses = tap.block_addresses()

    assert [one.frame for one in seen] == frames
    assert len(addresses) > 2 * FEWEST_BLOCKS
    assert len(set(addresses)) <= FEWEST_BLOCKS
