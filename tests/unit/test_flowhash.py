"""The flow hash in Python: what shares one, what has none, and that it scatters real mixes of addresses evenly."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations, islice

import pytest

from guestagent.capture.bpf import compose
from guestagent.capture.flowhash import flow_hash
from tests import frames
from tests.bpf_interpreter import kept
from tests.frames import FLOWLESS, FLOWS, HEADERS_CASES, OWN_CASES, Flow

HEADERS = compose(slice_="headers")
SEEDS = (0, 1, 2, 0x5EED, 0xFFFFFFFF)
FLOWS_IN_A_MIX = 4000


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.name for flow in FLOWS])
def test_frames_of_a_flow_share_one_hash(flow: Flow) -> None:
    """Both directions, whatever tags, options and extension headers stand before."""
    for seed in SEEDS:
        assert len({flow_hash(frame, seed) for frame in flow.frames}) == 1
        assert None not in {flow_hash(frame, seed) for frame in flow.frames}


@pytest.mark.parametrize("seed", SEEDS)
def test_flows_differ(seed: int) -> None:
    """Flows that differ in one address, port or protocol have different hashes."""
    assert len(FLOWS) == len({flow_hash(flow.frames[0], seed) for flow in FLOWS})


@pytest.mark.parametrize("flow", FLOWLESS, ids=[flow.name for flow in FLOWLESS])
def test_what_has_no_flow(flow: Flow) -> None:
    """ICMP errors, what is not IP and what is too short to tell have no hash."""
    assert flow_hash(flow.frames[0], 1) is None


def test_headers_are_enough() -> None:
    """A frame cut to its headers has the hash of the whole; so has a view of it."""
    for frame in (*(case.frame for case in (*HEADERS_CASES, *OWN_CASES)), *(f for flow in FLOWS for f in flow.frames)):
        cut = frame[: kept(HEADERS, frame)] if frame else b""

        assert flow_hash(frame, 7) == flow_hash(memoryview(cut), 7)


# Quality. A flow here is source, destination, source port, destination port; the mixes are what one VM sees.

Ends = tuple[str, str, int, int]
Mix = Callable[[random.Random], Iterator[Ends]]


def framed(ends: Ends) -> bytes:
    """A UDP frame of the flow."""
    source, destination, source_port, destination_port = ends
    body = frames.udp(b"", source=source_port, destination=destination_port)
    if ":" in source:
        return frames.ethernet(frames.IPV6, frames.ipv6(frames.UDP, body, source=source, destination=destination))
    return frames.ethernet(frames.IPV4, frames.ipv4(frames.UDP, body, source=source, destination=destination))


@lru_cache(maxsize=16)
def frames_of(mix: Mix) -> list[bytes]:
    """A frame of each of FLOWS_IN_A_MIX different flows."""
    different = dict.fromkeys(mix(random.Random(1)))
    return [framed(ends) for ends in islice(different, FLOWS_IN_A_MIX)]


def hashes(mix: Mix, seed: int) -> list[int]:
    """The hashes of these flows."""
    return [one for frame in frames_of(mix) if (one := flow_hash(frame, seed)) is not None]


def one_client_many_ports(rng: random.Random) -> Iterator[Ends]:
    """A client's ephemeral ports in order, to one port of one server."""
    yield from (("10.0.0.1", "10.0.0.9", 32768 + n, 443) for n in range(FLOWS_IN_A_MIX))


def port_scan(rng: random.Random) -> Iterator[Ends]:
    """One client's port to all ports of one server."""
    yield from (("10.0.0.1", "10.0.0.9", 40000, n) for n in range(FLOWS_IN_A_MIX))


def one_network(rng: random.Random) -> Iterator[Ends]:
    """Pairs of hosts of one /16, both in the low bits, to a few ports."""
    for _ in range(2 * FLOWS_IN_A_MIX):
        source, destination = (f"10.1.{rng.randrange(4)}.{rng.randrange(1, 60)}" for _ in "12")
        yield source, destination, rng.randrange(32768, 61000), rng.choice([53, 80, 443])


def portless_pairs(rng: random.Random) -> Iterator[Ends]:
    """All pairs of 120 neighbours, with the same ports."""
    yield from ((f"192.168.0.{a}", f"192.168.0.{b}", 5000, 5000) for a, b in combinations(range(1, 121), 2))


def many_clients(rng: random.Random) -> Iterator[Ends]:
    """The internet to one server port."""
    for _ in range(2 * FLOWS_IN_A_MIX):
        yield str(IPv4Address(rng.getrandbits(32))), "203.0.113.5", rng.randrange(1024, 65536), 443


