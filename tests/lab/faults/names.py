"""A name server that fails on demand, and a VM that asks it alone."""

import socket
import struct
from contextlib import suppress
from pathlib import Path

from guestagent.lab.hosts import Host

PORT = 53
SERVFAIL = 2
TTL_SECONDS = 5
A = 1


class NameServer:
    """Answers every name with one address; `says` changes what it does."""

    def __init__(self, server: Host, client: Host, address: str, directory: Path) -> None:
        self._mode = directory / "names"
        self.says("10.9.0.1")
        server.start(serve, str(self._mode))
        server.wait_for_port(PORT)
        told = directory / "resolv.conf"
        told.write_text(f"nameserver {address}\noptions timeout:1 attempts:1\n")
        client.run(["mount", "--bind", str(told), "/etc/resolv.conf"])  # in the host's own mount namespace

    def says(self, what: str) -> None:
        """An IPv4 address, `failure` or `nothing`."""
        self._mode.write_text(what)


def serve(mode: str) -> None:
    """Answer as the file says, until terminated; runs inside the server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", PORT))
        while True:
            query, asker = udp.recvfrom(512)
            if (what := Path(mode).read_text()) != "nothing":
                with suppress(struct.error, ValueError):
                    udp.sendto(answer(query, what), asker)


def answer(query: bytes, what: str) -> bytes:
    """A response with one A record, with none for other types, or SERVFAIL (RFC 1035, section 4.1)."""
    end = query.index(b"\0", 12) + 5
    (kind,) = struct.unpack_from(">H", query, end - 4)
    has_record = what != "failure" and kind == A
    code = SERVFAIL if what == "failure" else 0
    header = query[:2] + struct.pack(">5H", 0x8180 | code, 1, has_record, 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", A, 1, TTL_SECONDS, 4) + socket.inet_aton(what) if has_record else b""
    return header + query[12:end] + record
