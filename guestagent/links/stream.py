"""The agent's link to collectors over TCP or TLS: the first of the list that is well, for ever.

                 tick: it is time                         collector's hello
    WAITING ─────────────────────► RESOLVING ──► COMING UP ────────────────► UP ──┐
       ▲                              │              │                       │    │ a better one is watched,
       └──────────────────────────────┴── broken: the next address or collector,  │ then the run goes there
                                          after a round that failed a back-off ◄──┘

The run goes on wherever it is: a collector's hello says what it holds of it, the rest is sent again.
"""

import logging
from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from guestagent.endpoint import Endpoint
from guestagent.links.channel import Channel, Phase
from guestagent.links.collectors import ALONE, HEALTHY_PONGS, WITH_OTHERS, Patience, Rota
from guestagent.links.owner import LinkOwner, LinkState, OnTheWire
from guestagent.links.pulse import Loss
from guestagent.links.resolve import Resolver
from guestagent.loop import READABLE, Loop
from guestagent.tapstream.hello import CollectorHello
from guestagent.tapstream.session import Backoff
from guestagent.trust import cleartext_sentence, is_private

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.link")

NAME_SECONDS = 0.8
"""How long the answer of a name server is awaited where an older one would do, or another collector."""
LEAVING_SECONDS = 0.5
"""What was sent to a collector that is left in peace is acknowledged meanwhile, and not sent again to the next."""
SMALL_SEGMENT_BYTES = 1220
"""Fits the least path of IPv6 (RFC 8200, section 5: 1,280 bytes); tried where large packets seem to vanish."""


