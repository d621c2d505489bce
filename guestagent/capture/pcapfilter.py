"""The user's pcap-filter expression, compiled by libpcap for one interface.

libpcap is loaded only when there is an expression to compile, and only to compile: the capture itself never uses it.
It must compile on an activated handle. Linux strips a VLAN tag from the frame and keeps it beside the packet; libpcap
knows that only of a handle that is bound to an interface, and for a dead handle (pcap_open_dead) it turns `vlan` into a
look at bytes 12 and 13, where the tag no longer stands.
"""

import ctypes
import ctypes.util
from collections.abc import Iterator
from contextlib import contextmanager

from guestagent.capture.assembler import INSTRUCTION, Instruction, decode
from guestagent.errors import ConfigError, HostError

LIBRARY_NAMES = ("libpcap.so.0.8", "libpcap.so.1")
"""The soname of Debian's package, and everybody else's."""

SNAP_BYTES = 0x40000
"""MAXIMUM_SNAPLEN of libpcap; the accept length of the program, which the composer replaces."""

BUFFER_BYTES = 1
"""Rounded up to one frame: an activated handle has a ring, but nobody will read this one."""

PCAP_ERRBUF_BYTES = 256
PCAP_NETMASK_UNKNOWN = 0xFFFFFFFF
PCAP_ERROR_NO_SUCH_DEVICE = -5
PCAP_ERROR_PERM_DENIED = -8
PCAP_ERROR_IFACE_NOT_UP = -9
PCAP_ERROR_PROMISC_PERM_DENIED = -11
OPTIMIZE = 1

ACTIVATION_ERRORS: dict[int, tuple[type[ConfigError] | type[HostError], str]] = {
    PCAP_ERROR_NO_SUCH_DEVICE: (ConfigError, "there is no such interface; name one that `ip link` shows"),
    PCAP_ERROR_IFACE_NOT_UP: (HostError, "it is down; bring it up first"),
    PCAP_ERROR_PERM_DENIED: (HostError, "permission denied; run with CAP_NET_RAW"),
    PCAP_ERROR_PROMISC_PERM_DENIED: (HostError, "permission denied; run with CAP_NET_RAW"),
}


class BpfProgram(ctypes.Structure):
    """struct bpf_program of <pcap/bpf.h>."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def compile_filter(expression: str, interface: str) -> tuple[Instruction, ...]:
    """The optimized program of an expression; an empty one selects everything and needs no program."""
    if "\0" in expression or "\0" in interface:
        raise ConfigError(f"the filter {expression!r} for interface {interface!r} holds a NUL character; remove it")
    if not expression.strip():
        return ()
    pcap = _library()
    with _activated(pcap, interface, expression) as handle:
        program = BpfProgram()
        arguments = (expression.encode(errors="replace"), OPTIMIZE, PCAP_NETMASK_UNKNOWN)
        if pcap.pcap_compile(handle, ctypes.byref(program), *arguments) != 0:
            message = _text(pcap.pcap_geterr(handle))
            raise ConfigError(f"the filter {expression!r} is not a pcap-filter expression: {message}")
        try:
            return decode(ctypes.string_at(program.instructions or 0, program.length * INSTRUCTION.size))
        finally:
            pcap.pcap_freecode(ctypes.byref(program))


@contextmanager
def _activated(pcap: ctypes.CDLL, interface: str, expression: str) -> Iterator[ctypes.c_void_p]:
    """A live handle of the interface; not promiscuous, and closed at the end whatever happens."""
    error = ctypes.create_string_buffer(PCAP_ERRBUF_BYTES)
    handle = ctypes.c_void_p(pcap.pcap_create(interface.encode(errors="replace"), error))
    if handle.value is None:
        raise HostError(f"libpcap cannot open interface {interface!r}: {_text(error.value)}")
    try:
        pcap.pcap_set_snaplen(handle, SNAP_BYTES)
        pcap.pcap_set_buffer_size(handle, BUFFER_BYTES)
        status = pcap.pcap_activate(handle)
        if status < 0:
            kind, reason = ACTIVATION_ERRORS.get(status, (HostError, _text(pcap.pcap_geterr(handle))))
            raise kind(f"cannot compile the filter {expression!r} for interface {interface!r}: {reason}")
        yield handle
    finally:
        pcap.pcap_close(handle)


def _library() -> ctypes.CDLL:
    """The shared library with the types of what we call; pointers would be cut to 32 bits without."""
    pcap = _load()
    handle = ctypes.c_void_p
    signatures = {
        "pcap_create": (handle, (ctypes.c_char_p, ctypes.c_char_p)),
        "pcap_set_snaplen": (ctypes.c_int, (handle, ctypes.c_int)),
        "pcap_set_buffer_size": (ctypes.c_int, (handle, ctypes.c_int)),
        "pcap_activate": (ctypes.c_int, (handle,)),
        "pcap_geterr": (ctypes.c_char_p, (handle,)),
        "pcap_compile": (
            ctypes.c_int,
            (handle, ctypes.POINTER(BpfProgram), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32),
        ),
        "pcap_freecode": (None, (ctypes.POINTER(BpfProgram),)),
        "pcap_close": (None, (handle,)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(pcap, name)
        function.restype, function.argtypes = result, arguments
    return pcap


def _load() -> ctypes.CDLL:
    for name in LIBRARY_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    found = ctypes.util.find_library("pcap")
    if found is None:
        raise HostError("a filter needs libpcap, which is not installed; install libpcap0.8 (deb) or libpcap (rpm)")
    return ctypes.CDLL(found)


def _text(message: bytes | None) -> str:
    return (message or b"unknown error").decode(errors="replace")
