"""The cloud-config that brings the agent to machines which the provider cannot mirror. Pure.

User-data is readable by every process on the machine that reaches its metadata service: no secret goes into it.
"""

import json
import shlex

CONFIG_PATH = "/etc/guestagent/guestagent.toml"
UNIT_PATH = "/etc/systemd/system/guestagent.service"
VENV = "/opt/guestagent"
_UNIT = f"""\
[Unit]
Description=guestagent, an in-VM traffic tap
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={VENV}/bin/guestagent run -c {CONFIG_PATH}
Restart=on-failure
DynamicUser=yes
AmbientCapabilities=CAP_NET_RAW
CapabilityBoundingSet=CAP_NET_RAW
CPUQuota=100%
MemoryMax=96M

[Install]
WantedBy=multi-user.target
"""


def cloud_config(collector: str) -> str:
    """A `#cloud-config` that installs the agent and sends to `collector`, a URL of `run --to`."""
    commands = (
        ("python3", "-m", "venv", VENV),
        (f"{VENV}/bin/pip", "install", "--quiet", "guestagent"),
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", "--now", "guestagent.service"),
    )
    # JSON strings are YAML strings.
    lines = [
        "#cloud-config",
        "package_update: true",
        "packages: [python3, python3-venv]",
        "write_files:",
        *_file(CONFIG_PATH, f"to = {json.dumps(collector)}\n"),
        *_file(UNIT_PATH, _UNIT),
        "runcmd:",
        *(f"  - {json.dumps(list(command))}" for command in commands),
    ]
    return "\n".join(lines) + "\n"


def _file(path: str, content: str) -> list[str]:
    return [
        f"  - path: {shlex.quote(path)}",
        '    permissions: "0644"',
        f"    content: {json.dumps(content)}",
    ]
