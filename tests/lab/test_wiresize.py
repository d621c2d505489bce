"""`collect --wire-size`: what a user's tools find in the files of a bulk transfer through offloading cards."""

from pathlib import Path

from guestagent.collector.sinks.reader import packets
from guestagent.lab.hosts import Host
from tests.lab.rig import Rig
from tests.lab.test_direct_bulk import BULK_BYTES, PORT, VM, assert_stream, transfer
from tests.lab.wire import tshark


def test_a_file_of_wire_size_frames(rig: Rig, pair: tuple[Host, Host]) -> None:
    """tshark sees no frame beyond 1,514 bytes, no bad checksum, and the very stream; the report counts the frames."""
    vm, peer = pair
    collector = rig.collect(peer, "--wire-size")
    agent = rig.agent(vm, "--filter", f"tcp port {PORT}")
    digest = transfer(peer, vm, VM[4])
    ledger, report = agent.stop(), collector.stop()["agents"]["vm"]
    (path,) = rig.files()
    lengths = [row[2] for row in packets(Path(path).read_bytes())]

    assert ledger["captured"] == ledger["delivered"] == report["received"]
    assert len(lengths) == report["written"] > max(report["received"], BULK_BYTES // 1460)
    assert report["segments"] > 0 == report["unverifiable"] == report["not_understood"]
    assert tshark(path, "-Y", "frame.len > 1514") == []
    assert_stream(path, digest, "tcp")
