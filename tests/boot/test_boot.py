"""A machine that boots: cloud-init, the package, real systemd, an older kernel. In this order; each builds on the last.

`make test-boot`, under TCG about six minutes. Absolute times are printed with the other figures; they decide nothing.
"""

import json
import re
import subprocess
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from guestagent import __version__
from guestagent.lab.packets import udp_send
from tests.boot import archive
from tests.boot.conftest import AGENT, CONFIG, PATIENCE_SECONDS, Boot
from tests.boot.vm import HOST_ADDRESS, VM_ADDRESS
from tests.lab.rig import udp_copies
from tests.lab.rig import wait_for as wait_for_seconds

UDP_PORT, UDP_BYTES = 6000, 300
SEGMENTED_PORT, SEGMENT_BYTES, SEGMENTS = 6001, 512, 24
BULK_BYTES, BULK_PORT = 20_000_000, 5201
SLOW_PER_SECOND = 200
UPGRADE_SECONDS = 300
"""At the most: 25 alone on the machine."""
MOST_EXPOSURE = 2.0
CAP_NET_RAW = 1 << 13
pytestmark = pytest.mark.root
wait_for = partial(wait_for_seconds, timeout=PATIENCE_SECONDS)


def tshark(boot: Boot, *words: str) -> list[str]:
    """Lines of what the foreign tool makes of all files of this VM so far."""
    lines: list[str] = []
    for path in boot.rig.files(AGENT):
        done = subprocess.run(["tshark", "-n", "-r", path, *words], capture_output=True, text=True, check=True)
        lines += done.stdout.splitlines()
    return lines


def send(boot: Boot, first: int, count: int, per_second: int = 500) -> None:
    """Datagrams from the host into the VM, whose bytes are those of their index."""
    boot.host.call(udp_send, VM_ADDRESS, UDP_PORT, count, per_second, UDP_BYTES, first_index=first)


def arrived(boot: Boot, first: int, count: int) -> list[int]:
    """Which of these datagrams the files hold, whole."""
    found, _ = udp_copies(boot.rig.frames(AGENT), UDP_PORT, UDP_BYTES)
    return sorted(index for index in found if first <= index < first + count)


def all_arrive(boot: Boot, first: int, count: int) -> None:
    """Send them, and wait until each is in the files, once."""
    send(boot, first, count)
    wait_for(lambda: arrived(boot, first, count) == [*range(first, first + count)], "every datagram in the files")


def first_packet_seconds(boot: Boot, after_ns: int = 0) -> float:
    """From the kernel's start to the first packet that was captured after a time, by the VM's own clock."""
    first_ns = min(frame.time_ns for frame in boot.rig.frames(AGENT) if frame.time_ns > after_ns)
    now, uptime = boot.vm.run("date +%s.%N; cut -d' ' -f1 /proc/uptime").out.split()
    return round(first_ns / 1e9 - (float(now) - float(uptime)), 1)


def facts_of(boot: Boot, *names: str) -> dict[str, str]:
    """What systemd knows of the unit."""
    out = boot.vm.run(f"systemctl show guestagent -p {','.join(names)}").out
    return dict(line.split("=", 1) for line in out.splitlines())


def wait_for_state(boot: Boot, state: str) -> None:
    """`systemctl is-active` says so."""
    wait_for(
        lambda: boot.vm.run("systemctl is-active guestagent", check=False).out.strip() == state,
        f"the unit to be {state}",
    )


def test_cloud_init_brings_the_agent(boot: Boot) -> None:
    """A stock kernel and the rendered user-data are enough: the package is there, the unit is up, packets arrive."""
    wait_for_seconds(boot.collected, "the VM's agent at the collector", 400.0)
    done = boot.vm.run("cloud-init status --wait --long", check=False, timeout=200.0)

    assert "Valid" in boot.vm.run("cloud-init schema --system").out
    assert "status: done" in done.out, done.out + boot.vm.run("tail -n 50 /var/log/cloud-init-output.log").out
    assert "active" == boot.vm.run("systemctl is-active guestagent").out.strip()
    assert "enabled" == boot.vm.run("systemctl is-enabled guestagent").out.strip()
    wait_for(lambda: any(boot.rig.frames(AGENT)), "a packet of the VM")
    assert {"role": "web"} == boot.collected()["tags"]
    assert b"role web" in boot.rig.files(AGENT)[0].read_bytes()
    boot.figures["kernel"] = boot.vm.run("uname -r").out.strip()
    boot.figures["first_boot_to_first_packet_seconds"] = first_packet_seconds(boot)


