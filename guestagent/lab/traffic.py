"""Real application traffic for the lab: web pages over both families, names, bulk streams, and the mix of all.

Every client checks what it gets, so a wrong byte on the way is an error and not a statistic. The functions are made
for Host.start and Host.call: plain arguments in, plain values out.
"""

import hashlib
import http.client
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, product

from guestagent.errors import PeerError
from guestagent.lab.packets import udp_payload

HTTP_PORT, DNS_PORT, BULK_PORT = 80, 53, 5001
TIMEOUT_SECONDS = 5.0
DNS_TRIES = 3
DNS_TTL_SECONDS = 60
DNS_HEADER = struct.Struct("!6H")
DNS_RECURSION_DESIRED, DNS_ANSWER_NO_ERROR = 0x0100, 0x8180
DNS_CLASS_INTERNET = 1
DNS_QUESTION_NAME = b"\xc0\x0c"
"""A compression pointer to offset 12, where the question's name stands."""
DNS_ADDRESS_BYTES = {1: 4, 28: 16}
"""Record types A and AAAA."""
DNS_PREFIXES = {1: b"\x0a\x35", 28: b"\xfd\x53"}
"""Answers lie in 10.53.0.0/16 and fd53::/16, so that they are known when seen in a capture."""
BULK_PIECE_BYTES = 65_536
DIGEST_BYTES = 32
ICMP_ECHO_REQUESTS = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
"""By IP version: protocol, type of the request, type of the reply."""
IPV4_HEADER_WORD_BYTES = 4
PING_TIMEOUT_SECONDS = 1.0
MIXED_PAGE_BYTES = (200, 5_000, 100_000)
MIXED_NAMES = 10
MIXED_BULK_BYTES = 2_000_000
MIXED_PAUSE_SECONDS = 0.05
"""Between rounds, so that the demo shows a busy host and not a saturated one."""


def serve_http(port: int = HTTP_PORT) -> None:
    """A web server on both families where GET /N is a page of N bytes, until terminated."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # header and page leave together

        def do_GET(self) -> None:
            body = page(int(self.path.lstrip("/")))
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Say nothing: the terminal is the demo's."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6
        request_queue_size = 128

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    Server(("::", port), Pages).serve_forever()


def fetch_pages(address: str, pages: int = 10, page_bytes: int = 5_000, port: int = HTTP_PORT) -> int:
    """Fetch pages over one connection, check each, and return how many bytes they had."""
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_SECONDS)
    try:
        for _ in range(pages):
            connection.request("GET", f"/{page_bytes}")
            if connection.getresponse().read() != page(page_bytes):
                raise PeerError(f"the web server {address} sent another page than it was asked for")
    finally:
        connection.close()
    return pages * page_bytes


def serve_dns(port: int = DNS_PORT) -> None:
    """A name server over UDP on both families that knows an address for every name, until terminated."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind(("::", port))
        while True:
            query, asker = udp.recvfrom(512)
            with suppress(struct.error, KeyError, ValueError):  # no query that we understand: silence
                udp.sendto(dns_answer(query), asker)


def resolve_names(address: str, names: int = 10, port: int = DNS_PORT) -> int:
    """Ask for A and AAAA of `host-N.lab.example`, check the answers, and return how many came."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.connect((address, port))
        udp.settimeout(TIMEOUT_SECONDS / DNS_TRIES)
        questions = product(range(names), DNS_ADDRESS_BYTES)
        for identity, (number, record_type) in enumerate(questions):
            query = dns_query(identity & 0xFFFF, f"host-{number}.lab.example", record_type)
            if _exchange(udp, query) != dns_answer(query):
                raise PeerError(f"the name server {address} gave another answer than the name has")
    return names * len(DNS_ADDRESS_BYTES)


def dns_query(identity: int, name: str, record_type: int) -> bytes:
    """A standard query with one question."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = labels + b"\0" + struct.pack("!HH", record_type, DNS_CLASS_INTERNET)
    return DNS_HEADER.pack(identity, DNS_RECURSION_DESIRED, 1, 0, 0, 0) + question


def dns_answer(query: bytes) -> bytes:
    """The answer to a query of ours: one address that follows from the name."""
    identity, _, questions, *_ = DNS_HEADER.unpack_from(query)
    end = query.index(b"\0", DNS_HEADER.size) + 5
    record_type, record_class = struct.unpack_from("!HH", query, end - 4)
    size = DNS_ADDRESS_BYTES[record_type]
    address = (DNS_PREFIXES[record_type] + hashlib.sha256(query[DNS_HEADER.size : end]).digest())[:size]
    record = struct.pack("!HHIH", record_type, record_class, DNS_TTL_SECONDS, size) + address
    header = DNS_HEADER.pack(identity, DNS_ANSWER_NO_ERROR, questions, 1, 0, 0)
    return header + query[DNS_HEADER.size : end] + DNS_QUESTION_NAME + record


