"""libpcap as the compiler of user filters: what it makes, for which handle, and how it refuses."""

import pytest

from guestagent.capture.bpf import Instruction, compose
from guestagent.capture.pcapfilter import compile_filter
from guestagent.errors import ConfigError
from tests.frames import HEADERS_CASES
from tests.kernel_filter import Kernel, in_namespace, needs_root

SKF_AD_VLAN_TAG, SKF_AD_VLAN_TAG_PRESENT = 0xFFFFF000 + 44, 0xFFFFF000 + 48


def compiled(expression: str) -> tuple[Instruction, ...]:
    """The program of an expression for lo."""
    rows = in_namespace(f"print(json.dumps(compile_filter({expression!r}, 'lo')))")
    return tuple(Instruction(*row) for row in rows)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    "expression, selected",
    [
        ("tcp port 4795", {"TCP", "TCP over IPv6"}),
        ("udp", {"UDP", "UDP over IPv6"}),
        ("ip6 and not tcp", {"UDP over IPv6"}),
        ("greater 1", {"TCP", "UDP", "TCP over IPv6", "UDP over IPv6"}),
    ],
)
def test_compiled_filter_selects(expression: str, selected: set[str]) -> None:
    """libpcap's program as filter stage selects in the kernel what the expression says, and `headers` cuts it."""
    cases = [case for case in HEADERS_CASES if case.name in {"TCP", "UDP", "TCP over IPv6", "UDP over IPv6"}]
    with Kernel(compose(user_filter=compiled(expression), slice_="headers")) as kernel:
        lengths = {case.name: length for case in cases if (length := kernel.kept(case.frame)) is not None}

    assert {case.name: case.kept for case in cases if case.name in selected} == lengths


@pytest.mark.root
@needs_root
def test_vlan_asks_the_stripped_tag() -> None:
    """`vlan` is compiled for an activated handle: it loads the tag that the kernel keeps beside the frame."""
    loads = {instruction.k for instruction in compiled("vlan 5") if instruction.code & 0xE7 == 0x20}

    assert {SKF_AD_VLAN_TAG, SKF_AD_VLAN_TAG_PRESENT} <= loads


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    "expression, interface, message",
    [
        ("tcp prt 80", "lo", "the filter 'tcp prt 80' is not a pcap-filter expression: can't parse filter expression"),
        ("tcp and udp", "lo", "expression rejects all packets"),
        ("tcp", "absent0", "there is no such interface"),
    ],
)
def test_bad_filter_is_one_sentence(expression: str, interface: str, message: str) -> None:
    """A bad expression or interface is a ConfigError of one line with libpcap's own words."""
    with pytest.raises(ConfigError) as caught:
        compile_filter(expression, interface)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(preparation: str) -> tuple[str, str]:
    """The error that compile_filter raises after a preparation in the namespace."""
    kind, message = in_namespace(
        preparation
        + """
try:
    compile_filter("tcp", "lo")
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    )
    return kind, message


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    "preparation, message",
    [
        ("import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)", "run with CAP_NET_RAW"),
        ("import ctypes; ctypes.CDLL('libc.so.6').unshare(0x40000000)", "it is down"),
        (
            (
                "from guestagent.capture import pcapfilter as p; p.LIBRARY_NAMES = ('absent.so',)\n"
                "p.ctypes.util.find_library = lambda name: None"
            ),
            "install libpcap0.8 (deb) or libpcap (rpm)",
        ),
    ],
    ids=["no privilege", "interface down", "no libpcap"],
)
def test_host_refusals(preparation: str, message: str) -> None:
    """What the host lacks is a HostError that says what to do."""
    kind, text = refused(preparation)

    assert kind == "HostError"
    assert message in text


@pytest.mark.parametrize("expression, interface", [("tcp\0", "lo"), ("tcp", "l\0o")])
def test_nul_is_refused(expression: str, interface: str) -> None:
    """A NUL, where C would end the string and compile half of the expression, is refused before libpcap is loaded."""
    with pytest.raises(ConfigError, match="NUL"):
        compile_filter(expression, interface)


def test_empty_filter_is_no_program() -> None:
    """No expression needs no libpcap, no interface and no privilege."""
    assert compile_filter(" ", "absent0") == ()


@pytest.mark.root
@needs_root
def test_compiling_leaks_nothing() -> None:
    """Forty compilations, good and bad, leave no descriptor open and not one 256 KB ring mapped."""
    descriptors, grown_bytes = in_namespace("""
        import os
        from guestagent.errors import ConfigError
        def state():
            return len(os.listdir("/proc/self/fd")), int(open("/proc/self/statm").read().split()[0]) * 4096
        def compile_both():
            for expression in "tcp port 80", "tcp prt":
                try:
                    compile_filter(expression, "lo")
                except ConfigError:
                    pass
        compile_both()
        before = state()
        for _ in range(20):
            compile_both()
        print(json.dumps([after - was for was, after in zip(before, state())]))
    """)

    assert descriptors == 0
    assert grown_bytes < 20 * 256 * 1024
