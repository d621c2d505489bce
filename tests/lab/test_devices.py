"""What the kernel tells of devices: that one changed, and what one counted, whatever else the host has."""

import subprocess
import time
from contextlib import closing
from statistics import median

from guestagent.capture.interfaces import Changes, links
from guestagent.governor.limits import Traffic
from guestagent.governor.meter import Meter
from guestagent.lab.hosts import Lab
from guestagent.lab.packets import udp_send

CHANGES = (
    "address add 192.0.2.9/24 dev eth0",
    "address add 2001:db8::9/64 dev eth0",
    "link set eth0 mtu 1400",
    "link set eth0 down",
    "link set eth0 name ens5",
    "link add eth1 type veth peer name far1",
    "link delete ens5",
)
FLOOD = 2000
"""Messages that a socket's buffer of 208 KB does not hold, at over 1 KB each."""
OTHERS = 100


def _ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=60)


def _heard(settle_seconds: float = 0.1) -> list[tuple[bool, bool]]:
    """Of each change, whether it was seen, and whether it was seen again."""
    found = []
    with closing(Changes()) as changes:
        for line in CHANGES:
            _ip(line)
            time.sleep(settle_seconds)  # a link that goes down says so a moment later
            found.append((changes.seen(), changes.seen()))
    return found


def _flooded() -> list[bool]:
    with closing(Changes()) as changes:
        _ip(*(f"link set eth0 mtu {1400 + number % 2}" for number in range(FLOOD)))
        return [changes.seen() for _ in range(FLOOD)]


def test_each_change_is_heard_once(lab: Lab) -> None:
    """Addresses, MTU, state and name of a device, one that comes and one that goes; without a change nothing."""
    vm = lab.host("vm")
    lab.link(vm, lab.host("peer"))

    assert vm.call(_heard) == [(True, False)] * len(CHANGES)


def test_more_changes_than_can_be_heard_are_heard(lab: Lab) -> None:
    """A socket that ran over says so, and is quiet again once it is read."""
    vm = lab.host("vm")
    lab.link(vm, lab.host("peer"))
    found = vm.call(_flooded)

    assert found[0]
    assert not found[-1]


def _counts_and_costs() -> tuple[Traffic, Traffic, float, float]:
    """What eth0 counted before other devices came and after, and the median CPU seconds of a question then."""
    index = links()["eth0"].index
    with closing(Meter()) as meter:
        first, alone = meter.traffic([index]) or Traffic(), _cost(meter, index)
        _ip(*(f"link add one{number} type veth peer name two{number}" for number in range(OTHERS // 2)))
        return first, meter.traffic([index]) or Traffic(), alone, _cost(meter, index)


def _cost(meter: Meter, index: int) -> float:
    costs = []
    for _ in range(300):
        before = time.process_time()
        meter.traffic([index])
        costs.append(time.process_time() - before)
    return median(costs)


def test_counting_costs_nothing_for_other_devices(lab: Lab) -> None:
    """Of a device the meter says what /proc/net/dev does, at the same price beside a hundred others."""
    vm, peer = lab.host("vm"), lab.host("peer")
    lab.link(vm, peer)
    peer.call(udp_send, "10.9.0.2", 9000, 100, 10_000, 100)
    before = vm.counters()
    first, last, alone, among = vm.call(_counts_and_costs)
    after = vm.counters()

    for counted in (first, last):
        assert before.rx_packets <= counted.packets_in <= after.rx_packets
        assert before.tx_packets <= counted.packets_out <= after.tx_packets
        assert before.rx_bytes <= counted.bytes_in <= after.rx_bytes
        assert before.tx_bytes <= counted.bytes_out <= after.tx_bytes
    assert first.packets_in >= 100
    assert among < 2 * alone
