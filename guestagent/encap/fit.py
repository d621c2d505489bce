"""Frames that are longer than a tunnel has room for: split, truncated or dropped, each counted. Pure."""

from guestagent.encap.segment import Segmenter, Virtio
from guestagent.encap.segment_cut import WireFrame

POLICIES = ("split", "truncate", "drop")
DEFAULT_POLICY = "split"


class Fitter:
    """Turns records into wire frames of at most `most_frame_bytes`, which may change between two calls."""

    def __init__(self, most_frame_bytes: int, policy: str = DEFAULT_POLICY) -> None:
        self.most_frame_bytes = most_frame_bytes
        """Room for a frame, tag and Ethernet header included: path MTU less IP, UDP and tunnel headers."""
        self.policy = policy
        self.segmenter = Segmenter()
        self.split = 0
        self.truncated = 0
        self.dropped = 0

    def frames(
        self, frame: memoryview, virtio: Virtio, original_bytes: int, tag: tuple[int, int] | None = None
    ) -> list[WireFrame]:
        """Like Segmenter.frames, but none longer than the room; none at all where the policy drops."""
        raise NotImplementedError