class Collector:
    """One of the list."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.takeovers = 0
        """Times that it took the run."""
        self.name = f"{endpoint.host}:{endpoint.port}"
        self.resolver = Resolver(endpoint.host, endpoint.port)


class StreamLink:
    """Collectors in order of preference; see `links.owner.Link` for the contract."""

    on_the_wire = OnTheWire()

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        owner: LinkOwner,
        loop: Loop,
        tls: "Credentials | None" = None,
        backoff: Backoff | None = None,
        *,
        allow_cleartext: bool = False,
    ) -> None:
        self._collectors = [Collector(one) for one in endpoints]
        self.state = LinkState(False, f"not yet connected to {', '.join(one.name for one in self._collectors)}")
        self._owner, self._loop, self._tls = owner, loop, tls
        self._allow_cleartext, self._backoff = allow_cleartext, backoff or Backoff()
        self._rota, self._loss = Rota(len(self._collectors)), Loss()
        self._segment_bytes = 0
        for collector in self._collectors:
            loop.watch(collector.resolver, READABLE, partial(self._resolved, collector))
        self.state.destinations = self._describe()
        self._channel: Channel | None = None
        self._watch: Channel | None = None
        self._watch_at = 0
        self._leave_at, self._due_at, self._is_resolving = inf, 0.0, False
        self._reached = 0  # the last frame that was acknowledged when a connection ended

    @property
    def _collector(self) -> Collector:
        return self._collectors[self._rota.at]

    @property
    def is_blocked(self) -> bool:
        """The socket was full at the last pump."""
        return self._channel is not None and self._channel.is_blocked

    # -- time ---------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `tick` is due."""
        if self._channel is None:
            return self._due_at
        due = min(self._channel.deadline(), self._leave_at)
        if self._channel.phase is Phase.STREAMING:
            due = min(due, self._watch.deadline() if self._watch else self._rota.look_at)
        return due

    def tick(self, now: float) -> None:
        """Try again, look for a better collector, ping."""
        if self._watch is not None:
            self._watch.tick(now)
        if self._channel is not None:
            self._look_at_path(now)
            self._channel.tick(now)
            self._look(now)
        elif now >= self._due_at:
            if self._is_resolving and not self._collector.resolver.addresses:
                self._failed(f"the name server did not answer for {self._collector.name} (resolving)")
            elif self._is_resolving:
                self._fall_back("did not answer in time")
                self._connect(now)
            else:
                self._resolve(now)

    def _patience(self) -> Patience:
        is_alone = self._rota.count == 1 and len(self._collector.resolver.addresses) <= 1
        return ALONE if is_alone else WITH_OTHERS

    # -- coming up ----------------------------------------------------------------------------------------------

    def _resolve(self, now: float) -> None:
        self._is_resolving = self._collector.resolver.start()
        is_needed = self._rota.count == 1 and not self._collector.resolver.addresses
        self._due_at = now + (ALONE.connect_seconds if is_needed else NAME_SECONDS)
        if not self._is_resolving:
            self._connect(now)

    def _resolved(self, collector: Collector, _events: int) -> None:
        collector.resolver.collect()
        if self._is_resolving and collector is self._collector:
            if collector.resolver.error and collector.resolver.addresses:
                self._fall_back(f"says: {collector.resolver.error}")
            self._connect(self._loop.now())

    def _fall_back(self, trouble: str) -> None:
        log.warning("the name server %s; %s is taken at its last good address", trouble, self._collector.name)

    def _connect(self, now: float) -> None:
        self._is_resolving = False
        collector = self._collector
        addresses = collector.resolver.addresses
        if not addresses:
            self._failed(f"the name of {collector.name} could not be resolved: {collector.resolver.error}")
            return
        self._channel = self._open(collector, self._rota.address(len(addresses)), now)

    def _open(self, collector: Collector, number: int, now: float, *, watch: bool = False) -> Channel | None:
        address = collector.resolver.addresses[number]
        endpoint = collector.endpoint
        remote = str(address[1][0])
        channel = Channel(collector.name, self, self._owner, self._loop, self.state, patience=self._patience())
        if not (endpoint.is_secure or self._allow_cleartext or is_private(remote)):
            self.broke(channel, cleartext_sentence(f"{endpoint} at {remote}"))
            return None
        try:
            tls = self._tls if endpoint.is_secure else None
            channel.open(address, now, host=endpoint.host, tls=tls, watch=watch, segment_bytes=self._segment_bytes)
        except OSError as error:
            self.broke(channel, f"no connection to {collector.name}: {error.strerror}")
            return None
        return channel

    def welcomed(self, channel: Channel, answer: CollectorHello, now: float) -> None:
        """The collector takes the run."""
        self._owner.resumed(answer)
        self._loss.new_connection()
        self._rota.serves(now)
        self._collector.takeovers += 1
        self._change(True, f"connected to collector {answer.collector_id} at {channel.name}")

    # -- going back ---------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Watch a better collector for a while; leave this one for it in peace."""
        if self._leave_at < inf:
            self._leave(now)
        elif self._watch is None and self._channel is not None and now >= self._rota.look_at:
            self._watch_at = self._rota.look(now)
            better = self._collectors[self._watch_at]
            if self._channel.exclusion:
                self._owner.exclude(self._channel.exclusion)  # stays among the last few that are left out
            if better.resolver.addresses:
                number = int(now) % len(better.resolver.addresses)
                self._watch = self._open(better, number, now, watch=True)
            better.resolver.start()

    def answered(self, channel: Channel, now: float) -> None:
        """A watched collector is well: after the last of several answers the run goes there."""
        if channel.pongs >= HEALTHY_PONGS and self._channel is not None and self._leave_at == inf:
            self._channel.is_leaving = True
            self._leave_at = now + LEAVING_SECONDS

    def _leave(self, now: float) -> None:
        channel, watch = self._channel, self._watch
        if channel is None or watch is None or not (channel.is_settled or now >= self._leave_at):
            return
        self._rota.returned(self._watch_at, now)
        self._channel, self._watch, self._leave_at = watch, None, inf
        channel.finish(f"goes back to {watch.name}")  # it may break at that, and is not ours any more
        channel.close()
        self.state.reconnects += 1
        self._change(False, f"{watch.name} is well again, going back to it")
        watch.greet(now)

    # -- sending ------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> bool:
        """Send what can be sent; True where more could go at once."""
        has_more = self._watch is not None and self._watch.pump(now)
        if self._watch is not None:
            self._look(now)
        return (self._channel is not None and self._channel.pump(now)) or has_more

    def retransmitted(self) -> int | None:
        """Segments that the kernel sent again on this connection."""
        return None if self._channel is None else self._channel.retransmitted()

    def _look_at_path(self, now: float) -> None:
        """Say when the path begins to lose packets, and when that is over."""
        assert self._channel is not None
        if self._channel.phase is not Phase.STREAMING or now < self._loss.due_at:
            return
        self._loss.counted(self._channel.retransmitted() or 0)
        self.state.retransmitted = self._loss.resent
        before, self.state.trouble = self.state.trouble, self._loss.look(now, self.state.sent_bytes)
        if self.state.trouble and not before:
            log.warning("%s: %s", self._channel.name, self.state.trouble)

    def finish(self, reason: str) -> None:
        """Send a BYE behind whatever is being sent."""
        if self._channel is not None:
            self._channel.finish(reason)

    # -- going down ---------------------------------------------------------------------------------------------

    def _change(self, connected: bool, text: str) -> None:
        self.state.connected, self.state.text = connected, text
        self.state.destinations = self._describe()
        self._owner.link_changed(connected, text if connected else f"{text}; the ring holds on")

    def _describe(self) -> list[dict[str, Any]]:
        serves = self._collector if self.state.connected else None
        return [
            {"to": str(one.endpoint), "serves": one is serves, "takeovers": one.takeovers} for one in self._collectors
        ]

    def broke(self, channel: Channel, reason: str) -> None:
        """A connection is over: of the one that serves, or of one that is watched."""
        if channel is self._watch:
            self._drop_watch()
            return
        if self._channel is not None and channel is not self._channel:
            return  # a better one that could not even be opened
        self._drop_watch()
        self._channel = None
        self._segment_bytes = SMALL_SEGMENT_BYTES if channel.is_swallowed and not self._segment_bytes else 0
        self._rota.broke(self._loop.now())
        if channel.phase is Phase.STREAMING:
            self.state.reconnects += 1
            self._backoff.served(progressed=channel.acked_sequence > self._reached)
            self._reached = channel.acked_sequence
        self._failed(reason)

    def cut(self, reason: str) -> bool:
        """End the connection before the memory goes back that it sends; was it streaming?"""
        channel = self._channel
        if channel is None or channel.phase not in (Phase.GREETING, Phase.STREAMING):
            return False
        channel.end(f"{channel.name}: {reason}")
        return channel.phase is Phase.STREAMING

    def _drop_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch, self._leave_at = None, inf
        if self._channel is not None:
            self._channel.is_leaving = False

    def _failed(self, reason: str) -> None:
        self._is_resolving = False
        now = self._loop.now()
        is_round_over = self._rota.failed(len(self._collector.resolver.addresses))
        self._due_at = now + self._backoff.failed(now) if is_round_over else now
        self._change(False, reason)

    def close(self) -> None:
        """Give every descriptor back; idempotent."""
        self._drop_watch()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for collector in self._collectors:
            if collector.resolver.fileno() >= 0:
                self._loop.forget(collector.resolver)
            collector.resolver.close()
