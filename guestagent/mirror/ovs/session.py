"""Open vSwitch: a connection to ovsdb-server by ovsdbapp, with a sentence for each way that it can fail."""

import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from guestagent.errors import ConfigError, HostError, PrivilegeError, RunError
from guestagent.mirror.spec import Spec
from guestagent.trust import refuse_readable

DATABASE = "Open_vSwitch"
DEFAULT_DB = "unix:/var/run/openvswitch/db.sock"
FORMS = "unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT"
ANSWER_SECONDS = 10
"""For a connection, a schema, a transaction; a switch with 5,000 ports takes 2 s."""
MOST_SCHEMA_BYTES = 4 << 20
COLUMNS = {
    "Open_vSwitch": ("bridges", "next_cfg", "cur_cfg", "iface_types"),
    "Bridge": ("name", "datapath_type", "ports", "mirrors"),
    "Port": ("name", "interfaces", "external_ids"),
    "Interface": ("name", "type", "options", "external_ids", "error", "link_state", "status"),
    "Mirror": (
        *("name", "external_ids", "select_all", "select_src_port", "select_dst_port", "select_vlan"),
        *("output_port", "output_vlan", "snaplen", "statistics"),
    ),
}
"""All that is read; the rest of a large switch stays where it is."""
_CERTIFICATES = (
    "--tls-cert and --tls-key must be of an authority that it trusts (ovs-vsctl set-ssl), and its of --tls-ca"
)
T = TypeVar("T")
Tables = Mapping[str, Any]
"""Rows of ovs.db.idl by table, as they are now."""


class Refused(RunError):
    """The switch can't do it, or would harm itself by it."""


class Written(NamedTuple):
    """A transaction that was done."""

    result: str
    configuration: int
    """Open_vSwitch.next_cfg after it; 0 where nothing had to be changed."""


class Session:
    """One connection, which has a thread until it is closed."""

    def __init__(self, spec: Spec) -> None:
        from ovs.db.error import Error
        from ovs.db.idl import SchemaHelper
        from ovs.stream import Stream
        from ovsdbapp.backend.ovs_idl.connection import Connection, OvsdbIdl

        logging.getLogger("ovsdbapp").setLevel(logging.CRITICAL + 1)  # what it logs we say, in a sentence
        self._db = spec.db or DEFAULT_DB
        helper = SchemaHelper(None, _schema(self._db, spec))
        for table, columns in COLUMNS.items():
            helper.register_columns(table, list(columns))
        Stream.ssl_set_ca_cert_file(spec.tls_ca)
        Stream.ssl_set_certificate_file(spec.tls_cert)
        Stream.ssl_set_private_key_file(spec.tls_key)
        try:
            idl = OvsdbIdl(self._db, helper)
        except (Error, AssertionError) as error:
            raise RunError(f"{self._db}: its schema is none of a switch that we know: {error}") from error
        self._connection = Connection(idl, ANSWER_SECONDS)
        try:
            self._connection.start()
        except Exception as error:
            idl.close()
            raise RunError(f"{self._db} did not answer within {ANSWER_SECONDS} s: {error}") from error
        if not self.read(lambda tables: len(tables[DATABASE].rows)):
            self.close()
            raise RunError(f"{self._db}: the switch was never set up: start ovs-vswitchd, or run `ovs-vsctl init`")

    def close(self) -> None:
        """End connection and thread."""
        self._connection.stop()

    def read(self, function: Callable[[Tables], T]) -> T:
        """What the function makes of the tables, which hold still meanwhile."""
        with self._connection.lock:
            return function(self._connection.idl.tables)

    def write(self, body: Callable[[Any, Tables], Any], *, dry_run: bool = False) -> Written:
        """Do what `body(transaction, tables)` does, all or nothing; it may be called again where others were faster.

        The row that it returns gives the result. Raises RunError.
        """
        from ovsdbapp.backend.ovs_idl.transaction import Transaction
        from ovsdbapp.exceptions import OvsdbAppException

        command = _Command(self._connection.idl, body, dry_run)
        # Of the API that ovsdbapp wants here a transaction uses `idl` alone, which the connection has.
        transaction = Transaction(self._connection, self._connection, check_error=True, log_errors=False)
        transaction.add(command)
        try:
            transaction.commit()
        except RuntimeError as error:
            raise RunError(_refusal(self._db, str(error))) from error
        except OvsdbAppException as error:
            raise RunError(f"{self._db} did not answer within {ANSWER_SECONDS} s: run again") from error
        return command.written

    def settled(self, configuration: int, seconds: float) -> bool:
        """Wait until ovs-vswitchd has taken over a configuration; False where it did not."""
        deadline = time.monotonic() + seconds
        while self.read(lambda tables: root(tables).cur_cfg) < configuration:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True


