"""A question before the start: would the copies come straight back into the capture?"""

from collections.abc import Sequence

from guestagent.capture.interfaces import links, route_interface, select
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError
from guestagent.links.resolve import is_numeric


def refuse_tunnel_loop(endpoint: Endpoint, interfaces: Sequence[str]) -> None:
    """Raises ConfigError where the way to the collector leads through a tunnel over an interface that is tapped.

    A name is not resolved here; for what only shows later there is the loop detector (governor/feedback.py).
    """
    if endpoint.scheme == "dir" or not is_numeric(endpoint.host):
        return
    name = route_interface(endpoint.host)
    link = links().get(name)
    tapped = [one.name for one in select(interfaces)]
    if link is not None and link.is_tunnel and name not in tapped:
        raise ConfigError(
            f"the way to {endpoint} leads through the tunnel {name}, whose packets would come back into the capture of "
            f"{', '.join(tapped)}: tap {name} instead, or reach the collector outside the tunnel"
        )
