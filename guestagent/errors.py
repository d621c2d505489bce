"""The four ways to fail, named by whose fault it is; each knows the exit code of the command that meets it.

| fault | class | exit code |
|---|---|---|
| the operator's config, flags or files | ConfigError | 2 |
| this host: a privilege or kernel feature is missing | HostError | 3 |
| the other end: collector, agent, sensor | PeerError | 1 |
| the run itself: disk, socket, our own bug | RunError | 1 |

The text of each is one sentence: what is wrong, where, and what to do.
"""


class GuestagentError(Exception):
    """Base of every error that a user may see; never raised itself."""

    exit_code = 1


class ConfigError(GuestagentError):
    """The config, a flag, a filter, a URL or a path that the operator gave is wrong."""

    exit_code = 2


class AbsentError(ConfigError):
    """What the config names is not there, as a NIC that comes later."""


class HostError(GuestagentError):
    """This machine lacks a privilege, a kernel feature or the memory that was asked for."""

    exit_code = 3


class PrivilegeError(HostError):
    """This process may not do what it has to; another way would need the same privilege."""


class PeerError(GuestagentError):
    """The other end broke the protocol or refused."""


class RunError(GuestagentError):
    """Something failed while running: a disk, a socket, or we ourselves."""
