"""Dedupe, heavy and sample in the live kernel: Python's hash bit by bit, real chance, and what the kernel charges."""

from collections.abc import Sequence

import pytest

from guestagent.capture.bpf import Instruction, compose
from guestagent.capture.flowhash import flow_hash
from tests import frames
from tests.bpf_interpreter import kept
from tests.frames import FLOWLESS, FLOWS, PEER4, PEER6, hostile_frames
from tests.kernel_filter import Kernel, in_namespace, needs_root

JSET_K, RET_K = 0x45, 0x06
SEEDS = (0, 0x5EED)
HEADERS = compose(slice_="headers")
TCP4 = frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp()))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernel_computes_the_hash_bit_by_bit(seed: int) -> None:
    """For each bit a program that rejects the flows in whose hash it is set: 32 answers are the kernel's hash."""
    known = [frame for flow in (*FLOWS, *FLOWLESS) for frame in flow.frames if frame]
    tested = [*known, *filter(None, hostile_frames(seed, 2000))]
    hashes = [0] * len(tested)
    *program, _, _, accept = compose(sample=0.5, seed=seed)
    for bit in range(32):
        with Kernel((*program, Instruction(JSET_K, 0, 1, 1 << bit), Instruction(RET_K, 0, 0, 0), accept)) as kernel:
            for i, frame in enumerate(tested):
                hashes[i] |= (kernel.kept(frame) is None) << bit

    assert [flow_hash(frame, seed) or 0 for frame in tested] == hashes


PROGRAMS: dict[str, Sequence[Instruction]] = {
    "sample": compose(sample=0.5),
    "sample, headers": compose(sample=0.5, slice_="headers"),
    "sample, 40 bytes": compose(sample=0.5, slice_=40),
    "heavy": compose(heavy=[flow_hash(flow.frames[0], 0) or 0 for flow in FLOWS[:16]]),
    "heavy without chance": compose(heavy=[flow_hash(flow.frames[0], 0) or 0 for flow in FLOWS[8:]], heavy_fraction=0),
    "dedupe": compose(dedupe=[PEER4, PEER6, "10.0.0.1", "fd00::8"]),
    "all": compose(
        exclusions=frames.EXCLUSIONS, dedupe=[PEER6], heavy=[flow_hash(TCP4, 3) or 0], sample=0.6, seed=3, slice_=100
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernel_and_interpreter_agree(name: str) -> None:
    """Of hostile frames the kernel keeps what the interpreter keeps."""
    with Kernel(PROGRAMS[name]) as kernel:
        wrong = [f.hex() for f in hostile_frames(4, 3000) if f and kernel.kept(f) != kept(PROGRAMS[name], f)]

    assert wrong == []


def test_chance_of_the_kernel_is_fair() -> None:
    """Of a heavy flow a fraction of the packets is kept, of its SYNs all, of other flows all."""
    syn = frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp(flags=2)))
    other = frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp(source=1)))
    program = compose(heavy=[flow_hash(TCP4, 1) or 0], heavy_fraction=0.25, seed=1)
    with Kernel(program) as kernel:
        lengths = [[kernel.kept(frame) for _ in range(4000)] for frame in (TCP4, syn, other)]

    assert 0.2 < sum(length == 54 for length in lengths[0]) / 4000 < 0.3
    assert set(lengths[0]) == {54, None}
    assert [{54}, {len(other)}] == [set(one) for one in lengths[1:]]


@pytest.mark.root
@needs_root
def test_dedupe_on_a_packet_socket() -> None:
    """Of the two copies that lo shows of a peer's packet the incoming one is rejected; without the lease both come."""
    counts = in_namespace("""
        import ctypes
        def kinds(**how):
            program = compose(**how)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
                image = ctypes.create_string_buffer(encode(program))
                tap.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program), ctypes.addressof(image)))
                tap.bind(("lo", 0))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
                    to.bind(("127.0.0.1", 0))
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                        sender.bind(("127.0.0.2", 5000))
                        sender.sendto(bytes(100), to.getsockname())
                        to.recv(200)
                found = []
                try:
                    while True:
                        found.append(tap.recvfrom(2000, socket.MSG_DONTWAIT)[1][2])
                except BlockingIOError:
                    return sorted(found)
        print(json.dumps([kinds(), kinds(dedupe=["127.0.0.2"]), kinds(dedupe=["127.0.0.1", "::1"])]))
    """)

    assert counts == [[0, 4], [4], [0, 4]]


@pytest.mark.root
@needs_root
def test_the_largest_program_can_be_swapped_where_memory_is_short() -> None:
    """Four IPv6 exclusions, a filter, 16 heavy flows, sample and headers fit twice into an optmem_max of 20 KB."""
    done = in_namespace("""
        import ctypes
        four = [Exclusion(6, f"fd00::{n}", 4795, 40000 + n) for n in range(4)]
        program = compose(exclusions=four, loopback=True, user_filter=compile_filter("tcp port 443", "lo"),
                          heavy=range(16), heavy_fraction=0.1, sample=0.5, slice_="headers")
        image = ctypes.create_string_buffer(encode(program))
        try:
            with open("/proc/sys/net/core/optmem_max", "w") as limit:
                limit.write("20480")
        except FileNotFoundError:
            print(json.dumps("one optmem_max"))
        else:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap:
                for _ in range(3):
                    tap.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program), ctypes.addressof(image)))
            print(json.dumps("swapped"))
    """)
    if done == "one optmem_max":
        pytest.skip("this kernel has one optmem_max for all namespaces")

    assert done == "swapped"
