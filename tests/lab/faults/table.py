"""The faults, literally: what happens, how it is made here, how an operator sees it, what it may cost.

Ids are those of the fault list that the design was reviewed with: F1 to F32. Three tables: what the harness injects,
what a test of its own injects, and what does not apply or cannot be injected here, with the reason.
"""

from typing import NamedTuple

from tests.lab.faults import injections as by
from tests.lab.faults.injections import Injection, commands, impostor, named, out_of_files, weather

NOTHING: frozenset[str] = frozenset()
RING = frozenset({"dropped_by_ring", "capped"})


class Fault(NamedTuple):
    """One that the harness injects."""

    id: str
    title: str
    how: str
    scene: str
    inject: Injection
    teller: str
    """Who tells of it: `agent` or `collector`."""
    words: str
    """What its status or log says, a regular expression; empty where the fault is none to the tap, and nothing may
    change."""
    then: str = ""
    """What it says before the fault is over, where the first words are also those of other faults."""
    may_lose: frozenset[str] = NOTHING
    """Keys of the ledger that may grow."""
    within: bool = False
    """The tap is well again while the fault still lasts."""
    gap: str = ""
    """The agent itself is away and its packets meanwhile are in no book: after a `clean` end or an `unclean` one, of
    which the collector reports the bounds."""


FAULTS = (
    # -- the way to the collector
    Fault(
        "F10", "collector host dead", "relay: loses every frame", "path", weather(loss=1.0), "agent", r"silent for 3 s"
    ),
    Fault(
        "F32",
        "30 % loss on the path",
        "relay: loss 0.3",
        "path",
        weather(loss=0.3),
        "agent",
        r"the path loses packets",
        within=True,
    ),
    Fault(
        "F32",
        "reordered and duplicated packets",
        "relay: reorder 0.2 by 5 ms, duplicate 0.1",
        "path",
        weather(reorder=0.2, duplicate=0.1),
        "agent",
        "",
    ),
    Fault(
        "F32",
        "corrupted packets",
        "relay: one bit of 5 % of frames",
        "path",
        weather(corrupt=0.05),
        "agent",
        r"the path loses packets",
        within=True,
    ),
    Fault(
        "F4",
        "MTU black hole",
        "relay: packets above 1,300 bytes vanish",
        "path",
        weather(mtu_bytes=1300),
        "agent",
        r"silent for 3 s",
        then=r"large packets",
        within=True,
    ),
    Fault(
        "F5", "PMTU attack", "relay: forged ICMP, next-hop MTU 68", "path", weather(claims_mtu_bytes=68), "agent", ""
    ),
    Fault(
        "F13",
        "reset storm",
        "relay: a RST to both ends for each segment",
        "path",
        weather(reset=1.0),
        "agent",
        r"Connection reset|closed the connection",
    ),
    Fault(
        "F13",
        "half-open: a NAT forgets the connection",
        "relay: drops connections of before",
        "path",
        weather(forgets=True),
        "agent",
        r"silent for 3 s",
        within=True,
    ),
    Fault(
        "F11",
        "route to the collector is a black hole",
        "ip route add blackhole",
        "path",
        commands("vm", ("route add blackhole 10.9.0.1",), ("route del blackhole 10.9.0.1",)),
        "agent",
        r"silent for 3 s|[Ii]nvalid|unreachable",
    ),
    # -- the collector
    Fault(
        "F9",
        "collector killed",
        "kill -9, then started again",
        "collector",
        by.collector_killed,
        "agent",
        r"Connection refused",
    ),
    Fault(
        "F17",
        "collector upgraded",
        "SIGTERM, then a new process",
        "collector",
        by.collector_upgraded,
        "agent",
        r"the collector stops",
    ),
    Fault("F16", "collector hangs", "SIGSTOP", "collector", by.collector_stopped, "agent", r"silent for 3 s"),
    Fault(
        "F22",
        "collector's disk full",
        "its file system shrinks to what is used",
        "collector",
        by.disk_full,
        "agent",
        r"No space left",
    ),
    Fault(
        "F22",
        "collector out of file descriptors",
        "RLIMIT_NOFILE below what is open, connection reset",
        "collector",
        out_of_files("collector"),
        "collector",
        r"Too many open files",
    ),
    Fault(
        "F13",
        "strangers at the collector's port",
        "garbage, silence, RST, 200 connections",
        "collector",
        by.strangers,
        "collector",
        r"was refused",
        within=True,
    ),
    Fault(
        "F9",
        "collector too slow",
        "SIGSTOP and SIGCONT by turns: half a percent of a processor",
        "governed",
        by.collector_slow,
        "agent",
        r"collector takes less",
        may_lose=RING,
    ),
    Fault(
        "F32",
        "the path becomes long",
        "relay: 50 ms each way, of a sudden",
        "governed",
        weather(delay_seconds=0.05),
        "agent",
        r"collector takes less",
        may_lose=RING,
    ),
    Fault(
        "F9",
        "an outage that outlasts the ring",
        "SIGSTOP of the collector, ring of 8 MB",
        "governed",
        by.collector_stopped,
        "agent",
        r"silent for 3 s",
        may_lose=RING,
    ),
    # -- its name
    Fault(
        "F12",
        "name server fails",
        "SERVFAIL while the connection breaks",
        "names",
        named("failure"),
        "agent",
        r"last good address",
        within=True,
    ),
    Fault(
        "F12",
        "name server silent",
        "no answer while the connection breaks",
        "names",
        named("nothing"),
        "agent",
        r"last good address",
        within=True,
    ),
    Fault(
        "F12",
        "name poisoned",
        "points to a host that is no collector",
        "names",
        named("10.8.0.1"),
        "agent",
        r"Connection refused",
    ),
    Fault(
        "F13",
        "garbage instead of TLS",
        "another server at the collector's port",
        "names",
        impostor(b"\0" * 600),
        "agent",
        r"speaks no TLS",
    ),
    Fault(
        "F13",
        "half-open TLS",
        "a server that accepts and says nothing",
        "names",
        impostor(None),
        "agent",
        r"did not answer within .*greeting",
    ),
    # -- NICs
    Fault("F6", "link flap", "ip link down, up, 20 times", "nic", by.flaps, "agent", r"eth2 is down"),
    Fault("F7", "NIC gone and made anew", "ip link delete, add", "nic", by.nic_gone, "agent", r"eth2 is gone"),
    Fault(
        "F8", "NIC renamed", "ip link set name", "nic", by.nic_renamed, "agent", r"eth2 is called ens9 now", within=True
    ),
    Fault(
        "F8",
        "MTU and MAC change",
        "ip link set mtu, address",
        "nic",
        commands(
            "vm",
            ("link set eth2 mtu 1400", "link set eth2 address 02:00:00:00:00:78"),
            ("link set eth2 mtu 1500", "link set eth2 address 02:00:00:00:00:77"),
        ),
        "agent",
        "",
    ),
    Fault(
        "F6",
        "the stream's own NIC down",
        "ip link set eth1 down",
        "nic",
        commands("vm", ("link set eth1 down",), ("link set eth1 up",)),
        "agent",
        r"silent for 3 s|unreachable|Network is down",
    ),
    Fault(
        "F8",
        "the stream's own address changes",
        "ip address del, add",
        "nic",
        commands(
            "vm",
            ("address del 10.9.0.2/24 dev eth1", "address add 10.9.0.3/24 dev eth1"),
            ("address del 10.9.0.3/24 dev eth1", "address add 10.9.0.2/24 dev eth1"),
        ),
        "agent",
        r"silent for 3 s|broke",
        within=True,
    ),
    # -- the agent
    Fault(
        "F15",
        "agent killed",
        "kill -9, then started again",
        "agent",
        by.agent_killed,
        "collector",
        r"gone without goodbye",
        gap="unclean",
    ),
    Fault("F16", "agent hangs", "SIGSTOP", "agent", by.agent_paused, "collector", r"silent"),
    Fault(
        "F17",
        "agent upgraded",
        "SIGTERM, then a new process",
        "agent",
        by.agent_restarted,
        "collector",
        r"said goodbye",
        gap="clean",
    ),
    Fault(
        "F18",
        "two agents",
        "a second one taps the same NICs to the same collector",
        "agent",
        by.second_agent,
        "agent",
        "",
    ),
    Fault(
        "F14",
        "clock set by a day",
        "time.time of the agent jumps, forward and back",
        "agent",
        by.clock_set,
        "agent",
        r"clock was set",
        within=True,
    ),
    Fault(
        "F22",
        "agent out of file descriptors",
        "RLIMIT_NOFILE below what is open, connection reset",
        "agent",
        out_of_files("agent"),
        "agent",
        r"Too many open files",
    ),
)