def consecutive_clients(rng: random.Random) -> Iterator[Ends]:
    """Clients one after the other, all from one port (NTP), to one server."""
    yield from ((str(IPv4Address("10.64.0.0") + n), "203.0.113.5", 123, 123) for n in range(FLOWS_IN_A_MIX))


def small_interface_ids(rng: random.Random) -> Iterator[Ends]:
    """IPv6 hosts that an administrator numbered: ::1, ::2... in a few subnets."""
    hosts = [str(IPv6Address("2001:db8::") + (subnet << 64) + n) for subnet in range(8) for n in range(1, 20)]
    yield from ((a, b, 5000, 443) for a, b in combinations(hosts, 2))


def mac_interface_ids(rng: random.Random) -> Iterator[Ends]:
    """IPv6 hosts whose interface ids were made from MAC addresses of one vendor, to one server."""
    for n in range(FLOWS_IN_A_MIX):
        yield str(IPv6Address("2001:db8:0:7:5054:ff:fe00:0") + n), "2001:db8::1", 123, 123


def many_subnets(rng: random.Random) -> Iterator[Ends]:
    """Host ::1 of each of many subnets, to one server."""
    for n in range(FLOWS_IN_A_MIX):
        yield str(IPv6Address("2001:db8::1") + (n << 64)), "2001:db8:ffff::1", 123, 123


MIXES = (
    one_client_many_ports, port_scan, one_network, portless_pairs, many_clients, consecutive_clients,
    small_interface_ids, mac_interface_ids, many_subnets,
)  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seed", [0, 1, 0xC0FFEE])
def test_a_sample_has_its_size(mix: Mix, seed: int) -> None:
    """Of each mix the asked fraction of flows is kept, give or take a tenth of it."""
    found = hashes(mix, seed)

    assert len(found) == FLOWS_IN_A_MIX
    for fraction in (0.25, 0.5, 0.75):
        sampled = sum(one < fraction * 2**32 for one in found) / len(found)
        assert sampled == pytest.approx(fraction, rel=0.1)


@pytest.mark.parametrize("mix", MIXES)
def test_each_bit_is_fair_and_flows_stay_apart(mix: Mix) -> None:
    """Each bit of the hash is set in half of the flows, and no two flows of a mix share one."""
    found = hashes(mix, 3)

    assert len(found) == len(set(found))
    for bit in range(32):
        assert sum(one >> bit & 1 for one in found) / len(found) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seeds", [(0, 1), (1, 2), (5, 0x80000005)])
def test_seeds_choose_independently(mix: Mix, seeds: tuple[int, int]) -> None:
    """Half of the flows that one seed samples, another samples as well, though the seeds differ in one bit."""
    first, second = (hashes(mix, seed) for seed in seeds)
    both = sum(one < 2**31 and other < 2**31 for one, other in zip(first, second, strict=True))

    assert both / len(first) == pytest.approx(0.25, rel=0.1)


def test_an_elephant_meets_no_ordinary_flow() -> None:
    """In 4,000 trials no flow that differs from an elephant in one address or port has its hash."""
    rng = random.Random(4)
    for _ in range(4000):
        low, client, port = rng.randrange(2, 255), rng.randrange(2, 255), rng.randrange(1024, 65536)
        elephant = (f"10.0.{low}.{client}", "10.0.1.1", port, 443)
        others: tuple[Ends, ...] = (
            (f"10.0.{low}.{client ^ 1}", "10.0.1.1", port, 443),
            (f"10.0.{low ^ 1}.{client}", "10.0.1.1", port, 443),
            (f"10.0.{client}.{low}", "10.0.1.1", port, 443) if low != client else ("10.9.9.9", "10.0.1.1", port, 443),
            (f"10.0.{low}.{client}", "10.0.1.1", port ^ 1, 443),
            (f"10.0.{low}.{client}", "10.0.1.1", port, 80),
            (f"10.0.{low}.{client}", "10.0.1.2", port, 443),
        )
        own = flow_hash(framed(elephant), 0)

        assert own not in [flow_hash(framed(other), 0) for other in others]


def test_a_neighbour_differs_in_half_of_the_bits() -> None:
    """One bit of an address or port changes each bit of the hash in half of the cases: nothing stays in 16 bits."""
    rng = random.Random(5)
    changes = [0] * 32
    trials = 4000
    for _ in range(trials):
        frame = bytearray(framed((str(IPv4Address(rng.getrandbits(32))), "10.0.0.1", rng.getrandbits(16), 443)))
        before = flow_hash(frame, 0)
        at, bit = rng.randrange(26, 38), rng.randrange(8)
        frame[at] ^= 1 << bit
        after = flow_hash(frame, 0)
        assert before is not None
        assert after is not None
        for i in range(32):
            changes[i] += (before ^ after) >> i & 1

    assert all(0.46 < count / trials < 0.54 for count in changes)
