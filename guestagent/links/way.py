"""The way to one sensor: records in; cut to wire size, fitted to the path, wrapped and sent. Agent and relay share it.

What is added waits by lane until it is flushed, so that datagrams of one size stand together and one UDP_SEGMENT
message takes many. Frames of a conversation share a lane and keep their order; those of different lanes do not.
"""

import errno
from bisect import bisect_right
from collections import Counter
from itertools import accumulate, takewhile
from math import inf
from typing import Any

from guestagent.encap.fit import Fitter
from guestagent.encap.segment import NO_OFFLOAD, Virtio
from guestagent.encap.tunnel import Tunnel
from guestagent.links.batch import reason
from guestagent.links.sender import WAITING, Buffer, Sender

Record = tuple[memoryview, Virtio, int, tuple[int, int] | None]
"""Frame, virtio header, original bytes, VLAN tag as (tci, tpid)."""


class Lane:
    """Datagrams that leave through one socket, column by column."""

    __slots__ = ("datagrams", "firsts", "number", "sizes")

    def __init__(self, number: int) -> None:
        self.number = number
        self.datagrams: list[tuple[Buffer, ...]] = []
        self.sizes: list[int] = []
        self.firsts: list[int] = []
        """1 where a record begins, 0 for its further frames: records are what the ledger counts."""

    def add(self, datagram: tuple[Buffer, ...], size: int, first: int) -> None:
        """Behind what is there."""
        self.datagrams.append(datagram)
        self.sizes.append(size)
        self.firsts.append(first)

    def remove(self, count: int) -> None:
        """The first so many have left."""
        del self.datagrams[:count], self.sizes[:count], self.firsts[:count]


