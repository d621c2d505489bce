"""Captures that nobody here made: the test files of tcpdump, from the distribution's source package."""

import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

FETCH = Path(__file__).parent / "fetch_captures.sh"
FOLDER = Path(__file__).parents[1] / ".cache" / "captures"
LINK_TYPE_ETHERNET = 1
_MAGICS = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\x3c\x4d": ">"}


def archive() -> Path:
    """The source archive, fetched once; raises CalledProcessError where the distribution does not answer."""
    found = sorted(FOLDER.glob("tcpdump_*.orig.tar.*z"))
    if not found:
        subprocess.run([FETCH, FOLDER], check=True, capture_output=True, timeout=300)
        found = sorted(FOLDER.glob("tcpdump_*.orig.tar.*z"))
    return found[0]


def ethernet_frames(least: int = 14, most: int = 1514) -> Iterator[bytes]:
    """Every Ethernet frame of every classic pcap file in the archive, in a fixed order."""
    with tarfile.open(archive()) as tar:
        for member in sorted(tar.getmembers(), key=lambda one: one.name):
            if member.name.endswith(".pcap") and (file := tar.extractfile(member)):
                yield from (frame for frame in _frames(file.read()) if least <= len(frame) <= most)


def _frames(data: bytes) -> Iterator[bytes]:
    order = _MAGICS.get(data[:4])
    if order is None or len(data) < 24 or struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF != LINK_TYPE_ETHERNET:
        return
    offset = 24
    while offset + 16 <= len(data):
        captured = struct.unpack_from(order + "I", data, offset + 8)[0]
        offset += 16
        if captured > len(data) - offset:
            return
        yield data[offset : offset + captured]
        offset += captured
