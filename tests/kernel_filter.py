"""Ways to run a filter in the live kernel: a socket pair for everybody, a network namespace for root."""

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Self

import pytest

from guestagent.capture.bpf import Instruction, encode

SO_ATTACH_FILTER = 26
RECEIVE_BYTES = 1 << 18

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace and a packet socket need root")


class Kernel:
    """A pair of AF_UNIX datagram sockets with a program on the receiving one.

    Such a socket runs its filter on what is sent to it and cuts the datagram to the accept length, as a packet socket
    does with a frame; and it needs no privilege.
    """

    def __init__(self, program: Sequence[Instruction]) -> None:
        self._sender, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        image = ctypes.create_string_buffer(encode(program))
        argument = struct.pack("HP", len(program), ctypes.addressof(image))
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, argument)

    def kept(self, frame: bytes) -> int | None:
        """How many bytes the kernel keeps of the frame, or None where it rejects it."""
        self._sender.send(frame)
        try:
            return len(self._receiver.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._receiver.close()


# Libpcap needs a packet socket for its live handle, and lo has to be up and quiet. So each test of it has a network
# namespace, in a process of its own: `unshare` of this process would move the tests that follow as well.

PROLOGUE = """
import fcntl, json, socket, struct
from guestagent.capture.bpf import compose, encode
from guestagent.capture.pcapfilter import compile_filter
from guestagent.model import Exclusion
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
"""


def in_namespace(script: str) -> Any:
    """Run a script behind PROLOGUE in a fresh network namespace with lo up; what it prints, as JSON."""
    command = ["unshare", "--net", sys.executable, "-c", PROLOGUE + textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
