"""The collector whose disk is full: what agents send meanwhile stays in their rings."""

from pathlib import Path

from guestagent.tapstream.frames import Kind
from tests.captures import packet, small_disk
from tests.fakes import greeting, packets_frame
from tests.serving import Rig
from tests.unit.test_server import written

ROUNDS = 6
FRAMES = 8
PACKET_BYTES = 500


def test_an_agent_that_comes_back_again_and_again_fills_no_memory(rig: Rig, tmp_path: Path) -> None:
    """While nothing can be written a new connection brings no further frames; once it can, all of them come."""
    waiting = []
    frames = [packets_frame(at, [packet(at, PACKET_BYTES)] * 4) for at in range(1, FRAMES * ROUNDS + 1)]
    with small_disk(0):
        for number in range(1, ROUNDS + 1):
            peer = rig.peer(greeting() + b"".join(frames[: FRAMES * number]))
            rig.until(lambda: any(one.waits_for_sink for one in rig.server.connections.values()))
            for _ in range(20):
                rig.turn()
            (run,) = rig.registry.agents["vm-1"].runs.values()
            waiting.append(sum(map(len, run.track.output._pending)))
            if number < ROUNDS:
                peer.socket.close()
                rig.until(lambda: not rig.server.connections)
    peer.wait_for(Kind.ACK, len(frames))
    assert sorted(written(tmp_path)) == [number for number in range(1, len(frames) + 1) for _ in range(4)]
    assert waiting[-1] == waiting[0], waiting
