"""A VM under qemu on a host of the lab: the NIC hangs on a TAP device there, the serial console goes to a file."""

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestagent.lab.hosts import Host
from tests.boot.image import Image
from tests.lab.rig import wait_for

HOST_ADDRESS, VM_ADDRESS = "10.9.0.1", "10.9.0.2"
MAC = "52:54:00:12:34:56"
TAP = "vm0"
MEMORY_MB = 1024
_ASK_SECONDS = 20.0
"""The qemu guest agent answers in milliseconds, unless two emulated processors are busy."""
_NETWORK = {
    "version": 2,
    "ethernets": {
        "nic": {
            "match": {"macaddress": MAC},
            "set-name": "eth0",
            "addresses": [f"{VM_ADDRESS}/24"],
            "gateway4": HOST_ADDRESS,
        }
    },
}


@dataclass(frozen=True)
class Done:
    """A command's end inside the VM."""

    code: int
    out: str
    err: str


class Vm:
    """One virtual machine with a disk of its own."""

    def __init__(self, host: Host, image: Image, directory: Path, user_data: str, vendor_data: str = "") -> None:
        self.directory = directory
        self.console = directory / "console.log"
        self._host = host
        self._socket = directory / "agent.sock"
        disk = directory / "disk.qcow2"
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.disk, disk)
        seed = _seed(directory, {"user-data": user_data, "vendor-data": vendor_data})
        self.started_at = time.time()
        with (directory / "qemu.log").open("wb") as errors:
            self.process = host.popen(self._argv(image, disk, seed), stdin=subprocess.DEVNULL, stderr=errors)

    def _argv(self, image: Image, disk: Path, seed: Path) -> list[str]:
        drives = [f"file={disk},if=virtio,cache=unsafe", f"file={seed},if=virtio,format=raw"]
        return [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-M", "pc", "-accel", "tcg,thread=multi"),
            # No AVX: qemu emulates it since 7.2 only, slowly and not always rightly. With AES, for TLS.
            *("-cpu", "Westmere", "-smp", "2", "-m", str(MEMORY_MB)),
            *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
            *("-append", "root=/dev/vda rw console=ttyS0 panic=-1"),
            *(word for drive in drives for word in ("-drive", drive)),
            *("-netdev", f"tap,id=nic,ifname={TAP},script=no,downscript=no,vnet_hdr=on"),
            *("-device", f"virtio-net-pci,netdev=nic,mac={MAC}", "-device", "virtio-rng-pci"),
            *("-serial", f"file:{self.console}"),
            *("-chardev", f"socket,path={self._socket},server=on,wait=off,id=agent", "-device", "virtio-serial"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        ]

    def run(self, command: str, check: bool = True, timeout: float = 240.0) -> Done:
        """Run a shell command as root inside."""
        argv = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        pid = self._ask("guest-exec", argv)["pid"]
        deadline = time.monotonic() + timeout
        while not (state := self._ask("guest-exec-status", {"pid": pid}))["exited"]:
            assert time.monotonic() < deadline, f"`{command}` in the VM did not end within {timeout} s"
            time.sleep(0.1)
        out, err = (base64.b64decode(state.get(key, "")).decode() for key in ("out-data", "err-data"))
        done = Done(state.get("exitcode", -1), out, err)
        assert done.code == 0 or not check, f"`{command}` in the VM exited with {done.code}: {out}{err}"
        return done

    def answers(self) -> bool:
        """Whether its qemu guest agent runs."""
        try:
            self._ask("guest-ping", {}, patience=1.0)
        except (OSError, ValueError):
            return False
        return True

    def wait_until_up(self, timeout: float = 360.0) -> None:
        """Return when systemd has started the guest agent."""
        try:
            wait_for(self.answers, "the VM's guest agent", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; its console ends with:\n{self.console.read_text()[-3000:]}") from None

    def reboot(self) -> None:
        """Reboot, and wait until it is up again."""
        before = self.run("cat /proc/sys/kernel/random/boot_id").out
        self.run("systemctl --no-block reboot")
        time.sleep(1.0)

        def is_another_boot() -> bool:
            try:
                return self.run("cat /proc/sys/kernel/random/boot_id", timeout=5.0).out != before
            except (OSError, ValueError, KeyError, AssertionError):
                return False

        wait_for(is_another_boot, "the VM to come back", 240.0)

    def _ask(self, what: str, arguments: Mapping[str, Any], patience: float = _ASK_SECONDS) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(patience)
            wire.connect(str(self._socket))
            # What an earlier connection left unread comes first; the answer to this number ends it.
            number = int.from_bytes(os.urandom(4), "big")
            with wire.makefile("rwb", buffering=0) as lines:
                lines.write(
                    b"\xff"
                    + json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": number}}).encode()
                    + b"\n"
                )
                while True:
                    line = lines.readline().rpartition(b"\xff")[2]
                    if not line:
                        raise OSError("the guest agent closed the line")
                    if line.strip() and json.loads(line).get("return") == number:
                        break
                lines.write(_line(what, arguments))
                answer = json.loads(lines.readline() or b"{}")
        if "return" not in answer:
            raise ValueError(f"{what}: {answer}")
        return answer["return"]


def lay_cable(host: Host) -> None:
    """The host's end of the VM's NIC, up and with its address."""
    host.run(["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])
    host.run(["ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", TAP])
    host.run(["ip", "link", "set", TAP, "up"])


@contextmanager
def booted(host: Host, image: Image, directory: Path, user_data: str, vendor_data: str = "") -> Iterator[Vm]:
    """A VM that has just been switched on; killed at the end."""
    vm = Vm(host, image, directory, user_data, vendor_data)
    try:
        yield vm
    finally:
        vm.process.kill()
        vm.process.wait()


def _line(what: str, arguments: Mapping[str, Any]) -> bytes:
    """A command of the qemu guest agent (qemu: qga/qapi-schema.json)."""
    return json.dumps({"execute": what, "arguments": arguments}).encode() + b"\n"


def _seed(directory: Path, files: Mapping[str, str]) -> Path:
    """A NoCloud disk: an ISO with the label that cloud-init looks for."""
    folder, seed = directory / "seed", directory / "seed.iso"
    folder.mkdir()
    for name, text in {
        "meta-data": json.dumps({"instance-id": "i-boot-1", "local-hostname": "vm"}),
        "network-config": json.dumps(_NETWORK),
        **files,
    }.items():
        (folder / name).write_text(text)
    _run("genisoimage", "-quiet", "-output", seed, "-volid", "cidata", "-joliet", "-rock", folder)
    return seed


def _run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True)
