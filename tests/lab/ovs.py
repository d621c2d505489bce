"""Open vSwitch on a lab host, with the user-space datapath: bridges and tunnels without a module of the kernel."""

import os
from pathlib import Path

from guestagent.lab.hosts import Host
from tests.lab.rig import wait_for


class OpenVSwitch:
    """Database and switch in the foreground, children of the host; their files are below one directory."""

    def __init__(self, host: Host, place: Path) -> None:
        self._host, self._place = host, place
        directories = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        environment = {**os.environ, **dict.fromkeys(directories, str(place))}
        self.database = f"unix:{place}/db.sock"
        host.run(["ovsdb-tool", "create", f"{place}/conf.db", "/usr/share/openvswitch/vswitch.ovsschema"])
        with (place / "ovs.log").open("wb") as log:
            options = {"env": environment, "stdout": log, "stderr": log}
            server = ["ovsdb-server", f"{place}/conf.db", f"--remote=p{self.database}"]
            host.popen([*server, f"--unixctl={place}/ovsdb.ctl"], **options)
            wait_for((place / "db.sock").exists, "ovsdb-server")
            self.vsctl("--no-wait init")
            host.popen(["ovs-vswitchd", self.database, f"--unixctl={place}/vswitch.ctl"], **options)

    def vsctl(self, words: str) -> str:
        """Change or ask the configuration; returns when the switch has taken it over."""
        return self._host.run(["ovs-vsctl", f"--db={self.database}", "--timeout=10", *words.split()]).stdout

    def appctl(self, words: str) -> str:
        """Ask the switch itself."""
        return self._host.run(["ovs-appctl", "-t", f"{self._place}/vswitch.ctl", *words.split()]).stdout

    def log_text(self) -> str:
        """What database and switch said so far."""
        return (self._place / "ovs.log").read_text()

    def add_bridge(self, name: str, port: str) -> None:
        """A bridge with one interface of the host in it."""
        self.vsctl(f"add-br {name} -- set bridge {name} datapath_type=netdev -- add-port {name} {port}")

    def add_tunnel(self, bridge: str, port: str, kind: str, remote: str, options: str) -> None:
        """A tunnel of this kind as a port of a bridge; `options` are those of its interface, `key=7 erspan_ver=1`."""
        words = " ".join(f"options:{option}" for option in options.split())
        self.vsctl(f"add-port {bridge} {port} -- set interface {port} type={kind} options:remote_ip={remote} {words}")

    def own_the_card(self, *addresses: str) -> None:
        """The underlay of a user-space tunnel is a bridge, too, `br-phy`, which takes the addresses of its card."""
        self.add_bridge("br-phy", "eth0")
        self._host.run(["ip", "address", "flush", "dev", "eth0"])
        self._host.run(["ip", "link", "set", "eth0", "arp", "off"])  # the bridge answers, with its own MAC address
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            self._host.run(["ip", "address", "add", address, "dev", "br-phy", *nodad])
        self._host.run(["ip", "link", "set", "br-phy", "up"])


def quiet_cable(host: Host, near: str, far: str) -> None:
    """A cable within a host on which the kernel itself says nothing."""
    host.run(["ip", "link", "add", near, "type", "veth", "peer", "name", far])
    for name in (near, far):
        host.run(["ip", "link", "set", name, "addrgenmode", "none"])
        host.run(["ip", "link", "set", name, "up"])
