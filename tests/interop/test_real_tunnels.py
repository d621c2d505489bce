"""Tunnels in captures that nobody here made: our decoders find in them what tshark finds."""

import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from guestagent.encap.inner import UDP, network
from guestagent.encap.tunnel import TUNNELS, MalformedTunnel, unwrap
from tests.real_captures import ethernet_frames

KEYS = {"vxlan": "vxlan.vni", "geneve": "geneve.vni", "gre": "gre.key", "erspan": "erspan.spanid"}
"""tshark's name of each scheme's key."""


def datagrams(frames: list[bytes]) -> list[tuple[str, int, memoryview]]:
    """(scheme, number of the frame, datagram) of every tunnel on its default port, over untagged IP."""
    found = []
    for number, frame in enumerate(frames):
        view = memoryview(frame)
        try:
            outer = network(view, 14, int.from_bytes(frame[12:14], "big"))
        except (IndexError, struct.error):
            continue
        if outer is None:
            continue
        port = int.from_bytes(frame[outer.end + 2 : outer.end + 4], "big") if outer.protocol == UDP else 0
        for scheme, tunnel in TUNNELS.items():
            if (tunnel.transport, tunnel.port) == (outer.protocol, port):
                found.append((scheme, number, view[outer.end + 8 * (outer.protocol == UDP) :]))
    return found


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    """Every Ethernet frame of tcpdump's test captures."""
    try:
        return list(ethernet_frames(least=1, most=65_000))
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        pytest.skip(f"the source package of tcpdump can't be downloaded: {error}")


def told_by_tshark(frames: list[bytes], path: Path) -> list[dict[str, str]]:
    """The key of each scheme, as text, that tshark's dissectors find in each frame."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for frame in frames:
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
    fields = [word for field in KEYS.values() for word in ("-e", field)]
    argv = ["tshark", "-n", "-r", path, "-T", "fields", "-E", "occurrence=f", *fields]
    told = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    return [dict(zip(KEYS, row.split("\t"), strict=True)) for row in told.splitlines()]


def test_real_tunnels_have_the_keys_that_tshark_sees(frames: list[bytes], tmp_path: Path) -> None:
    """Each VXLAN and GENEVE datagram is read with tshark's VNI, or refused for a reason that holds for it."""
    found = datagrams(frames)
    told = told_by_tshark([frames[number] for _, number, _ in found], tmp_path / "tunnels.pcap")
    read, refused = Counter(), Counter()
    for (scheme, _, datagram), keys in zip(found, told, strict=True):
        try:
            layers = unwrap(scheme, datagram)
        except MalformedTunnel as refusal:
            refused[scheme, str(refusal)] += 1
            continue
        assert layers[0].key == int(keys[scheme], 0)
        read[scheme] += 1

    assert read["vxlan"] > 0
    assert read["geneve"] > 0
    reasons = {sentence for _, sentence in refused}
    assert all("critical" in one or "version 1" in one or "RFC 1701" in one for one in reasons), reasons
