"""What others put into a folder of captures, or in place of one: it costs no capture, and the collector goes on."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.collector.sinks.output import open_file
from guestagent.collector.sinks.shared import single_file
from guestagent.errors import ConfigError
from tests.captures import numbers, open_run, packet
from tests.fakes import PATIENCE_SECONDS, packets_frame, parsed


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """A FIFO can't be cut after a crash: one sentence, and not a bug of ours."""
    path = tmp_path / "all.pcapng"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"all\.pcapng exists and is no capture of guestagent: choose another"):
        single_file(path)


def test_what_can_not_be_cut_is_refused_and_closed(tmp_path: Path) -> None:
    """Where a torn end can't be cut off, as with chattr +a, that is one sentence, and no descriptor stays open."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    keeps = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError, match=r"pipe can't be written: Invalid argument; choose another --write"):
        open_file(path, exclusive=False, whole_bytes=0)
    assert before == os.listdir("/proc/self/fd")
    os.close(keeps)


def test_names_without_a_file_are_passed_over_at_the_start(tmp_path: Path) -> None:
    """A link to a file that was moved away, or a folder with such a name, is nothing to mend."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation()))
    run.frame(parsed(packets_frame(1, [packet(1)])), 0.0)
    assert run.flush(0.0)
    registry.close()
    (tmp_path / "vm-1" / "a.pcapng").symlink_to(tmp_path / "nowhere")
    (tmp_path / "vm-1" / "b.pcapng").mkdir()
    (torn,) = (path for path in (tmp_path / "vm-1").iterdir() if path.is_file())
    whole = torn.read_bytes()
    torn.write_bytes(whole + b"torn")
    DirectorySink(tmp_path, Rotation()).close()
    assert torn.read_bytes() == whole


def test_a_file_that_can_not_be_deleted_costs_no_capture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a folder that takes new files and gives none up, as with chattr +a, the run goes on, and that is said."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1500, retain_bytes=4000)))
    refusal = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    with mock.patch.object(Path, "unlink", side_effect=refusal):
        for sequence in range(1, 61):
            run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
            assert run.flush(0.0)
    assert "-0.pcapng can't be deleted, more than retain_bytes is kept: Operation not permitted" in caplog.text
    registry.close()
    assert 1 in [number for path in (tmp_path / "vm-1").iterdir() for number in numbers(path)]


def test_retention_passes_over_what_is_no_file(tmp_path: Path) -> None:
    """Links and folders with such a name neither count nor go; room is made with captures."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1500, retain_bytes=4000)))
    (tmp_path / "vm-1" / "a.pcapng").symlink_to(tmp_path / "nowhere")
    (tmp_path / "vm-1" / "b.pcapng").mkdir()
    for sequence in range(1, 61):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        assert run.flush(0.0)
    registry.close()
    files = [path for path in (tmp_path / "vm-1").glob("*-*.pcapng") if path.is_file()]
    kept = sorted(number for path in files for number in numbers(path))
    assert list(range(kept[0], 61)) == kept
    assert 2 <= len(files) <= 4


def test_a_collector_whose_reader_left_ends(tmp_path: Path) -> None:
    """With `--write -` nothing can follow once the pipe's other end is closed: report, one sentence, exit code 1."""
    command = [sys.executable, "-m", "guestagent", "collect", "--listen", "tcp://127.0.0.1:0", "--write", "-"]
    report = tmp_path / "report.json"
    collector = subprocess.Popen(
        [*command, "--report", report], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert collector.stdout
    assert collector.stderr
    assert "listens on" in collector.stderr.readline()
    collector.stdout.close()
    try:
        _, said = collector.communicate(timeout=PATIENCE_SECONDS)
    finally:
        collector.kill()
    assert collector.returncode == 1
    assert said.startswith("guestagent: whoever read the packets of --write - is gone")
    assert said.count("\n") == 1
    assert json.loads(report.read_text())["agents"] == {}