def test_the_copy_of_a_virtio_nic_is_exact(boot: Boot) -> None:
    """Every datagram into the VM and every byte of a bulk transfer out of it is in the file, as tshark reads it."""
    all_arrive(boot, 0, 2000)
    server = boot.host.popen(["iperf3", "-s", "-1", "-J", "-p", str(BULK_PORT)], stdout=subprocess.PIPE)
    boot.host.wait_for_port(BULK_PORT)
    boot.vm.run(f"iperf3 -c {HOST_ADDRESS} -p {BULK_PORT} -n {BULK_BYTES}")
    # At its end iperf3 resets what still waits in the sender's socket: that never left.
    received = json.loads(server.communicate(timeout=PATIENCE_SECONDS)[0])["end"]["sum_received"]["bytes"]

    def bulk_bytes() -> int:
        return sum(map(int, tshark(boot, "-Y", f"tcp.dstport == {BULK_PORT}", "-T", "fields", "-e", "tcp.len")))

    wait_for(lambda: bulk_bytes() >= received > BULK_BYTES / 2, "the bulk transfer in the files")
    holes = tshark(
        boot, "-Y", f"tcp.port == {BULK_PORT} && (tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment)"
    )
    malformed = tshark(boot, "-Y", "_ws.malformed")

    assert not holes
    assert not malformed
    assert 2000 == len(tshark(boot, "-Y", f"udp.dstport == {UDP_PORT} && udp.length == {UDP_BYTES + 8} && !icmp"))
    ledger = boot.interface()
    assert ledger["captured"] > 2000
    assert (0, 0) == (ledger["dropped_by_ring"], ledger["lost_on_link"])


def test_systemd_sees_a_small_hardened_service(boot: Boot) -> None:
    """Under the live manager: few rights, readiness and status told, no restart; its cost is written down."""
    said = boot.vm.run("systemd-analyze --no-pager security guestagent").out
    exposure = float(re.findall(r"exposure level for guestagent.service: ([0-9.]+)", said)[0])
    facts = facts_of(boot, "MainPID", "NRestarts", "StatusText", "ActiveEnterTimestampMonotonic", "MemoryCurrent")
    facts |= facts_of(boot, "ExecMainStartTimestampMonotonic")
    status = boot.vm.run(f"cat /proc/{facts['MainPID']}/status").out
    rows = dict(re.findall(r"^(\w+):\s*(\S+)", status, re.MULTILINE))

    assert exposure <= MOST_EXPOSURE
    assert CAP_NET_RAW == int(rows["CapEff"], 16) == int(rows["CapBnd"], 16)
    assert "0" != rows["Uid"]
    assert "0" == facts["NRestarts"]
    assert HOST_ADDRESS in facts["StatusText"]
    ring = "awk '/^[0-9a-f]+-/ { is_ring = /socket:/ } /^Rss:/ && !is_ring { kb += $2 } END { print kb }'"
    ready = int(facts["ActiveEnterTimestampMonotonic"]) - int(facts["ExecMainStartTimestampMonotonic"])
    boot.figures |= {
        "exposure": exposure,
        "resident_beside_ring_mb": int(boot.vm.run(f"{ring} /proc/{facts['MainPID']}/smaps").out) / 1000,
        "unit_memory_mb": int(facts["MemoryCurrent"]) / 1e6,
        "start_to_ready_seconds": ready / 1e6,
        "import_seconds": import_seconds(boot),
        "installed_kb": int(boot.vm.run("dpkg-query -W -f='${Installed-Size}' guestagent").out),
        "installed_with_bytecode_kb": int(boot.vm.run("du -sk /usr/lib/guestagent | cut -f1").out),
    }


