"""`guestagent pki`: a small private CA for those who have none. pyca/cryptography does the certificates.

    pki init             DIR/ca.crt, DIR/ca.key: the authority; its key belongs on no agent and no collector
    pki agent NAME       DIR/NAME.crt, DIR/NAME.key: may connect, as NAME
    pki collector NAME   DIR/NAME.crt, DIR/NAME.key: may be connected to, as NAME and each --host

An agent's certificate is no collector's: a stolen one can't pose as the place where copies go (RFC 5280, 4.2.1.12).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from guestagent.errors import ConfigError, HostError
from guestagent.tapstream.hello import is_name
from guestagent.trust import refuse_readable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

CA_DAYS = 3650
LEAF_DAYS = 397
"""As long as browsers grant servers: long enough to plan a renewal, short enough that it is practised."""
SKEW = timedelta(hours=1)
"""A VM whose clock is behind may use a certificate that was just made."""
NEEDS = "`guestagent pki` needs pyca/cryptography: install python3-cryptography, or pip install 'guestagent[pki]'"
KEY_MODE, CERTIFICATE_MODE, DIRECTORY_MODE = 0o600, 0o644, 0o700


def make(what: str, name: str, hosts: Sequence[str], directory: str) -> str:
    """Make the authority or one certificate; a sentence on what is where. Raises ConfigError, HostError."""
    try:
        from cryptography import x509  # noqa: F401 - is it there?
    except ImportError:
        raise HostError(NEEDS) from None
    folder = Path(directory)
    if what == "init":
        return _init(folder)
    if not is_name(name):
        raise ConfigError(f"pki {what}: {name!r} must be 1 to 64 of A-Z a-z 0-9 . _ -, the name of the {what}")
    if hosts and what == "agent":
        raise ConfigError("pki agent: --host is for collectors; an agent is known by its name alone")
    return _leaf(folder, name, hosts, is_collector=what == "collector")


def _init(folder: Path) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "guestagent CA")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(subject, subject, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    _write(folder, "ca", key, _signed(builder, key))
    return f"the authority is {folder}/ca.crt; keep {folder}/ca.key off agents and collectors"


def _leaf(folder: Path, name: str, hosts: Sequence[str], *, is_collector: bool) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    names = list(dict.fromkeys([name, *hosts]))
    _write(folder, name, key, _certified(folder, key.public_key(), names, is_collector=is_collector))
    return f"{folder}/{name}.crt and {folder}/{name}.key hold for {', '.join(names)}, {LEAF_DAYS} days"


def _certified(
    folder: Path, key: "EllipticCurvePublicKey", names: Sequence[str], *, is_collector: bool
) -> "x509.Certificate":
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca_certificate, ca_key = _authority(folder)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if is_collector else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(subject, ca_certificate.subject, key, LEAF_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return _signed(builder.add_extension(issuer, critical=False), ca_key)


def certify_request(folder: Path, name: str, request: bytes) -> bytes:
    """PEM of a certificate for the agent whose request this is (RFC 2986), kept as DIR/NAME.crt, too.

    Of the request only the key counts. Raises ConfigError, HostError.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding

    if not is_name(name):
        raise ConfigError("the name must be 1 to 64 of A-Z a-z 0-9 . _ -, the name of the agent")
    try:
        csr = x509.load_pem_x509_csr(request)
        key, is_proved = csr.public_key(), csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the request is broken: {error}") from error
    if not is_proved or not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigError("the request must be signed by its own key, which must be of the curve P-256")
    data = _certified(folder, key, [name], is_collector=False).public_bytes(Encoding.PEM)
    try:
        _place(folder / f"{name}.crt", data, CERTIFICATE_MODE, replace=False)
    except OSError as error:
        raise HostError(f"{folder}/{name}.crt can't be written: {error.strerror or 'it is there'}") from error
    return data


def _general(name: str) -> "x509.GeneralName":
    from cryptography import x509

    with suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigError(f"--host {name!r} is no name that a certificate can hold: {error}") from error


def _authority(folder: Path) -> "tuple[x509.Certificate, EllipticCurvePrivateKey]":
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        refuse_readable(str(folder / "ca.key"))
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"{error.filename} can't be read: {error.strerror}; begin with `guestagent pki init`"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the authority in {folder} is broken: {error}") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{folder}/ca.key is not the key of {folder}/ca.crt: restore the one that belongs there")
    return certificate, key


def _builder(
    subject: "x509.Name", issuer: "x509.Name", key: "EllipticCurvePublicKey", days: int
) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    builder = builder.not_valid_before(now - SKEW).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _signed(builder: "x509.CertificateBuilder", key: "EllipticCurvePrivateKey") -> "x509.Certificate":
    from cryptography.hazmat.primitives.hashes import SHA256

    return builder.sign(key, SHA256())


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(folder: Path, name: str, key: "EllipticCurvePrivateKey", certificate: "x509.Certificate") -> None:
    """The key first, then its certificate: whoever sees the new certificate finds its key."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        folder.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        _place(folder / f"{name}.key", secret, KEY_MODE, replace=name != "ca")
        _place(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM), CERTIFICATE_MODE, replace=True)
    except FileExistsError:
        raise ConfigError(
            f"{folder} holds an authority already: another one would cut off all that it vouches for"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror}") from error


def _place(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    """Whole or not at all, under its name; what is there already is renewed only with `replace`."""
    if path.exists() and not replace:
        raise FileExistsError
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
    fresh.rename(path)
