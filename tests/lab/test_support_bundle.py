"""A support bundle of a machine on which an agent runs: useful, and silent about what is nobody's business."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from tests.lab.rig import Rig, udp_indexes, wait_for

SECRET = "hunter2-of-the-operator"
PRIVATE = "MC4CAQAwBQYDK2VwBCIEIJ"


def test_it_holds_what_helps_and_neither_secret_nor_payload(rig: Rig, pair: tuple[Host, Host], tmp_path: Path) -> None:
    """Status, config, versions and the kernel's facts are in it; captured bytes, keys and foreign values are not."""
    vm, _ = pair
    agent = rig.agent(vm, to=f"dir:{rig.captures}", connected=False)
    wait_for(lambda: agent.status().get("interfaces"), "the agent")
    vm.call(udp_send, "10.9.0.1", 5000, 100)
    wait_for(lambda: len(udp_indexes(rig.frames(), 5000, 512)) == 100, "the datagrams")
    payload = next(frame.data[42:] for frame in rig.frames() if len(frame.data) == 554)
    key = tmp_path / "agent.key"
    key.write_text(f"-----BEGIN PRIVATE KEY-----\n{PRIVATE}\n-----END PRIVATE KEY-----\n")
    config = tmp_path / "guestagent.toml"
    config.write_text(
        f'to = "dir:{rig.captures}"\npassword = "{SECRET}"\n[tls]\nkey = "{key}"\n[other]\ntoken = "{SECRET}"\n'
    )
    bundle = tmp_path / "bundle.tar.gz"
    command = [
        sys.executable,
        "-m",
        "guestagent",
        "support-bundle",
        "-c",
        str(config),
        "-c",
        str(key),
        "-o",
        str(bundle),
    ]
    done = vm.run(command, env=rig.environment)
    agent.stop()

    assert done.stdout == f"{bundle}\n"
    assert os.stat(bundle).st_mode & 0o777 == 0o600
    with tarfile.open(bundle) as archive:
        members = {
            one.name.removeprefix("guestagent-support/"): archive.extractfile(one).read()  # type: ignore[union-attr]
            for one in archive.getmembers()
        }
    everything = b"".join(members.values())
    (status,) = json.loads(members["status.json"])["running"].values()
    manifest = json.loads(members["manifest.json"])
    assert status["captured"] >= 100
    assert f'tls.key = "{key}"' in members["config/guestagent.toml"].decode()
    assert "password = (left out)\n" in members["config/guestagent.toml"].decode()
    assert "password is no key of the config" in members["check.txt"].decode()
    assert b"eth0" in members["host/links.txt"]
    assert manifest["schema"] == "guestagent.support/1"
    assert not set(manifest["missing"]) & {"host/memory.txt", "host/links.txt"}
    for forbidden in (SECRET.encode(), PRIVATE.encode(), payload[:64], payload[-64:], payload[:16].hex().encode()):
        assert forbidden not in everything
    again = subprocess.run(command, env=rig.environment, capture_output=True, text=True, check=False)
    assert (1, True) == (again.returncode, "is there already" in again.stderr)


def test_a_private_key_in_a_log_is_left_out(tmp_path: Path) -> None:
    """Whatever command printed it, and also where its end is missing."""
    from guestagent import bundle

    text = f"-----BEGIN EC PRIVATE KEY-----\\n{PRIVATE}"
    bundle.COMMANDS["logs/planted.txt"] = ("printf", text)
    try:
        members = bundle.gather([])
    finally:
        del bundle.COMMANDS["logs/planted.txt"]

    assert members["logs/planted.txt"] == b"(left out)"
