"""What is said to the kernel over rtnetlink, and what it answers."""

import socket
import struct
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent import netlink

RTM_GETLINK, RTM_GETSTATS, NO_SUCH_KIND = 18, 94, 0x3FFE
NO_DEVICE = 2**31 - 1

found_attributes = st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=8)


def packed(attributes: dict[int, bytes]) -> bytes:
    """Each padded to four bytes, as the kernel does."""
    return b"".join(netlink.attribute(kind, data) + bytes(-len(data) % 4) for kind, data in attributes.items())


@given(found_attributes)
def test_attributes_are_found_as_they_were_packed(attributes: dict[int, bytes]) -> None:
    """Of any length, with the padding between them left out, and the flags of nested ones too."""
    assert netlink.attributes(packed(attributes)) == attributes
    assert netlink.attributes(packed({kind | 0x8000: data for kind, data in attributes.items()})) == attributes


@given(found_attributes, st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 300))
def test_what_is_cut_short_is_left_out(attributes: dict[int, bytes], bodies: list[bytes], size: int) -> None:
    """What was found before the cut is as it is without it."""
    whole = packed(attributes)
    answer = b"".join(netlink.question(7, body) + bytes(-len(body) % 4) for body in bodies)

    assert netlink.attributes(whole[:size]).items() <= attributes.items()
    found = list(netlink.messages(answer[:size]))
    assert found == [(7, body) for body in bodies][: len(found)]
    assert list(netlink.messages(answer)) == [(7, body) for body in bodies]


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_to_their_end(data: bytes) -> None:
    """A size that lies, zero too, ends the walk; nothing is raised and nothing runs on."""
    assert sum(len(body) for _, body in netlink.messages(data)) <= len(data)
    assert sum(map(len, netlink.attributes(data).values())) <= len(data)
    assert netlink.word(netlink.attributes(data), 1) >= 0


def test_the_kernel_answers_with_every_device() -> None:
    """A dump of links has lo among them, with its name and its index."""
    named = {
        netlink.attributes(body[16:])[3].rstrip(b"\0"): struct.unpack_from("=i", body, 4)[0]
        for body in netlink.ask(RTM_GETLINK, bytes(16), netlink.DUMP)
    }

    assert named[b"lo"] == socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    "kind, body",
    [(NO_SUCH_KIND, bytes(16)), (RTM_GETSTATS, struct.pack("=4xII", NO_DEVICE, 1))],
    ids=["kind", "device"],
)
def test_what_the_kernel_refuses_is_an_error(kind: int, body: bytes) -> None:
    """With the kernel's own number for it."""
    with pytest.raises(OSError, match="refused") as caught:
        list(netlink.ask(kind, body))

    assert caught.value.errno


def test_a_socket_waits_or_not_as_asked() -> None:
    """Nobody waits for a kernel that has nothing to say unless that was meant."""
    with closing(netlink.open_socket()) as impatient, closing(netlink.open_socket(blocking=True)) as patient:
        with pytest.raises(BlockingIOError):
            impatient.recv(1)
        assert patient.getblocking()
