"""Open vSwitch: what `mirror ovs` reads and writes in the database, and how to let it in. Pure."""

from typing import Any

from guestagent.mirror.spec import Spec

INSERTS = ("Interface", "Mirror", "Port")
UPDATES = {
    "Bridge": ("mirrors", "ports"),
    "Interface": ("name", "options", "type"),
    "Mirror": (
        *("external_ids", "name", "output_port", "output_vlan", "select_all", "select_dst_port", "select_src_port"),
        *("select_vlan", "snaplen"),
    ),
    "Open_vSwitch": ("next_cfg",),
    "Port": ("external_ids", "interfaces", "name"),
}
"""Deleting a row is an update of the bridge: rows without a reference go by themselves."""


def document(spec: Spec, database: str, reads: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Tables and columns, in the words of OVSDB's role-based access control, and ways in."""
    who = "--tls-ca ca.crt --tls-cert NAME.crt --tls-key NAME.key"
    port = spec.db.rpartition(":")[2] if spec.db.startswith(("tcp:", "ssl:")) else "6640"
    return {
        "database": database,
        "reads": {table: sorted(columns) for table, columns in sorted(reads.items())},
        "permissions": [
            {"table": table, "insert_delete": table in INSERTS, "update": list(columns)}
            for table, columns in UPDATES.items()
        ],
        "note": (
            "the schema Open_vSwitch has no RBAC tables: whoever may connect may do all of this, and anything else. So "
            "let in only whom you would let run ovs-vsctl"
        ),
        "access": {
            "unix": ["run as root, or as a user who may write the socket (Debian: chmod or setfacl on db.sock)"],
            "ssl": [
                "guestagent pki init",
                "guestagent pki collector SWITCH --host ADDRESS",
                "guestagent pki agent NAME",
                "ovs-vsctl set-ssl SWITCH.key SWITCH.crt ca.crt",
                f"ovs-vsctl set-manager pssl:{port}",
                f"guestagent mirror ovs plan --db ssl:ADDRESS:{port} {who} ...",
            ],
            "tcp": [f"ovs-vsctl set-manager ptcp:{port}:127.0.0.1: no proof of who it is, so on the host itself alone"],
        },
    }
