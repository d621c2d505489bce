"""Whoever reaches a collector's port without being an agent: silent, slow, garbled, gone, or half through TLS."""

import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress

from guestagent.tapstream.frames import PREFACE, Kind, encode

Stranger = Callable[[socket.socket, random.Random], None]
MOST_HELD = 200
PAUSE_SECONDS = 0.005
LINGER_NOT = b"\1\0\0\0\0\0\0\0"
"""struct linger: close sends a RST."""


def client_hello() -> bytes:
    """What a TLS client says first, by OpenSSL."""
    context, incoming, outgoing = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="collector").do_handshake()
    return outgoing.read()


def silent(one: socket.socket, _random: random.Random) -> None:
    """Connects, says nothing."""


def garbled(one: socket.socket, moments: random.Random) -> None:
    """Random bytes."""
    one.sendall(moments.randbytes(4000))


def tls_garbage(one: socket.socket, moments: random.Random) -> None:
    """The head of a TLS record and random bytes."""
    one.sendall(b"\x16\x03\x01\x02\x00\x01" + moments.randbytes(200))


_HELLO = client_hello()


def half_open(one: socket.socket, _random: random.Random) -> None:
    """A whole client hello, and no answer to the server's."""
    one.sendall(_HELLO)


def gone(one: socket.socket, _random: random.Random) -> None:
    """Hangs up with a RST."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    one.close()


def slow(one: socket.socket, _random: random.Random) -> None:
    """The preface and half a header; the rest never comes."""
    one.sendall(PREFACE + encode(Kind.HELLO)[:9])


def pinging(one: socket.socket, _random: random.Random) -> None:
    """Asks whether we are well, and never says who it is."""
    one.sendall(PREFACE + encode(Kind.PING))


KINDS: tuple[Stranger, ...] = (
    silent,
    garbled,
    tls_garbage,
    half_open,
    gone,
    slow,
    pinging,
)


def harass(address: str, ports: tuple[int, ...], seed: int = 4795) -> None:
    """Each kind in turn, at random, as many at once as MOST_HELD; until killed."""
    moments, held = random.Random(seed), []
    while True:
        with suppress(OSError):
            one = socket.create_connection((address, moments.choice(ports)), 1.0)
            moments.choice(KINDS)(one, moments)
            held.append(one)
        if len(held) > MOST_HELD:
            held.pop(0).close()
        time.sleep(PAUSE_SECONDS)


def crowd(address: str, port: int, count: int, *kinds: Stranger) -> list[socket.socket]:
    """So many at once, of these kinds by turns; the caller closes them."""
    moments = random.Random(4795)
    held = [socket.create_connection((address, port), 2.0) for _ in range(count)]
    for number, one in enumerate(held):
        kinds[number % len(kinds)](one, moments)
    return held
