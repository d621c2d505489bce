"""Packet blocks of frames as the wire carried them, for `--wire-size`: super-packets cut before they are written.

What GRO merged at the receiver is reconstructed (encap.segment). All frames of a record have its time.
"""

from guestagent.capture.block import STATUS_CSUM_NOT_READY, walk
from guestagent.collector.sinks.outlet import unpack
from guestagent.collector.sinks.pcapng import packet_block
from guestagent.encap.segment import NO_OFFLOAD, Segmenter


class WireSizeEncoder:
    """What PacketEncoder is, with a packet for each frame; the segmenter counts what it did."""

    def __init__(self, layout: str, segmenter: Segmenter) -> None:
        self._layout, self._segmenter = layout, segmenter
        self._undescribed = 0

    @property
    def checksums_completed(self) -> int:
        """Those of segments among them."""
        return self._segmenter.completed

    @property
    def checksums_left(self) -> int:
        """Partial checksums of frames that were cut short, or that the record does not describe."""
        return self._segmenter.unverifiable + self._undescribed

    def encode(self, records: memoryview, count: int, index: int) -> tuple[bytes, int, int]:
        """(packet blocks, packets, stale records) of one run, for the interface with this index in the file.

        Raises MalformedBlock; then nothing of the run was cut or counted.
        """
        sound = [record for record in walk(records, count) if record is not None]
        cut = self._segmenter.frames
        parts: list[bytes | memoryview] = []
        packets = 0
        for facts, (wire, _) in zip(sound, unpack(records, count, self._layout), strict=True):
            frame, virtio, original_bytes, tag = wire
            self._undescribed += virtio is NO_OFFLOAD and facts[3] & STATUS_CSUM_NOT_READY != 0
            frames = cut(frame, virtio, original_bytes, tag)
            packets += len(frames)
            for one in frames:
                parts += packet_block(index, facts[0], facts[-1], one)
        return b"".join(parts), packets, count - len(sound)
