"""The outlet behind `--tap NAME`: wire-size frames on a TAP device, one for all agents, or with `%a` one for each.

Nobody has to read there. A tool that is too slow loses packets in its own socket, where its own counters tell; the
device takes the next frame all the same.
"""

import hashlib
import logging
from collections import Counter
from contextlib import suppress
from typing import Any

from guestagent.collector.sinks.outlet import unpack
from guestagent.collector.sinks.tapdevice import MOST_NAME_BYTES, TapDevice
from guestagent.encap.segment import NO_OFFLOAD, Segmenter
from guestagent.errors import GuestagentError
from guestagent.model import Interface
from guestagent.tapstream.hello import AgentHello

log = logging.getLogger("guestagent.collector")

AGENT = "%a"
MOST_DEVICES = 64
_HASH_BYTES = 4
LEAST_AGENT_BYTES = 2 * _HASH_BYTES
"""An agent's name that is too long for a device gives way to a hash of so many digits."""
_TAG_BYTES = 4
_NOTHING = memoryview(b"")


def device_name(pattern: str, agent_id: str) -> str:
    """`tap-%a` and `web1` -> `tap-web1`; where that is too long, a hash stands for the agent."""
    name = pattern.replace(AGENT, agent_id)
    if len(name) <= MOST_NAME_BYTES:
        return name
    return pattern.replace(AGENT, hashlib.blake2s(agent_id.encode(), digest_size=_HASH_BYTES).hexdigest())


class TapOutlet:
    """The devices of one collector. Raises HostError, ConfigError."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._devices: dict[str, TapDevice] = {}
        self._runs: Counter[str] = Counter()
        self._removed: Counter[str] = Counter()
        """Counts of devices that are no more."""
        self.segmenter = Segmenter()
        self.lost: Counter[str] = Counter()
        """Records of agents that have no device, by reason."""
        if AGENT not in pattern:
            self._devices[pattern] = TapDevice(pattern)
            self._runs[pattern] = 1

    def open_run(self, hello: AgentHello) -> "TapSpout":
        """Frames of this run to the device of its agent; where there can't be one they are counted."""
        name = device_name(self._pattern, hello.agent_id)
        device = self._devices.get(name)
        if device is None and len(self._devices) >= MOST_DEVICES:
            log.error("agent %s gets no TAP device: there are %d already", hello.agent_id, MOST_DEVICES)
        elif device is None:
            try:
                device = self._devices[name] = TapDevice(name)
                log.info("agent %s is on the TAP device %s", hello.agent_id, name)
            except GuestagentError as error:
                log.error("agent %s gets no TAP device: %s", hello.agent_id, error)
        if device is not None:
            self._runs[name] += 1
        spout = TapSpout(self, device, hello.layout)
        for facts in hello.interfaces:
            spout.interface(facts)
        return spout

    def release(self, device: TapDevice) -> None:
        """A run ended: the device of an agent without runs is removed."""
        self._runs[device.name] -= 1
        if not self._runs[device.name]:
            del self._devices[device.name]
            self._removed += Counter(frames=device.frames, bytes=device.bytes)
            self.lost += device.lost
            device.close()

    def tick(self, now: float) -> None:
        """Nothing depends on time."""

    def deadline(self, now: float) -> float:
        """Never."""
        return float("inf")

    def describe(self) -> dict[str, Any]:
        """For status and report."""
        devices = list(self._devices.values())
        segmenter = self.segmenter
        return {
            "tap": {
                "frames": sum(one.frames for one in devices) + self._removed["frames"],
                "bytes": sum(one.bytes for one in devices) + self._removed["bytes"],
                "lost": dict(sum((one.lost for one in devices), self.lost)),
                "devices": [
                    {"device": one.name, "mtu": one.mtu, "frames": one.frames, "lost": dict(one.lost)}
                    for one in devices
                ],
                "super_packets": segmenter.super_packets,
                "completed": segmenter.completed,
                "unverifiable": segmenter.unverifiable,
                "not_understood": segmenter.not_understood,
            }
        }

    def close(self) -> None:
        """Remove all devices; their counts stay."""
        for name in list(self._devices):
            self._runs[name] = 1
            self.release(self._devices[name])


class TapSpout:
    """Where the records of one run go."""

    def __init__(self, outlet: TapOutlet, device: TapDevice | None, layout: str) -> None:
        self._outlet, self._device, self._layout = outlet, device, layout

    def records(self, interface_id: int, records: memoryview, count: int) -> None:
        """Write the frames of a run of records."""
        device, cut = self._device, self._outlet.segmenter.frames
        if device is None:
            self._outlet.lost["no_device"] += count
            return
        for (frame, virtio, original, tag), _ in unpack(records, count, self._layout):
            if virtio is NO_OFFLOAD and tag is None:
                device.write((frame, _NOTHING, original))
                continue
            for one in cut(frame, virtio, original, tag):
                device.write(one)

    def interface(self, facts: Interface) -> None:
        """Its longest frames shall fit."""
        if self._device is not None:
            with suppress(OSError):  # the device was removed by someone; its frames are counted as lost
                self._device.fit(facts.mtu + _TAG_BYTES)

    def close(self) -> None:
        """The run is over."""
        if self._device is not None:
            self._outlet.release(self._device)
            self._device = None
