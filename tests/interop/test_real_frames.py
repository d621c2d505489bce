"""Frames that nobody here made, and what random damage makes of them, through every parser that sees frames."""

import random
import subprocess
from pathlib import Path

import pytest

from guestagent.capture.block import BlockWriter, MalformedBlock, walk
from guestagent.capture.bpf import compose
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.summary import summarize
from guestagent.model import Exclusion, Interface
from tests.bpf_interpreter import kept
from tests.kernel_filter import Kernel
from tests.real_captures import ethernet_frames

PROGRAMS = {
    "full": compose(),
    "headers": compose(slice_="headers"),
    "a heavy flow that is not there, 96 bytes": compose(heavy=[0], heavy_fraction=0.0, slice_=96),
    "two exclusions, headers": compose(
        exclusions=[Exclusion(6, "192.0.2.77", 4795, 40000), Exclusion(6, "2001:db8::77", 4795, 40001)],
        slice_="headers",
    ),
}
DAMAGES_PER_FRAME = 2


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    """Every Ethernet frame of tcpdump's test captures."""
    try:
        return list(ethernet_frames(least=1, most=65_000))
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        pytest.skip(f"the source package of tcpdump can't be downloaded: {error}")


def _damaged(frames: list[bytes]) -> list[bytes]:
    """Cut, flipped and overwritten copies; the same in each run."""
    chance = random.Random(4795)
    made = []
    for frame in frames:
        for _ in range(DAMAGES_PER_FRAME):
            copy = bytearray(frame[: chance.randint(0, len(frame))])
            for _ in range(chance.randint(0, 4)):
                if copy:
                    copy[chance.randrange(min(len(copy), 80))] = chance.randrange(256)
            made.append(bytes(copy))
    return made


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_rejects_a_frame_and_the_kernel_agrees(frames: list[bytes], name: str) -> None:
    """Whole or damaged, no real frame is rejected, and the kernel keeps what the interpreter says it keeps."""
    program = PROGRAMS[name]
    with Kernel(program) as kernel:
        for frame in filter(None, frames + _damaged(frames)):
            expected = kept(program, frame)
            assert expected is not None, frame.hex()
            assert expected == kernel.kept(frame), frame.hex()


def test_frames_survive_record_and_file(frames: list[bytes], tmp_path: Path) -> None:
    """Every frame comes out of ring record, encoder and file as it went in, and capinfos counts them all."""
    path = tmp_path / "all.pcapng"
    encoder = pcapng.PacketEncoder(has_virtio=True)
    facts = Interface(0, "eth0", "", 1500)
    out = [pcapng.section("test", "guestagent", "Linux"), pcapng.interface(facts, "a", "h", bytes(16))]
    block = BlockWriter(memory := bytearray(1 << 20), 24)
    for number, frame in enumerate(frames):
        if not block.add(frame, number):
            out.append(encoder.encode(memoryview(memory)[block.start : block.end], block.count, 0)[0])
            block = BlockWriter(memory := bytearray(1 << 20), 24)
            assert block.add(frame, number)
    out.append(encoder.encode(memoryview(memory)[block.start : block.end], block.count, 0)[0])
    path.write_bytes(b"".join(out))

    assert frames == [bytes(data) for _, _, _, data in reader.packets(path.read_bytes())]
    told = subprocess.run(["capinfos", "-Mc", path], capture_output=True, check=True, text=True).stdout
    assert str(len(frames)) in told


def test_damaged_frames_upset_no_reader(frames: list[bytes]) -> None:
    """The summary of damaged frames is made without an error."""
    summarize((len(frame), frame) for frame in _damaged(frames))


def test_damaged_runs_of_records_are_refused_or_read_inside(frames: list[bytes]) -> None:
    """A run of real records with flipped bytes is refused, or yields frames inside of it."""
    chance = random.Random(4795)
    for _ in range(300):
        block = BlockWriter(memory := bytearray(1 << 16), 24)
        for frame in chance.sample(frames, 20):
            block.add(frame, 1)
        run = bytearray(memory[block.start : block.end])
        for _ in range(chance.randint(1, 6)):
            run[chance.randrange(len(run))] = chance.randrange(256)
        try:
            records = [record for record in walk(run, block.count) if record]
        except MalformedBlock:
            continue
        assert all(0 <= record[4] <= record[5] <= len(run) for record in records)
