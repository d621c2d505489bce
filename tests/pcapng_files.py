"""pcapng files of ours for foreign readers: rows of packets in, and what scapy and the tools read out."""

import shutil
import struct
import subprocess
from io import BytesIO
from typing import Any

import pytest
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from guestagent.capture.block import (
    BlockWriter,
)
from guestagent.collector.sinks import pcapng
from guestagent.model import Interface
from tests.fakes import RUN_ID, interface

RUN = bytes.fromhex(RUN_ID)
FLAGS_OPTION = 2
Row = tuple[bytes, int, int, int, tuple[int, int] | None]

ROWS = st.lists(
    st.tuples(
        st.binary(min_size=14, max_size=90),
        st.integers(0, (2**32 - 1) * 10**9),
        st.integers(0, 5000),
        st.integers(0, 4),
        st.none() | st.tuples(st.integers(0, 0xFFFF), st.sampled_from([0x8100, 0x88A8])),
    ),
    max_size=6,
)


def records_of(rows: list[Row]) -> tuple[memoryview, int]:
    """The run of these records: frame, time, bytes cut off, direction, tag."""
    memory = bytearray(64 + sum(len(row[0]) + 128 for row in rows))
    writer = BlockWriter(memory, 0)
    for frame, time_ns, cut, kind, vlan in rows:
        assert writer.add(frame, time_ns, original_bytes=len(frame) + cut, packet_type=kind, vlan=vlan)
    return memoryview(memory)[writer.start : writer.end], writer.count


def with_tag(frame: bytes, vlan: tuple[int, int] | None) -> bytes:
    """The frame as it was on the wire."""
    return frame if vlan is None else frame[:12] + struct.pack(">HH", vlan[1], vlan[0]) + frame[12:]


def file_of(*parts: bytes, facts: Interface | None = None) -> bytes:
    """A file with one interface and these blocks."""
    head = pcapng.section("a comment", "guestagent 0.1", "Linux")
    return head + pcapng.interface(facts or interface(), "vm-1", "host-1", RUN) + b"".join(parts)


def scapy_packets(data: bytes) -> list[tuple[bytes, Any]]:
    """(frame, metadata) as scapy reads them."""
    return list(RawPcapNgReader(BytesIO(data)))


def raw_packets(data: bytes) -> list[tuple[int, bytes, int]]:
    """(flags option, frame, padding) of each packet block, by the draft and nothing of ours."""
    found, at = [], 0
    while at < len(data):
        kind, total = struct.unpack_from("<II", data, at)
        if kind == 6:
            captured = struct.unpack_from("<I", data, at + 20)[0]
            padded = (captured + 3) & ~3
            code, size, flags, end = struct.unpack_from("<HHII", data, at + 28 + padded)
            assert (FLAGS_OPTION, 4, 0) == (code, size, end)
            assert bytes(padded - captured) == data[at + 28 + captured : at + 28 + padded]
            assert total == 28 + padded + 12 + 4
            found.append((flags, data[at + 28 : at + 28 + captured], padded - captured))
        assert total == struct.unpack_from("<I", data, at + total - 4)[0]
        at += total
    return found


def tool(*command: str) -> str:
    """What a program of Wireshark says."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