def import_seconds(boot: Boot) -> float:
    """What `import guestagent.agent` takes in the VM, by the interpreter's own account."""
    command = "PYTHONPATH=/usr/lib/guestagent python3 -X importtime -c 'import guestagent.agent' 2>&1 | tail -n 1"
    return int(boot.vm.run(command).out.split("|")[1]) / 1e6


def test_an_older_kernel_is_met_with_probes(boot: Boot) -> None:
    """Where UDP_SEGMENT makes holes in a ring, `check` says so, the agent does without headers and misses nothing."""
    said = boot.vm.run(f"guestagent check -c {CONFIG}").out
    facts = boot.run_there(Path(__file__).with_name("kernel_facts.py"))
    boot.figures["kernel_facts"] = facts
    boot.figures["check"] = said.splitlines()
    train = f"b''.join(bytes([at]) * {SEGMENT_BYTES} for at in range({SEGMENTS}))"
    boot.vm.run(
        'python3 -c "import socket; s = socket.socket(2, 2); s.setsockopt(17, 103, '
        f"{SEGMENT_BYTES}); s.sendto({train}, ('{HOST_ADDRESS}', {SEGMENTED_PORT}))\""
    )
    fields = ("-T", "fields", "-e", "data.data")
    sent = "".join(f"{at:02x}" * SEGMENT_BYTES for at in range(SEGMENTS))

    has_hole = facts["udp_segment_with_virtio_header"]["stale"] > 0
    assert has_hole == ("can't describe UDP_SEGMENT" in said), said
    assert 0 == facts["udp_segment_without"]["stale"]
    assert 42 + 3 * 512 == facts["udp_segment_without"]["bytes"]
    assert facts["longest_program_swapped"] >= 600
    wait_for(
        lambda: "".join(tshark(boot, "-Y", f"udp.dstport == {SEGMENTED_PORT} && !icmp", *fields)) == sent,
        "the datagrams of one UDP_SEGMENT call, byte for byte",
    )
    assert 0 == boot.interface()["unsupported_gso"]


def test_reload_changes_the_slice_and_refuses_nonsense(boot: Boot) -> None:
    """`systemctl reload` takes a new slice over in the same process; a broken config is refused and changes nothing."""
    before = facts_of(boot, "MainPID")
    original = boot.vm.run(f"cat {CONFIG}").out
    boot.configure(original.replace("full = true", 'full = true\nslice = "headers"'))
    boot.vm.run("systemctl reload guestagent")
    wait_for(lambda: "config was read again: slice" in boot.journal(), "the reload in the journal")
    wait_for_state(boot, "active")
    send(boot, 10_000, 10)
    cut = ("-Y", f"udp.dstport == {UDP_PORT} && frame.cap_len == 42 && !icmp", "-T", "fields", "-e", "frame.len")
    wait_for(lambda: len(tshark(boot, *cut)) == 10, "ten datagrams cut to their headers")

    boot.configure(f"slise = 3\n{original}")
    boot.vm.run("systemctl reload guestagent", check=False)
    wait_for(lambda: "the old one stays in force" in boot.journal(), "the refusal in the journal")
    wait_for_state(boot, "active")
    assert before == facts_of(boot, "MainPID")
    boot.configure(original)
    boot.vm.run("systemctl reload guestagent")
    wait_for(lambda: boot.agent()["limits"]["slice"] == "full", "whole packets again")
    all_arrive(boot, 20_000, 100)


def test_a_broken_config_fails_once_with_a_sentence(boot: Boot) -> None:
    """The unit ends with code 2, `systemctl status` shows the sentence, no capture is left, and it does not loop."""
    original = boot.vm.run(f"cat {CONFIG}").out
    boot.configure(f"slise = 3\n{original}")
    boot.vm.run("systemctl restart guestagent", check=False)
    wait_for_state(boot, "failed")
    time.sleep(3.0)  # longer than RestartSec
    status = boot.vm.run("systemctl status --no-pager -l guestagent", check=False).out
    facts = facts_of(boot, "NRestarts", "ExecMainStatus", "ActiveState")

    sockets = packet_sockets(boot)
    boot.configure(original)
    boot.vm.run("systemctl start guestagent")

    assert "slise is no key" in status
    assert {"NRestarts": "0", "ExecMainStatus": "2", "ActiveState": "failed"} == facts
    assert not sockets
    boot.wait_until_connected()
    all_arrive(boot, 30_000, 100)


