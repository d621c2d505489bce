"""The few kernel calls behind a host of the lab: make a namespace, enter it, die with the parent.

Namespaces belong to threads and live as long as somebody holds a descriptor of them. So a short-lived thread makes
them and we keep the descriptors: no holding process, no name in the file system, nothing left when we die.
"""

import ctypes
import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import HostError

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
MS_BIND, MS_REC, MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Descriptors of one host's network and mount namespaces."""

    net: int
    mount: int

    @classmethod
    def create(cls) -> "Namespaces":
        """A network without interfaces, and mounts whose /sys shows that network."""
        try:
            with ThreadPoolExecutor(1) as short_lived:
                return short_lived.submit(cls._of_this_thread).result()
        except OSError as error:
            raise HostError(f"cannot make a network namespace ({error.strerror}): run with sudo") from error

    @classmethod
    def _of_this_thread(cls) -> "Namespaces":
        _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
        # Slave, not private: what the real host mounts later shows up here, what we mount never shows up there.
        _mount("none", "/", "", MS_REC | MS_SLAVE)
        _mount_own_sysfs()
        net = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return cls(net, os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))

    def enter(self) -> None:
        """Move the calling process inside; for a child that has just been forked."""
        directory = Path.cwd()
        _check(_libc.setns(self.net, CLONE_NEWNET), "setns")
        _check(_libc.setns(self.mount, CLONE_NEWNS), "setns")
        os.chdir(directory)  # entering a mount namespace moves to its root

    def inhabitants(self) -> list[int]:
        """Every process inside but ourselves, whoever started it."""
        inode, found = os.fstat(self.net).st_ino, []
        for entry in Path("/proc").glob("[0-9]*/ns/net"):
            with suppress(OSError):  # it ended meanwhile, or is not ours to look at
                if entry.stat().st_ino == inode:
                    found.append(int(entry.parts[2]))
        return [pid for pid in found if pid != os.getpid()]

    def close(self) -> None:
        """Let go; the kernel removes the network when the last process inside has ended."""
        os.close(self.net)
        os.close(self.mount)


def enter_user_namespace() -> None:
    """Become root in a user and network namespace of our own, for good; needs a process with one thread."""
    user, group = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError as error:
        reason = error.strerror
        raise HostError(f"this kernel gives user {user} no namespace of its own ({reason}): run with sudo") from error


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this child when the parent's thread that started it ends, however it ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before the kernel knew our wish
        os._exit(1)


def _mount_own_sysfs() -> None:
    """Show /sys/class/net of the new network, and keep the cgroup files, which a fresh sysfs would hide."""
    cgroups = os.open("/sys/fs/cgroup", os.O_PATH | os.O_CLOEXEC)
    try:
        _mount("sysfs", "/sys", "sysfs", 0)
        _mount(f"/proc/thread-self/fd/{cgroups}", "/sys/fs/cgroup", "", MS_BIND | MS_REC)
    except OSError as error:
        # Containers mask parts of /sys and then forbid a fresh one without root; all but /sys works there too.
        if error.errno != errno.EPERM:
            raise
    finally:
        os.close(cgroups)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None), "mount")


def _check(returned: int, call: str) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