def serve_bulk(port: int = BULK_PORT, streams: int | None = None) -> list[tuple[int, str]]:
    """Take streams one after the other and answer each with its SHA-256; their sizes and digests in hex."""
    taken: list[tuple[int, str]] = []
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while streams is None or len(taken) < streams:
            stream, _ = server.accept()
            digest, size = hashlib.sha256(), 0
            with stream, suppress(ConnectionError):  # a sender that was killed must not end the server
                while piece := stream.recv(BULK_PIECE_BYTES):
                    digest.update(piece)
                    size += len(piece)
                stream.sendall(digest.digest())
            if streams is not None:
                taken.append((size, digest.hexdigest()))
    return taken


def send_bulk(address: str, size: int = 10_000_000, port: int = BULK_PORT) -> str:
    """Send a stream of known bytes as fast as TCP can; its SHA-256 in hex, which the receiver has confirmed."""
    digest = hashlib.sha256()
    with socket.create_connection((address, port), TIMEOUT_SECONDS) as stream:
        for piece in _stream(size):
            digest.update(piece)
            stream.sendall(piece)
        stream.shutdown(socket.SHUT_WR)
        confirmed = stream.recv(DIGEST_BYTES, socket.MSG_WAITALL)
    if confirmed != digest.digest():
        raise PeerError(f"the stream to {address} arrived with other bytes than were sent")
    return digest.hexdigest()


def ping(address: str, echoes: int = 3) -> int:
    """Send ICMP echo requests one by one and return how many were answered; needs CAP_NET_RAW."""
    version = ipaddress.ip_address(address).version
    protocol, request, reply = ICMP_ECHO_REQUESTS[version]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    identity, answered = os.getpid() & 0xFFFF, 0
    with socket.socket(family, socket.SOCK_RAW, protocol) as icmp:
        icmp.connect((address, 0))
        icmp.settimeout(PING_TIMEOUT_SECONDS)
        for sequence in range(echoes):
            message = struct.pack("!BBHHH", request, 0, 0, identity, sequence) + b"guestagent lab"
            # The kernel sums ICMPv6 on raw sockets; ICMP it leaves to us, and hands over with the IP header.
            summed = message[:2] + _internet_checksum(message) + message[4:]
            icmp.send(summed if version == 4 else message)
            with suppress(TimeoutError):
                while True:
                    packet = icmp.recv(2048)
                    packet = packet[(packet[0] & 0x0F) * IPV4_HEADER_WORD_BYTES :] if version == 4 else packet
                    if packet[0] == reply and packet[4:] == message[4:]:
                        answered += 1
                        break
    return answered


def serve_all() -> None:
    """The peer of `mixed`: web, names and bulk in one process, until terminated."""
    for server in (serve_http, serve_dns):
        threading.Thread(target=server, daemon=True).start()
    serve_bulk()


def mixed(seconds: float, address4: str = "10.9.0.1", address6: str = "fd00:9::1") -> dict[str, int]:
    """All kinds of traffic with a peer, one after the other over both families, until the time is over; the counts."""
    done = {"http_pages": 0, "http_bytes": 0, "dns_answers": 0, "bulk_streams": 0, "bulk_bytes": 0}
    end = time.monotonic() + seconds
    for address in cycle((address4, address6)):
        if time.monotonic() >= end:
            break
        for page_bytes in MIXED_PAGE_BYTES:
            done["http_bytes"] += fetch_pages(address, 1, page_bytes)
            done["http_pages"] += 1
        done["dns_answers"] += resolve_names(address, MIXED_NAMES)
        send_bulk(address, MIXED_BULK_BYTES)
        done["bulk_streams"] += 1
        done["bulk_bytes"] += MIXED_BULK_BYTES
        time.sleep(MIXED_PAUSE_SECONDS)
    return done


def _stream(size: int) -> Iterator[bytes]:
    """`size` known bytes in pieces, no two alike."""
    for start in range(0, size, BULK_PIECE_BYTES):
        yield udp_payload(start // BULK_PIECE_BYTES, min(BULK_PIECE_BYTES, size - start))


def page(size: int) -> bytes:
    """What GET /`size` answers."""
    return b"".join(_stream(size))


def _exchange(udp: socket.socket, query: bytes) -> bytes:
    """A query's answer, asked again as resolvers do when a datagram was lost."""
    for _ in range(DNS_TRIES):
        udp.send(query)
        with suppress(TimeoutError):
            while (answer := udp.recv(512))[:2] != query[:2]:
                pass  # the late answer to an earlier question
            return answer
    raise PeerError(f"the name server {udp.getpeername()[0]} does not answer")


def _internet_checksum(message: bytes) -> bytes:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~(total + (total >> 16)) & 0xFFFF
    return total.to_bytes(2, "big")