class Way:
    """One tunnel through one sender."""

    def __init__(self, tunnel: Tunnel, sender: Sender, policy: str) -> None:
        self.sender = sender
        self.lanes = [Lane(number) for number in range(sender.lanes)]
        """A flow leaves by lane `source_port(flow_hash) % len(lanes)`."""
        self.fitter = Fitter(sender.room_bytes - tunnel.header_bytes, policy)
        self.is_blocked = False
        """The kernel took no more at the last flush: try again in a moment."""
        self.frames = 0
        """Frames that the kernel took."""
        self.frame_bytes = 0
        self.records = 0
        """Records of which the kernel took the first frame."""
        self.lost_records = 0
        """Records of which it did not."""
        self.lost_frames: Counter[str] = Counter()
        """By reason."""
        self._tunnel = tunnel
        self._headers: dict[int, bytes] = {}
        self._sequence = 0
        self._busy: list[Lane] = []
        """Lanes where something waits, in the order in which they leave."""

    @property
    def record_bytes(self) -> int:
        """What a record of one frame takes on the wire beside it."""
        return self.sender.outer_bytes + self._tunnel.header_bytes

    @property
    def is_empty(self) -> bool:
        """Has all left that was added?"""
        return not self._busy

    # -- in -------------------------------------------------------------------------------------------------------

    def add(self, record: Record, lane: Lane, key: int) -> None:
        """Queue the frames of one record, which must not change before they have left."""
        frame, virtio, original_bytes, tag = record
        size = len(frame)
        if not lane.sizes:
            self._busy.append(lane)
        if virtio is NO_OFFLOAD and tag is None and key in self._headers and size <= self.fitter.most_frame_bytes:
            # Most records, and so most of the CPU: no call that can be spared.
            header = self._headers[key]
            lane.datagrams.append((header, frame))
            lane.sizes.append(size + len(header))
            lane.firsts.append(1)
            return
        tci = tag[0] if tag else None
        first = 1
        for head, body, original in self.fitter.frames(frame, virtio, original_bytes, tag):
            size = len(head) + len(body)
            header = self._header(key, size < original, tci)
            lane.add((header, head, body), len(header) + size, first)
            first = 0
        if first:
            self._lose("oversize", 1, 1)
            if not lane.sizes:
                self._busy.pop()

    def _header(self, key: int, is_truncated: bool, tci: int | None) -> bytes:
        if self._tunnel.is_sequenced:
            self._sequence += 1
            return self._tunnel.header(key, self._sequence, tci=tci, is_truncated=is_truncated)
        header = self._headers.get(key)
        if header is None:
            header = self._headers[key] = self._tunnel.header(key)
        return header

    # -- out ------------------------------------------------------------------------------------------------------

    def flush(self, allowed_bytes: float = inf) -> int:
        """Send what waits, or as much as may leave; the bytes that it takes on the wire, outer headers included."""
        self.is_blocked = False
        sent_bytes = 0
        while self._busy and allowed_bytes > sent_bytes and not self.is_blocked:
            lane = self._busy[0]
            count = self._allowed(lane, allowed_bytes - sent_bytes)
            if not count:
                if sent_bytes:
                    break
                count = 1  # a debt of the bucket's, or a cap below a datagram would let none out
            taken, error = self.sender.send(lane.number, lane.datagrams[:count], lane.sizes[:count])
            size = sum(lane.sizes[:taken])
            sent_bytes += size + taken * self.sender.outer_bytes
            self.frames += taken
            self.frame_bytes += size - taken * self._tunnel.header_bytes
            self.records += sum(lane.firsts[:taken])
            lane.remove(taken)
            if error:
                self._obstacle(lane, error)
            if not lane.sizes:
                self._busy.pop(0)
        return sent_bytes

    def _allowed(self, lane: Lane, allowed_bytes: float) -> int:
        """How many datagrams may leave."""
        if allowed_bytes == inf:
            return len(lane.sizes)
        outer = self.sender.outer_bytes
        ends = accumulate(size + outer for size in lane.sizes)
        return sum(1 for _ in takewhile(lambda end: end <= allowed_bytes, ends))

    def _obstacle(self, lane: Lane, error: int) -> None:
        if error in WAITING:
            self.is_blocked = True
        elif error == errno.EMSGSIZE and self._narrowed(lane):
            pass
        else:
            self._lose(reason(error), len(lane.sizes), sum(lane.firsts))
            lane.remove(len(lane.sizes))

    def keep(self, most_bytes: int) -> None:
        """Nothing has left for now, and the records go: what waits is copied; what is beyond the bound is lost."""
        room = most_bytes
        for lane in reversed(self._busy):
            room_before = room
            room -= sum(lane.sizes)
            if room < 0:
                count = bisect_right(list(accumulate(lane.sizes)), room_before)
                self._lose("full", len(lane.sizes) - count, sum(lane.firsts[count:]))
                del lane.datagrams[count:], lane.sizes[count:], lane.firsts[count:]
                room = room_before - sum(lane.sizes)
            lane.datagrams[:] = [
                one if len(one) == 2 and isinstance(one[1], bytes) else (one[0], b"".join(one[1:]))
                for one in lane.datagrams
            ]
        self._busy = [lane for lane in self._busy if lane.sizes]

    def move(self, sender: Sender) -> None:
        """Go on through another sender of the same kind, also with what waits; its counters go on, too."""
        self.sender.close()
        sender.inherit(self.sender)
        self.sender = sender
        self.follow_path()

    def follow_path(self) -> None:
        """Fit to what the sender knows of the path from now on."""
        self.fitter.most_frame_bytes = self.sender.room_bytes - self._tunnel.header_bytes

    def _narrowed(self, lane: Lane) -> bool:
        """The path became narrower: fit once more what waits in this lane. False where that would not help."""
        self.follow_path()
        room = self.sender.room_bytes
        if room <= self._tunnel.header_bytes or max(lane.sizes) <= room:
            return False
        waiting = list(zip(lane.datagrams, lane.sizes, lane.firsts, strict=True))
        lane.remove(len(waiting))
        for (header, *pieces), size, first in waiting:
            if size <= room:
                lane.add((header, *pieces), size, first)
                continue
            frame = memoryview(b"".join(pieces))
            fitting = self.fitter.frames(frame, NO_OFFLOAD, len(frame), None)
            for head, body, _ in fitting:
                lane.add((header, head, body), len(header) + len(head) + len(body), first)
                first = 0
            if not fitting:
                self._lose("oversize", 1, first)
        return True

    def _lose(self, why: str, frames: int, records: int) -> None:
        self.lost_frames[why] += frames
        self.lost_records += records

    def describe(self) -> dict[str, Any]:
        """Counters, for status and reports."""
        segmenter = self.fitter.segmenter
        return {
            "frames": self.frames,
            "frame_bytes": self.frame_bytes,
            "calls": self.sender.calls,
            "room_bytes": self.fitter.most_frame_bytes,
            "path_mtu_changes": self.sender.mtu_changes,
            "segmentation": self.sender.segmentation,
            "lost_frames": dict(self.lost_frames),
            "faults": dict(self.sender.faults),
            "super_packets": segmenter.super_packets,
            "split": segmenter.split,
            "truncated": self.fitter.truncated,
            "dropped": self.fitter.dropped,
            "unverifiable": segmenter.unverifiable,
            "not_understood": segmenter.not_understood,
        }
