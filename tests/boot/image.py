"""The disk that the boot test starts from: Debian's stable cloud kernel and cloud-init, made once and kept.

Debian's own cloud image can't be fetched everywhere, so mmdebstrap makes what it holds: the cloud kernel, systemd,
cloud-init and Python. The kernel is started directly, so there is no boot loader, and the initramfs holds what a
virtio disk needs: an emulated processor unpacks it in a second.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd"),
    *(
        "systemd-sysv",
        "udev",
        "dbus",
        "iproute2",
        "cloud-init",
        "ca-certificates",
        "openssl",
        "gpgv",
        "procps",
        "locales",
    ),
    # How the test gives commands, without a network; what makes traffic; what guestagent recommends.
    *("qemu-guest-agent", "iperf3", "netcat-openbsd", "libpcap0.8"),
)
DISK_BYTES = 2 << 30
_SETTINGS = {
    "etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=zstd\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 1\n",
    # Debian's mirror is out of the reach of the lab, which has no way out.
    "etc/cloud/cloud.cfg.d/90_lab.cfg": "apt:\n  preserve_sources_list: true\nlocale: C.UTF-8\n",
}
_AFTERWARDS = (
    'rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*',
    'chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer',
    'chroot "$1" systemctl enable systemd-networkd',
    ': > "$1/etc/machine-id"',
)


@dataclass(frozen=True)
class Image:
    """A raw disk that nobody writes to, and the kernel and initramfs that lie in it."""

    disk: Path
    kernel: Path
    initramfs: Path


def cached() -> Image:
    """The image of this recipe, made where it is not there yet; needs root and a Debian mirror then."""
    recipe = hashlib.sha256(repr((PACKAGES, DISK_BYTES, _SETTINGS, _AFTERWARDS)).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "guestagent-test"
    place = root / f"boot-{SUITE}-{recipe}"
    if not place.exists():
        root.mkdir(parents=True, exist_ok=True)
        for old in root.glob(f"boot-{SUITE}-*"):
            shutil.rmtree(old)
        unfinished = root / f"making-{os.getpid()}"
        try:
            _make(unfinished)
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return Image(place / "disk", place / "vmlinuz", place / "initrd.img")


def _make(place: Path) -> None:
    root = place / "root"
    place.mkdir()
    hooks = [f"--customize-hook={command}" for command in _AFTERWARDS]
    settings = place / "settings"
    for name, text in _SETTINGS.items():
        path = settings / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    skipped = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    sys.stdout.write(f"boot image: making {place.parent}, about two minutes\n")
    options = [f"--include={','.join(PACKAGES)}", *skipped, f"--essential-hook=copy-in {settings}/etc /", *hooks]
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", *options, SUITE, str(root)]
    subprocess.run(command, check=True)
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), place / "vmlinuz")
    shutil.copy(next((root / "boot").glob("initrd.img-*")), place / "initrd.img")
    with (place / "disk").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, place / "disk"], check=True)
    shutil.rmtree(root)
    shutil.rmtree(settings)


if __name__ == "__main__":
    print(cached())
