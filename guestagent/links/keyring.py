"""The certificates of this end, loaded only where an endpoint asks for them: TLS costs 4 MB."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from guestagent.endpoint import Endpoint
from guestagent.trust import Transport

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials


def credentials(config: Transport, endpoints: Iterable[Endpoint], *, server_side: bool) -> "Credentials | None":
    """None where no endpoint is tls://. Raises ConfigError for files that are no use."""
    if not any(one.scheme == "tls" for one in endpoints):
        return None
    from guestagent.links.secure import Credentials

    return Credentials(config.tls_ca, config.tls_cert, config.tls_key, server_side=server_side)
