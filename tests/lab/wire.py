"""What a host's interface sees, as plain values; and frames that say which one they are."""

import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from guestagent.lab.packets import SO_RCVBUFFORCE, ethernet, inject

MARK = bytes.fromhex("02000000abcd")
"""Source MAC address of injected frames."""
PATIENCE_SECONDS = 15.0
"""For the first frame, on a machine that has other tests to run."""
_SOL_PACKET, _PACKET_AUXDATA, _TP_STATUS_VLAN_VALID = 263, 8, 1 << 4
_AUXDATA = struct.Struct("@IIIHHHH")
"""struct tpacket_auxdata (linux/if_packet.h): status, lengths, offsets, VLAN's TCI and TPID."""
_ETH_P_ALL = 3
_OUTGOING = 4


def marked_frames(count: int, longest_bytes: int) -> list[bytes]:
    """IPv4 UDP frames of every length up to the longest, over many flows, each with its number."""
    frames = []
    for number in range(count):
        size = 60 + number * 37 % (longest_bytes - 59)
        payload = number.to_bytes(4, "big") + bytes((number * at) & 0xFF for at in range(size - 46))
        udp = struct.pack(">HHHH", 20_000 + number % 50, 9000, 8 + len(payload), 0) + payload
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), number, 0, 64, 17, 0, b"\x0a\x63\0\1", b"\x0a\x63\0\2"
        )
        frames.append(ethernet(ip + udp, 0x0800, "02:00:00:00:00:99", MARK.hex(":")))
    return frames


def inject_all(ifname: str, frames: Iterable[bytes]) -> None:
    """Put frames on the wire at a pace that no receiver minds."""
    inject(ifname, frames, 20_000)


def seen_frames(
    ifname: str, quiet_seconds: float, mark: bytes = b"", *, most: int = 1 << 20, patience: float = PATIENCE_SECONDS
) -> list[bytes]:
    """Frames that come in on an interface until none comes for so long, or until `most`; with a mark those that have it
    anywhere. None at all is waited for with patience."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        tap.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        tap.bind((ifname, _ETH_P_ALL))
        tap.settimeout(0.05)
        end, found = time.monotonic() + patience, []
        while time.monotonic() < end and len(found) < most:
            try:
                data, ancillary, _, about = tap.recvmsg(1 << 17, socket.CMSG_SPACE(_AUXDATA.size))
            except TimeoutError:
                continue
            frame = _with_tag(data, ancillary[0][2])
            if about[2] != _OUTGOING and mark in frame:
                found.append(frame)
                end = time.monotonic() + quiet_seconds
        return found


def _with_tag(data: bytes, auxiliary: bytes) -> bytes:
    """The kernel takes a VLAN tag out of a frame and tells it beside (packet(7), PACKET_AUXDATA)."""
    status, *_, tci, tpid = _AUXDATA.unpack(auxiliary)
    return data[:12] + struct.pack("!HH", tpid, tci) + data[12:] if status & _TP_STATUS_VLAN_VALID else data


def write_pcap(path: Path, frames: Iterable[bytes]) -> None:
    """A file for tshark."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
        for frame in frames:
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def tshark(path: Path, *options: str) -> list[str]:
    """The lines that tshark prints."""
    command = ["tshark", "-r", str(path), *options]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout.splitlines()


def is_watched(ifname: str = "") -> bool:
    """Does a packet socket listen on this host, or on this interface of it?"""
    sockets = [line.split() for line in Path("/proc/net/packet").read_text(encoding="ascii").splitlines()[1:]]
    return any(not ifname or int(fields[4]) == socket.if_nametoindex(ifname) for fields in sockets)


def snmp(kind: str) -> dict[str, int]:
    """The counters of one protocol in /proc/net/snmp: `Ip`, `Udp`, `Icmp`."""
    lines = Path("/proc/net/snmp").read_text(encoding="ascii").splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith(f"{kind}:"))
    return dict(zip(names, map(int, values), strict=True))


def snmp6() -> dict[str, int]:
    """All counters of /proc/net/snmp6."""
    lines = Path("/proc/net/snmp6").read_text(encoding="ascii").splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


def fragments() -> int:
    """IP fragments that this host made or met."""
    old, new = snmp("Ip"), snmp6()
    return sum(
        (
            *(old[name] for name in ("ReasmReqds", "FragCreates")),
            *(new[name] for name in ("Ip6ReasmReqds", "Ip6FragCreates")),
        )
    )
