"""Small flows of known content, made on one host and found again in a capture: 500 that talk beside an elephant."""

import socket
import time
from collections.abc import Iterator
from functools import reduce
from itertools import cycle, islice
from operator import or_

from guestagent.lab.packets import udp_payload
from guestagent.lab.traffic import fetch_pages
from tests.lab.rig import Frame

NAMES_PORT, PAGES_PORT = 9053, 8080
NAME_FLOWS = 400
NAMES_PER_SECOND = 800
"""Questions; each has an answer, so 1,600 packets."""
NAME_BYTES = 120
PAGES_PER_SECOND = 40
"""Connections of ten packets or so each."""
PAGE_BYTES = 2_000
_TURN_SECONDS = 0.005


def serve_names() -> None:
    """Send every datagram back as it came, until terminated."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        udp.bind(("", NAMES_PORT))
        while True:
            udp.sendto(*udp.recvfrom(2048))


def ask_names(server: str, seconds: float) -> tuple[int, int]:
    """Numbered questions from NAME_FLOWS sockets in turn; how many were asked and answered with the right bytes."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(NAME_FLOWS)]
    asked = answered = 0
    try:
        for one in sockets:
            one.connect((server, NAMES_PORT))
            one.setblocking(False)
        start, turn = time.monotonic(), cycle(sockets)
        while (now := time.monotonic() - start) < seconds:
            for one in islice(turn, int(now * NAMES_PER_SECOND) - asked):
                answered += _drain(one)
                one.send(udp_payload(asked, NAME_BYTES))
                asked += 1
            time.sleep(_TURN_SECONDS)
        time.sleep(0.3)
        return asked, answered + sum(map(_drain, sockets))
    finally:
        for one in sockets:
            one.close()


def _drain(one: socket.socket) -> int:
    count = 0
    while True:
        try:
            payload = one.recv(2048)
        except BlockingIOError:
            return count
        count += payload == udp_payload(int.from_bytes(payload[:8], "big"), NAME_BYTES)


def ask_pages(server: str, seconds: float) -> int:
    """Pages, each over a connection of its own; how many."""
    start, pages = time.monotonic(), 0
    while (now := time.monotonic() - start) < seconds:
        if pages >= now * PAGES_PER_SECOND:
            time.sleep(_TURN_SECONDS)
            continue
        fetch_pages(server, 1, PAGE_BYTES, PAGES_PORT)
        pages += 1
    return pages


class Conversations:
    """What a capture holds of the small flows and of one big TCP flow."""

    def __init__(self, frames: Iterator[Frame], elephant_port: int) -> None:
        self.questions: list[int] = []
        self.answers: list[int] = []
        self.damaged = 0
        """Datagrams that are not what their number says, or cut."""
        self.pages: dict[int, dict[int, bytes]] = {}
        """Payload of the web server's segments by sequence number, by the client's port."""
        self.requests: set[int] = set()
        """Ports of clients that asked for the page."""
        self._elephants: dict[tuple[int, ...], list[Frame]] = {}
        """By the pair of ports: iperf3 speaks about its flow over a connection of its own."""
        for frame in frames:
            self._add(frame, elephant_port)

    def _add(self, frame: Frame, elephant_port: int) -> None:
        data = frame.data
        if data[12:14] != b"\x08\x00":
            return
        ports = int.from_bytes(data[34:36], "big"), int.from_bytes(data[36:38], "big")
        if data[23] == 17 and NAMES_PORT in ports:
            index = int.from_bytes(data[42:50], "big")
            (self.questions if ports[1] == NAMES_PORT else self.answers).append(index)
            self.damaged += data[42:] != udp_payload(index, NAME_BYTES)
        elif PAGES_PORT in ports and data[23] == 6:
            start = 34 + (data[46] >> 4) * 4
            end = 14 + int.from_bytes(data[16:18], "big")
            self.damaged += len(data) < frame.original_bytes
            if ports[1] == PAGES_PORT and data[start:].startswith(b"GET "):
                self.requests.add(ports[0])
            if ports[0] == PAGES_PORT and end > start:
                self.pages.setdefault(ports[1], {})[int.from_bytes(data[38:42], "big")] = data[start:end]
        elif elephant_port in ports:
            self._elephants.setdefault(tuple(sorted(ports)), []).append(frame)

    @property
    def elephant(self) -> list[Frame]:
        """Both directions of the flow with most copies."""
        return max(self._elephants.values(), key=len, default=[])

    @property
    def elephant_flags(self) -> int:
        """All TCP flags that its segments had."""
        return reduce(or_, (frame.data[47] for frame in self.elephant if frame.data[23] == 6), 0)

    def whole_pages(self, page: bytes) -> int:
        """How many connections brought the page, byte for byte."""
        streams = (b"".join(part for _, part in sorted(parts.items())) for parts in self.pages.values())
        return sum(stream.endswith(page) for stream in streams)
