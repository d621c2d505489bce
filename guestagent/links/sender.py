"""Datagrams to one sensor: as many with one system call as can be, none of them ever cut into fragments on the way.

What the network says of them comes back through the sockets' error queues (ip(7), IP_RECVERR): a port that nobody
listens on, a host that does not answer, a router with a smaller MTU. The kernel then fails the next call once, with
nothing sent; so each failure is asked after and the call repeated, before it counts as one.
"""

import errno
import select
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from guestagent.links.batch import MOST_MESSAGES, Batch, reason
from guestagent.links.ramp import ETHERNET_BYTES, IP_BYTES
from guestagent.model import Exclusion

MOST_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of the kernels before 6.9."""
MOST_PAYLOAD_BYTES = 65_507
"""Of an IPv4 packet behind IP and UDP headers; a UDP_SEGMENT message has to keep it, too."""
TRIES = 3
"""Of one call: an error of the past fails it, and another may have come in between."""
WAITING = (errno.EAGAIN, errno.ENOBUFS)
"""The socket's or the device's queue is full: the ring is the buffer, so this is waited for."""
_AMBIGUOUS = (errno.EIO, errno.EINVAL)
"""No checksum offload on the way out or an older kernel, as long as segments are asked for; else a fault."""

_IP_MTU_DISCOVER, _IP_PMTUDISC_DO, _IP_RECVERR, _IP_MTU = 10, 2, 11, 14
"""linux/in.h."""
_IPV6_MTU_DISCOVER, _IPV6_MTU, _IPV6_RECVERR, _IPV6_DONTFRAG = 23, 24, 25, 62
"""linux/in6.h."""
_TC_PRIO_BULK = 2
_DISCARD_PORT = 9
_ERROR_BYTES = 512
"""Room for struct sock_extended_err and the address of who sent it."""
_ERRNO_BYTES = 4
"""Its first field."""

Buffer = bytes | memoryview
Datagram = Sequence[Buffer]
"""Pieces that make one datagram, tunnel header first."""


class Message(NamedTuple):
    """A run of datagrams for one system call: [start, stop) of a list, all of `size` bytes but for a shorter last."""

    start: int
    stop: int
    size: int


def messages(sizes: Sequence[int], most_segments: int) -> list[Message]:
    """The datagrams of these sizes, in order, as runs that one UDP_SEGMENT message can hold."""
    found, at, end = [], 0, len(sizes)
    while at < end:
        size, stop = sizes[at], at + 1
        most = min(end, at + min(most_segments, MOST_PAYLOAD_BYTES // size))
        while stop < most and sizes[stop] == size:
            stop += 1
        if stop < most and sizes[stop] < size:
            stop += 1
        found.append(Message(at, stop, size))
        at = stop
    return found


class Sender:
    """Connected sockets to one address, one for each lane; flows share a lane or have it alone.

    Made, it has its local ports and sends nothing; leave its `exclusions` out of the capture, then `connect`.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        address: tuple[object, ...],
        exclusions: Sequence[Exclusion],
        *,
        header_bytes: int,
        segmented: bool,
    ) -> None:
        self.lanes = len(sockets)
        self.exclusions = tuple(exclusions)
        """What no capture may see; narrow."""
        self.outer_bytes = ETHERNET_BYTES + IP_BYTES[sockets[0].family] + header_bytes
        """What interfaces count around each datagram."""
        self.room_bytes = 0
        """The longest datagram that fits the path, as far as the kernel knows; 0 before `connect`."""
        self.faults: Counter[str] = Counter()
        """What the network or the kernel said of datagrams, by the name of the error."""
        self.mtu_changes = 0
        self.segmentation = "on" if segmented else "off: only UDP has it"
        """Does the kernel cut UDP_SEGMENT messages, and if not, why."""
        self.calls = 0
        self._sockets, self._address = sockets, address
        self._header_bytes = header_bytes
        self._probe = socket.socket(sockets[0].family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        """Never sends. Each connect asks the routes anew, while a socket that is connected tells of old ones."""
        self._batch = Batch(segmented=segmented)
        self._most_segments = MOST_SEGMENTS if segmented else 1
        self._errors = select.epoll()
        for one in sockets:
            _never_fragment(one)
            self._errors.register(one.fileno(), 0)  # errors alone

    @property
    def source(self) -> str:
        """Our own address on the way, once connected."""
        return str(self._sockets[0].getsockname()[0])

    def inherit(self, before: "Sender") -> None:
        """Count on from the sender that this one replaces."""
        self.faults, self.calls, self.mtu_changes = before.faults, before.calls, before.mtu_changes

    def connect(self) -> None:
        """Raises OSError where no way leads to the address."""
        for one in self._sockets:
            one.connect(self._address)
        self._learn_room()

    def send(self, lane: int, datagrams: Sequence[Datagram], sizes: Sequence[int]) -> tuple[int, int]:
        """(datagrams that the kernel took, in order; errno of why not more, or 0).

        EMSGSIZE: the path has become narrower, `room_bytes` says how much. Those of WAITING: try again soon.
        """
        segments = self._most_segments
        found = messages(sizes, segments)
        done = failures = 0
        while done < len(found):
            part = found[done : done + MOST_MESSAGES]
            taken, number = self._call(lane, datagrams, sizes, part)
            done += taken
            if not number:
                failures = 0
                continue
            failures += 1
            rest = found[done].start
            if self._is_final(lane, number, part[0], failures):
                if number in _AMBIGUOUS:
                    # Kernels before 6.14 say so of segments that have become too long, others of a blackhole route.
                    is_narrower = part[0].size > self.room_bytes
                    self.faults[reason(number)] += not is_narrower
                    number = errno.EMSGSIZE if is_narrower else number
                return rest, number
            if self._most_segments < segments:
                taken, number = self.send(lane, datagrams[rest:], sizes[rest:])
                return rest + taken, number
        return len(datagrams), 0

    def _call(
        self, lane: int, datagrams: Sequence[Datagram], sizes: Sequence[int], part: Sequence[Message]
    ) -> tuple[int, int]:
        whole = b"".join(chain.from_iterable(datagrams[part[0].start : part[-1].stop]))
        lengths = [sum(sizes[one.start : one.stop]) for one in part]
        self.calls += 1
        return self._batch.send(self._sockets[lane].fileno(), whole, lengths, [one.size for one in part])

    def _is_final(self, lane: int, number: int, first: Message, failures: int) -> bool:
        """What to do after a call that took nothing: give up, or repeat it; room and faults are up to date then."""
        if number in WAITING:
            return True
        if not self._drain(lane):
            self.faults[reason(number)] += number not in (errno.EMSGSIZE, *_AMBIGUOUS)
        self._learn_room()
        if number in _AMBIGUOUS and first.size <= self.room_bytes and self._most_segments > 1:
            # No checksum offload on the way out, or an older kernel: the same datagrams go one by one from now on.
            self._most_segments = 1
            self._batch = Batch(segmented=False)
            self.segmentation = f"off: the kernel refused it ({reason(number)})"
            return False
        return first.size > self.room_bytes or failures >= TRIES

    def check(self) -> None:
        """Hear what the network said meanwhile; a path may also have become wider."""
        ready = {descriptor for descriptor, _ in self._errors.poll(0)}
        for lane, one in enumerate(self._sockets):
            if one.fileno() in ready:
                self._drain(lane)
        self._learn_room()

    def _drain(self, lane: int) -> int:
        """Empty the error queue of one socket; how many it held."""
        one, numbers = self._sockets[lane], []
        pending = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        while True:
            try:
                _, extras, _, _ = one.recvmsg(0, _ERROR_BYTES, socket.MSG_ERRQUEUE)
            except OSError:
                break
            numbers += [int.from_bytes(data[:_ERRNO_BYTES], sys.byteorder) for _, _, data in extras]
        if pending and not numbers:
            numbers.append(pending)
        # A narrower path is no fault: the room says so.
        self.faults.update(reason(number) for number in numbers if number != errno.EMSGSIZE)
        return len(numbers)

    def _learn_room(self) -> None:
        family = self._probe.family
        option = (socket.IPPROTO_IPV6, _IPV6_MTU) if family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_MTU)
        host, port, *scope = self._address
        try:
            self._probe.connect((host, port or _DISCARD_PORT, *scope))
            mtu = self._probe.getsockopt(*option)
        except OSError:  # no route at this moment; the way that was is the best guess
            return
        room = min(MOST_PAYLOAD_BYTES, mtu - IP_BYTES[family] - self._header_bytes)
        self.mtu_changes += self.room_bytes not in (0, room)
        self.room_bytes = room

    @property
    def is_astray(self) -> bool:
        """Is the address gone from which the sockets send? They keep it, and nothing leaves any more."""
        host, _, *scope = self._sockets[0].getsockname()
        try:
            with socket.socket(self._probe.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
                one.bind((host, 0, *scope))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
        return False

    def close(self) -> None:
        """Give all descriptors back."""
        self._errors.close()
        self._probe.close()
        for one in self._sockets:
            one.close()


def _never_fragment(one: socket.socket) -> None:
    """DF, errors by the queue, and behind production traffic in the queue of the device."""
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _TC_PRIO_BULK)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DO)
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        one.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        one.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
