"""What looking at a provider yields: each machine's choice of its mirror or the agent, and the resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from guestagent.mirror.apply import Writer
from guestagent.mirror.plan import Kind, Resource, Step
from guestagent.mirror.spec import Spec

NATIVE, AGENT = "native", "agent"
AGENT_COST = "no charge of the provider; at most 5 % of the VM's CPU by default"
AGENT_LIMITS = "at most 10 % of the link by default; every packet that is left out is counted"
AGENT_MTU = "any: the copies travel in a stream"


@dataclass(frozen=True, slots=True)
class Choice:
    """One machine of the inventory. `eligible` is the provider's support: yes, no or unknown."""

    machine: str
    name: str
    kind: str
    """The machine type."""
    way: str
    eligible: str
    reason: str
    cost: str = AGENT_COST
    limits: str = AGENT_LIMITS
    mtu: str = AGENT_MTU
    interfaces: tuple[str, ...] = ()
    """Those to mirror; none for the agent's way."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All that a plan is made of."""

    choices: tuple[Choice, ...] = ()
    wanted: tuple[Resource, ...] = ()
    found: tuple[Resource, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """One mirror as it is: what it is made of, and what keeps it from working."""

    name: str
    resources: tuple[Resource, ...]
    problems: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What does not break it, and what the operator should know."""


class Provider(Writer, Protocol):
    """What `guestagent mirror` asks of a provider beside doing steps."""

    kinds: Sequence[Kind]

    def survey(self, spec: Spec, adopt: Sequence[str] = ()) -> Survey:
        """Read the inventory and what exists; change nothing."""

    def mirrors(self) -> list[Health]:
        """All mirrors of ours, by name, with what keeps each from working."""

    def prove(self, step: Step) -> str:
        """Ask whether we might do this, without doing it: `proved`, or why nobody can tell. A reference left in the
        changes is to what does not exist yet. Raises RunError for a refusal."""

    def close(self) -> None:
        """Let go of connections."""
