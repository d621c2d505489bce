"""The few kernel calls behind a host of the lab: make a namespace, enter it, die with the parent.

Namespaces live as long as somebody holds a descriptor of them. So a short-lived child makes them and hands the
descriptors over: no holding process, no name in the file system, nothing left when we die.
"""

import ctypes
import errno
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import HostError
from guestagent.lab.tasks import fork

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
        ours, theirs = socket.socketpair()
        with ours, theirs:
            number = fork("making a lab host", lambda: None, lambda: _send_namespaces(theirs)).result()
            if number:
                raise HostError(f"cannot make a network namespace ({os.strerror(number)}): run with sudo")
            net, mount = socket.recv_fds(ours, 1, 2)[1]
        for descriptor in (net, mount):
            os.set_inheritable(descriptor, False)
        return cls(net, mount)

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
        several_threads = error.errno == errno.EINVAL
        reason = "this process has several threads" if several_threads else error.strerror
        raise HostError(f"this kernel gives user {user} no namespace of its own ({reason}): run with sudo") from error


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this child when the parent's thread that started it ends, however it ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before the kernel knew our wish
        os._exit(1)


def _send_namespaces(to: socket.socket) -> int:
    """Make a network and a mount namespace in this child and hand them over; the errno of what the kernel refused."""
    try:
        _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
        # Slave, not private: what the machine mounts later shows up here, what we mount never shows up there.
        _mount("none", "/", "", MS_REC | MS_SLAVE)
        with suppress(OSError):  # containers mask parts of /sys and then forbid users a fresh one; the rest works there
            _mount_own_sysfs()
        socket.send_fds(to, [b"."], [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")])
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def _mount_own_sysfs() -> None:
    """Show /sys/class/net of the new network, and keep the cgroup files, which a fresh sysfs would hide."""
    cgroups = os.open("/sys/fs/cgroup", os.O_PATH)
    _mount("sysfs", "/sys", "sysfs", 0)
    _mount(f"/proc/self/fd/{cgroups}", "/sys/fs/cgroup", "", MS_BIND | MS_REC)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None), "mount")


def _check(returned: int, call: str) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