class _Command:
    """As ovsdbapp's transactions call it: run_idl for each attempt, post_commit once."""

    def __init__(self, idl: Any, body: Callable[[Any, Tables], Any], dry_run: bool) -> None:
        self._idl, self._body, self._dry_run = idl, body, dry_run
        self._row: Any = None
        self.result: Any = None
        self.written = Written("", 0)

    def run_idl(self, transaction: Any) -> None:
        """Compose it."""
        transaction.dry_run = self._dry_run  # the server does it all, and then an `abort` (RFC 7047, section 5.2.8)
        self._row = self._body(transaction, self._idl.tables)
        root(self._idl.tables).increment("next_cfg")
        transaction.add_comment("guestagent mirror")
        if self._row is not None:
            self.written = Written(str(self._row.uuid), 0)

    def post_commit(self, transaction: Any) -> None:
        """Learn what the server made of it."""
        made = transaction.get_insert_uuid(self._row.uuid) if self._row is not None else None
        self.written = Written(str(made) if made else self.written.result, transaction.get_increment_new_value())


def root(tables: Tables) -> Any:
    """The only row of Open_vSwitch."""
    return next(iter(tables[DATABASE].rows.values()))


def _refusal(db: str, text: str) -> str:
    text = text.removeprefix("OVSDB Error: ")
    try:
        said = json.loads(text)
    except ValueError:
        return f"{db}: {text}"
    what, details = said.get("error", ""), " ".join(str(said.get("details", "")).split())
    if what in ("not allowed", "permission error"):
        return f"{db} takes no changes from us ({details}): `guestagent mirror ovs policy` prints what is needed"
    return f"{db} refuses: {what}: {details[:300]}"


# -- the first word with the server ------------------------------------------------------------------------------------


def _schema(db: str, spec: Spec) -> Any:
    """The schema as JSON, by a connection of its own, whose failures tell what is wrong. Raises GuestagentError."""
    kind = db.partition(":")[0]
    try:
        with _connected(db, spec) as server:
            answer = _ask(server, "get_schema", DATABASE)
    except ssl.SSLError as error:  # before ValueError, which one of them is
        raise RunError(f"{db}: TLS failed: {_tls_reason(error)}: {_CERTIFICATES}") from error
    except (TimeoutError, ValueError) as error:
        raise RunError(f"{db} did not answer as an ovsdb-server does: {error}") from error
    except ConnectionRefusedError as error:
        raise RunError(f"{db}: nobody listens there: is ovsdb-server running, with this --remote?") from error
    except PermissionError as error:
        raise PrivilegeError(f"{db}: we may not connect: run as root, or as a user who may write the socket") from error
    except FileNotFoundError as error:
        raise HostError(f"{db}: there is no such socket: is Open vSwitch running here? Say where with --db") from error
    except OSError as error:
        lost = f"; {_CERTIFICATES}" if kind == "ssl" else ""
        raise RunError(f"{db} was not reached: {error.strerror or error}{lost}") from error
    if answer.get("error"):
        raise RunError(f"{db} has no database {DATABASE}: is it that of OVN? Take the switch's own")
    return answer["result"]


def _connected(db: str, spec: Spec) -> socket.socket:
    kind, _, rest = db.partition(":")
    if kind == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.settimeout(ANSWER_SECONDS)
        try:
            server.connect(rest)
        except OSError:
            server.close()
            raise
        return server
    host, _, port = rest.rpartition(":")
    if kind not in ("tcp", "ssl") or not host or not port.isdecimal():
        raise ConfigError(f"db: {db!r} is no address of an ovsdb-server: write {FORMS}")
    context = _tls(spec) if kind == "ssl" else None
    server = socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)
    if context is None:
        return server
    try:
        return context.wrap_socket(server)
    except BaseException:
        server.close()
        raise


def _tls(spec: Spec) -> ssl.SSLContext:
    """As Open vSwitch's own clients have it: both sides show a certificate, and names in them mean nothing."""
    for name in ("ca", "cert", "key"):
        if not getattr(spec, f"tls_{name}"):
            raise ConfigError(f"{spec.db} needs --tls-{name}: `guestagent pki` or `ovs-pki` makes what TLS needs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        refuse_readable(spec.tls_key)
        context.load_verify_locations(spec.tls_ca)
        context.load_cert_chain(spec.tls_cert, spec.tls_key)
    except OSError as error:  # SSLError is one
        files = f"--tls-ca {spec.tls_ca}, --tls-cert {spec.tls_cert}, --tls-key {spec.tls_key}"
        raise ConfigError(f"{files}: they can't be used: {error.strerror or error}") from error
    return context


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused ({error.verify_message})"
    return (error.reason or str(error)).lower().replace("_", " ")


def _ask(server: socket.socket, method: str, *parameters: str) -> dict[str, Any]:
    """One request of JSON-RPC 1.0 and its answer (RFC 7047, section 4). Raises OSError, ValueError."""
    server.sendall(json.dumps({"id": 0, "method": method, "params": parameters}).encode())
    heard = b""
    while len(heard) < MOST_SCHEMA_BYTES:
        piece = server.recv(1 << 16)
        if not piece:
            raise ConnectionResetError(0, "the connection was closed before an answer")
        heard += piece
        if heard.rstrip().endswith(b"}"):
            try:
                answer: dict[str, Any] = json.loads(heard)
            except ValueError:
                continue
            return answer
        if not heard.lstrip().startswith(b"{"):
            raise ValueError("it does not speak JSON")
    raise ValueError("the answer has no end")
