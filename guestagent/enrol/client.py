"""`guestagent enrol`: makes this VM's key here, has the authority sign it, and lays both where the config says.

The server is believed for the authority of the config alone. OpenSSL's own command makes key and request (RFC 2986), as
the agent's packages bring no library for that.
"""

import http.client
import os
import ssl
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from guestagent.config import RunConfig
from guestagent.errors import ConfigError, HostError, PeerError, RunError
from guestagent.identity import agent_id
from guestagent.tapstream.frames import printable
from guestagent.trust import refuse_readable

KEY_MODE, CERTIFICATE_MODE = 0o640, 0o644
PATIENCE_SECONDS, PAUSE_SECONDS, ANSWER_SECONDS = 60.0, 2.0, 15.0
"""At boot the network may come late: so long a server that can't be reached is asked again."""
MOST_ANSWER_BYTES = 16 * 1024
OPENSSL = ("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def enrol(config: RunConfig, config_path: str, host: str, port: int, token_file: str) -> str:
    """A sentence on what is where now; the token's file is removed. Raises GuestagentError."""
    if not (config.tls_ca and config.tls_cert and config.tls_key):
        raise ConfigError(f"{config_path}: [tls] must name ca, cert and key: the first is whom to believe")
    token = _token(token_file)
    name = config.agent_id or agent_id()
    group = os.stat(config_path).st_gid
    with TemporaryDirectory(dir=Path(config.tls_key).parent, prefix=".enrol-") as scratch:
        key, certificate = Path(scratch) / "key", Path(scratch) / "crt"
        request = _request(name, key)
        certificate.write_bytes(_asked(host, port, config.tls_ca, token, request))
        _check_pair(certificate, key, host)
        for path, mode, target in ((key, KEY_MODE, config.tls_key), (certificate, CERTIFICATE_MODE, config.tls_cert)):
            # Whoever may read the config, the service's group, may read the key.
            os.chown(path, -1, group)
            path.chmod(mode)
            path.replace(target)
    Path(token_file).unlink(missing_ok=True)
    return f"{config.tls_cert} and {config.tls_key} hold for {name}"


def _token(path: str) -> str:
    try:
        refuse_readable(path)
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--token-file: {path} can't be read: {reason}") from error
    if not token.isalnum():
        raise ConfigError(f"--token-file: {path} holds no token: `guestagent pki token` makes one")
    return token


def _request(name: str, key: Path) -> bytes:
    """PEM of a request for the name; the key is made on the way and never leaves this machine."""
    command = [*OPENSSL, "-keyout", str(key), "-subj", f"/CN={name}"]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise HostError("enrolling needs the command openssl: install the package openssl") from None
    if done.returncode:
        raise HostError(f"openssl made no key: {printable(done.stderr.decode(errors='replace').strip())}")
    return done.stdout


def _asked(host: str, port: int, ca: str, token: str, request: bytes) -> bytes:
    """The certificate. A server that can't be reached is asked again for a while; one that refuses is not."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigError(f"tls.ca: {ca} is no use: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        line = http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=context)
        try:
            return _post(line, token, request)
        except ssl.SSLError as error:
            raise PeerError(f"{host}:{port} is not believed: {printable(str(error))}") from error
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > until:
                raise RunError(f"{host}:{port} can't be reached: {printable(str(error))}") from error
            time.sleep(PAUSE_SECONDS)
        finally:
            line.close()


def _post(line: http.client.HTTPSConnection, token: str, request: bytes) -> bytes:
    line.request("POST", "/enrol", request, {"Authorization": f"Bearer {token}"})
    answer = line.getresponse()
    body = answer.read(MOST_ANSWER_BYTES)
    if answer.status != http.client.OK:
        said = printable(body.decode(errors="replace").strip()[:300])
        raise PeerError(f"{line.host}:{line.port} refuses: {said}")
    return body


def _check_pair(certificate: Path, key: Path, host: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
    except OSError as error:
        raise PeerError(f"{host} answered with no certificate of our key: {error}") from error
