"""The capture filter in the live kernel: the same frames as for the interpreter, hostile ones, and traffic on lo."""

from collections.abc import Iterator, Sequence

import pytest

from guestagent.capture.bpf import Instruction, compose
from tests import frames
from tests.bpf_interpreter import kept
from tests.frames import EXCLUSIONS, HEADERS_CASES, OWN_CASES, hostile_frames
from tests.kernel_filter import Kernel, in_namespace, needs_root

HEADERS = compose(slice_="headers")
SELF = compose(exclusions=EXCLUSIONS)
BOTH = compose(exclusions=EXCLUSIONS, slice_="headers")


@pytest.fixture(params=[HEADERS, SELF, BOTH], ids=["headers", "self", "self and headers"])
def both_machines(request: pytest.FixtureRequest) -> Iterator[tuple[Kernel, Sequence[Instruction]]]:
    """One program in the kernel, and as it is for the interpreter."""
    with Kernel(request.param) as kernel:
        yield kernel, request.param


def test_headers_table_in_the_kernel() -> None:
    """The kernel keeps of each frame of the table what the table says."""
    with Kernel(HEADERS) as kernel:
        wrong = [(case, got) for case in HEADERS_CASES if (got := kernel.kept(case.frame)) != case.kept]

    assert wrong == []


def test_own_table_in_the_kernel() -> None:
    """The kernel rejects of the frames of the table our own and no other."""
    with Kernel(SELF) as kernel:
        wrong = [case.name for case in OWN_CASES if (kernel.kept(case.frame) is None) != case.ours]

    assert wrong == []


@pytest.mark.parametrize("seed", [1, 2])
def test_kernel_and_interpreter_agree(both_machines: tuple[Kernel, Sequence[Instruction]], seed: int) -> None:
    """Of hostile frames the kernel keeps what the interpreter keeps: the unit tests speak for the kernel."""
    kernel, program = both_machines
    wrong = [frame.hex() for frame in hostile_frames(seed) if kernel.kept(frame) != kept(program, frame)]

    assert wrong == []


def test_no_frame_is_rejected_by_the_kernel() -> None:
    """Without exclusions and filter the kernel keeps something of every hostile frame, the empty one included."""
    with Kernel(HEADERS) as kernel:
        rejected = [frame.hex() for frame in [b"", *hostile_frames(3)] if kernel.kept(frame) is None]

    assert rejected == []


def test_kernel_keeps_super_packets_whole() -> None:
    """`full` keeps a frame of 64 KB, whose bytes lie in fragments of the skb, whole; `headers` finds its header."""
    frame = frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp(bytes(65000))))
    with Kernel(compose()) as full, Kernel(HEADERS) as headers:
        lengths = (full.kept(frame), headers.kept(frame))

    assert (len(frame), 54) == lengths


@pytest.mark.root
@needs_root
def test_packet_socket_on_lo() -> None:
    """On a packet socket of lo each frame comes twice, once with the loopback stage, and our own connection never."""
    counts = in_namespace("""
        import ctypes
        def count(**how):
            program = compose(**how)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
                image = ctypes.create_string_buffer(encode(program))
                tap.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program), ctypes.addressof(image)))
                tap.bind(("lo", 0))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
                    to.bind(("127.0.0.1", 0))
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                        sender.bind(("127.0.0.1", 5000))
                        sender.sendto(bytes(100), to.getsockname())
                        to.recv(200)
                lengths = []
                try:
                    while True:
                        lengths.append(len(tap.recv(2000, socket.MSG_DONTWAIT)))
                except BlockingIOError:
                    return lengths
        print(json.dumps([
            count(),
            count(loopback=True),
            count(loopback=True, slice_="headers"),
            count(exclusions=[Exclusion(17, "127.0.0.1", 5000, 0)]),
            count(exclusions=[Exclusion(17, "127.0.0.1", 5001, 0)], user_filter=compile_filter("udp", "lo")),
            count(user_filter=compile_filter("tcp", "lo")),
        ]))
    """)

    assert counts == [[142, 142], [142], [42], [], [142, 142], []]