class Elsewhere(NamedTuple):
    """One that a test of its own injects, below tests/."""

    id: str
    title: str
    test: str


ELSEWHERE = (
    Elsewhere("F1", "copies come back, rewritten on the way", "lab/test_bad_input.py::test_a_feedback_loop_is_stopped"),
    Elsewhere(
        "F1",
        "the route to a sensor moves into a tunnel of the VM",
        "lab/test_direct_loops.py::test_a_loop_that_begins_later_is_stopped",
    ),
    Elsewhere("F2", "two VMs tap to each other", "lab/test_direct_loops.py::test_taps_that_send_to_each_other"),
    Elsewhere(
        "F3",
        "super-packets, offloads on and off",
        "lab/test_main_job.py::test_a_bulk_transfer_reassembles_to_the_same_bytes",
    ),
    Elsewhere(
        "F3",
        "super-packets that the kernel cannot describe",
        "lab/test_odd_frames.py::test_undescribable_super_packets_are_counted_and_never_stale",
    ),
    Elsewhere(
        "F4",
        "the path of a direct tunnel becomes narrower",
        "lab/test_direct_faults.py::test_a_path_that_becomes_narrower",
    ),
    Elsewhere("F6", "a hundred link flaps", "lab/test_nic_life.py::test_a_hundred_flaps_leave_no_trace"),
    Elsewhere("F7", "NIC made anew under another name", "lab/test_nic_life.py::test_a_nic_made_anew_is_captured_again"),
    Elsewhere("F7", "NIC away and back", "lab/test_nic_life.py::test_a_nic_that_was_away_is_captured_again"),
    Elsewhere(
        "F9", "collector killed at random moments", "lab/test_tls.py::test_fifty_kills_at_random_moments_cost_nothing"
    ),
    Elsewhere(
        "F9",
        "collector killed or unplugged, another takes over",
        "lab/test_failover.py::test_another_takes_over_and_gives_back",
    ),
    Elsewhere(
        "F9",
        "one of two collectors that get every copy is killed",
        "lab/test_replicate.py::test_one_that_is_killed_costs_the_other_nothing",
    ),
    Elsewhere("F9", "a sensor's port is closed", "lab/test_direct_faults.py::test_a_port_that_nobody_listens_on"),
    Elsewhere("F10", "a sensor's host does not answer", "lab/test_direct_faults.py::test_a_host_that_does_not_answer"),
    Elsewhere(
        "F11", "the route to a sensor goes and comes", "lab/test_direct_faults.py::test_a_route_that_goes_and_comes"
    ),
    Elsewhere(
        "F13",
        "wrong authority, expired, unlisted, plain text, wrong name",
        "lab/test_tls.py::test_everybody_else_is_refused_with_a_sentence_on_both_sides",
    ),
    Elsewhere("F13", "hostile conversations", "lab/test_bad_input.py::test_nothing_that_strangers_send_reaches_others"),
    Elsewhere(
        "F16", "a pause longer than the collector's patience", "lab/test_nic_life.py::test_a_long_pause_is_survived"
    ),
    Elsewhere(
        "F16",
        "one of two collectors that get every copy hangs",
        "lab/test_replicate.py::test_one_that_stands_still_does_not_hold_up_the_other",
    ),
    Elsewhere(
        "F18", "two collectors in one directory", "lab/test_bad_input.py::test_two_collectors_do_not_share_a_directory"
    ),
    Elsewhere("F21", "little free memory", "lab/test_small_limits.py::test_the_ring_takes_a_twentieth_of_what_is_free"),
    Elsewhere(
        "F21",
        "a collector without memory",
        "lab/test_small_limits.py::test_a_collector_without_memory_cuts_off_and_lives",
    ),
    Elsewhere("F22", "small limits of the process", "lab/test_small_limits.py::test_too_little_is_refused"),
    Elsewhere(
        "F22", "no thread for the resolver", "lab/test_small_limits.py::test_a_name_without_a_thread_to_ask_for_it"
    ),
    Elsewhere("F23", "a busy neighbour", "lab/test_governor_pressure.py::test_a_busy_neighbour_is_given_way"),
    Elsewhere(
        "F23", "floods of small packets", "lab/test_governor_recovery.py::test_full_fidelity_is_back_after_each_flood"
    ),
    Elsewhere("F24", "bursts after idle", "lab/test_governor_caps.py::test_bursts_below_the_cap_lose_nothing"),
    Elsewhere("F26", "frames of every shape", "lab/test_odd_frames.py::test_frames_of_every_shape_arrive_unchanged"),
    Elsewhere(
        "F27", "checksums left to the card", "lab/test_segment_kernel.py::test_checksums_of_packets_that_need_no_cut"
    ),
    Elsewhere("F29", "reload under load, bad config", "lab/test_reload.py::test_a_reload_under_load_loses_no_record"),
    Elsewhere("F30", "a kernel that refuses the ring", "lab/test_engine_choice.py::test_a_refused_ring_falls_back"),
    Elsewhere("F31", "started before its NIC", "lab/test_nic_life.py::test_a_late_nic_is_waited_for"),
    Elsewhere(
        "F31",
        "started before its name server",
        "lab/test_operation.py::test_a_name_is_resolved_off_the_loop_and_retried",
    ),
    Elsewhere("F32", "a socket that is full (ENOBUFS, EAGAIN)", "unit/test_way.py::test_a_full_socket_is_waited_for"),
)


class NotHere(NamedTuple):
    """One that does not apply, or can't be injected in the lab."""

    id: str
    title: str
    reason: str


NOT_HERE = (
    NotHere(
        "F14",
        "clock stepped for the whole machine",
        "the machine's clock is everybody's; the agent's own view of it is stepped instead",
    ),
    NotHere("F16", "restart by systemd's watchdog", "needs a systemd that runs; `unit/test_service.py` plays its part"),
    NotHere("F19", "foreign tc programs", "no program, qdisc or tc filter is ours"),
    NotHere(
        "F20",
        "VXLAN port taken by an overlay",
        "no tunnel device is ours; sockets of direct tunnels have ports of their own",
    ),
    NotHere(
        "F25",
        "connection tracking full",
        "`nf_conntrack_max` is the whole machine's; a stream is one connection, a tunnel a few",
    ),
    NotHere("F28", "injection into a tunnel device", "there is none"),
)