def packet_sockets(boot: Boot) -> list[str]:
    """Those that take all protocols, as a capture does; networkd and others have ones for their own."""
    rows = boot.vm.run("cat /proc/net/packet").out.splitlines()[1:]
    return [row for row in rows if row.split()[3] == "0003"]


def test_it_is_there_after_a_reboot(boot: Boot) -> None:
    """Nobody logs in: after a reboot the same VM streams again, and the collector has both runs without a gap."""
    before_ns = max(frame.time_ns for frame in boot.rig.frames(AGENT))
    boot.vm.reboot()
    boot.wait_until_connected()
    all_arrive(boot, 40_000, 100)
    boot.figures["reboot_to_first_packet_seconds"] = first_packet_seconds(boot, before_ns)

    assert 0 == boot.collected()["gaps"]


def test_an_upgrade_under_traffic_costs_one_restart(boot: Boot) -> None:
    """A newer package keeps the config, and of the traffic meanwhile one short stretch alone is missing."""
    settings = boot.vm.run(f"sha256sum {CONFIG}").out
    before = facts_of(boot, "MainPID")
    archive.publish("2", boot.repository)
    most = UPGRADE_SECONDS * SLOW_PER_SECOND
    traffic = boot.host.start(udp_send, VM_ADDRESS, UDP_PORT, most, SLOW_PER_SECOND, UDP_BYTES, first_index=50_000)
    time.sleep(1.0)
    boot.vm.run("apt-get -q update && apt-get -q -y install guestagent", timeout=UPGRADE_SECONDS - 10.0)
    boot.wait_until_connected()
    time.sleep(2.0)
    traffic.terminate()
    send(boot, 50_000 + most, 50)
    wait_for(lambda: len(arrived(boot, 50_000 + most, 50)) == 50, "the last datagrams")
    held = arrived(boot, 50_000, most)
    steps = [after - index for index, after in pairwise(held) if after - index > 1]

    assert f"{__version__}-2" == boot.vm.run("dpkg-query -W -f='${Version}' guestagent").out
    assert settings == boot.vm.run(f"sha256sum {CONFIG}").out
    assert before != facts_of(boot, "MainPID")
    assert len(steps) <= 1, steps
    assert 0 == boot.collected()["gaps"]
    boot.figures["upgrade_gap_seconds"] = sum(steps) / SLOW_PER_SECOND


def test_a_removal_ends_it_and_a_purge_leaves_nothing(boot: Boot) -> None:
    """Removed: no process, no capture, the config stays. Purged: no file, no user, no unit."""
    boot.vm.run("apt-get -q -y remove guestagent")
    left = boot.vm.run("pgrep -a -u guestagent; ls /run/guestagent; systemctl is-active guestagent", check=False)

    assert not re.search("run|sock|^active", left.out, re.MULTILINE), left.out
    assert not packet_sockets(boot)
    boot.vm.run(f"test -e {CONFIG}")
    boot.vm.run("apt-get -q -y purge guestagent")
    left = boot.vm.run("find / -xdev -name '*guestagent*' -not -path '/var/lib/apt/*' -not -path '/proc/*'").out
    unexplained = [path for path in left.split() if not re.match(OURS_OF_CLOUD_INIT, path)]

    assert not unexplained
    assert boot.vm.run("getent passwd guestagent; getent group guestagent", check=False).code != 0
    report = boot.collector.stop()
    assert 0 == report["agents"][AGENT]["gaps"]


OURS_OF_CLOUD_INIT = r"/etc/apt/|/var/lib/cloud/|/var/log/|/var/cache/apt/"
"""The repository's key and source came by cloud-init, logs and downloads are the machine's."""
