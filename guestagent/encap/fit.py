"""Frames that are longer than a tunnel has room for: split, truncated or dropped, each counted. Pure.

A copy carries 36 to 92 bytes around its frame, so on a network of one MTU each full-size packet is too long for its
tunnel. Outer fragments are no way out: the kernel's tunnels and most tap agents make them, and networks, load
balancers and sensors lose them.

    split     TCP payload is divided over segments that fit, with sequence numbers, flags, lengths and checksums of
              their own: the stream that a sensor reassembles is whole. What can't be split (UDP, ICMP, fragments, SYN
              with data) is truncated.
    truncate  The frame is cut at its end, and its original length told where the format can (pcapng, ERSPAN's T bit).
              This is what AWS traffic mirroring does. A sensor sees all headers, but a gap in each full segment.
    drop      The frame is left out.

The default is `split`: intrusion detection, file extraction and TLS fingerprints all read TCP streams, and after a gap
in each segment they read nothing. The price, for VXLAN in a network of 1,500 bytes: a super-packet becomes 47 frames
instead of 45, a full segment that comes by itself becomes two. What it changes should be known: the segments were so
on no wire, the IPv4 identifications in between are counted on, and a wrong checksum is right in the pieces.
"""

from guestagent.encap.segment import NO_LIMIT, Segmenter, Virtio
from guestagent.encap.segment_cut import WireFrame

POLICIES = ("split", "truncate", "drop")
DEFAULT_POLICY = "split"


class Fitter:
    """Turns records into wire frames of at most `most_frame_bytes`, which may change between two calls."""

    __slots__ = ("dropped", "most_frame_bytes", "policy", "segmenter", "truncated")

    def __init__(self, most_frame_bytes: int, policy: str = DEFAULT_POLICY) -> None:
        self.most_frame_bytes = most_frame_bytes
        """Room for a frame, Ethernet header and VLAN tag included (Tunnel.room)."""
        self.policy = policy
        """One of POLICIES."""
        self.segmenter = Segmenter()
        """Counts all else; `segmenter.split` are the records that were split."""
        self.truncated = 0
        """Frames that lost their end."""
        self.dropped = 0
        """Frames that were left out."""

    def frames(
        self, frame: memoryview, virtio: Virtio, original_bytes: int, tag: tuple[int, int] | None = None
    ) -> list[WireFrame]:
        """Like Segmenter.frames, but none is longer than the room; where the policy drops there may be none.

        A record without offload or tag that fits comes back as it is: a hot loop may spare itself the call.
        """
        room_bytes = self.most_frame_bytes
        limit = room_bytes if self.policy == "split" else NO_LIMIT
        frames = self.segmenter.frames(frame, virtio, original_bytes, tag, most_frame_bytes=limit)
        head, body, _ = frames[0]
        if len(head) + len(body) <= room_bytes:  # no segment is longer than the first
            return frames
        if self.policy == "drop":
            fitting = [one for one in frames if len(one[0]) + len(one[1]) <= room_bytes]
            self.dropped += len(frames) - len(fitting)
            return fitting
        self.truncated += sum(len(head) + len(body) > room_bytes for head, body, _ in frames)
        return [(head[:room_bytes], body[: max(0, room_bytes - len(head))], size) for head, body, size in frames]
