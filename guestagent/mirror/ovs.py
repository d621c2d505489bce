"""Open vSwitch port mirroring by OVSDB: reads, and does the steps of a plan. What it decides is in ovs_model.py."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from guestagent.errors import RunError
from guestagent.mirror import ovs_model, ovs_read, ovs_write
from guestagent.mirror.ovs_health import healths, loops, output_problems
from guestagent.mirror.ovs_inventory import Inventory, Mirror
from guestagent.mirror.ovs_model import MIRROR, is_own
from guestagent.mirror.ovs_policy import document
from guestagent.mirror.ovs_session import COLUMNS, DATABASE, Session, Tables
from guestagent.mirror.plan import ADOPT, CREATE, DELETE, UPDATE, Step
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import Health, Survey

SWITCH_SECONDS = 5.0
"""ovs-vswitchd takes over a change within milliseconds; with 10,000 ports within a second."""
Body = Callable[[Any, Tables], Any]


def connect(spec: Spec) -> "Ovs":
    """To the database of the spec. Raises ModuleNotFoundError, GuestagentError."""
    return Ovs(spec, Session(spec))


def policy(spec: Spec) -> str:
    """What a connection must be able to do, as JSON."""
    return json.dumps(document(spec, DATABASE, COLUMNS), indent=2)


class Ovs:
    """One switch (mirror.survey.Provider)."""

    kinds = ovs_model.KINDS

    def __init__(self, spec: Spec, session: Session) -> None:
        self._name, self._session = spec.name, session

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def _inventory(self) -> Inventory:
        return self._session.read(ovs_read.inventory)

    # -- reading --------------------------------------------------------------------------------------------------

    def survey(self, spec: Spec, adopt: Sequence[str] = ()) -> Survey:
        """What there is and what the spec needs. Raises ConfigError."""
        inventory = self._inventory()
        survey = ovs_model.survey(spec, inventory, adopt)
        own = [one for one in inventory.mirrors if is_own(one, spec.name)]
        now = [f"now: {problem}" for one in own for problem in output_problems(one, inventory)]
        return replace(survey, warnings=(*survey.warnings, *now))

    def mirrors(self) -> list[Health]:
        """All mirrors of ours with what keeps each from working."""
        return healths(self._inventory())

    # -- doing ----------------------------------------------------------------------------------------------------

    def create(self, step: Step, properties: Mapping[str, Any], attempt: int) -> str:
        """Make the mirror with its tunnel; one that the switch refuses, or that copies its copies, is taken back."""
        written = self._session.write(self._body(replace(step, changes=properties)))
        try:
            self._settle(written.configuration, written.result)
        except RunError:
            if self._refusals(written.result):
                self._session.write(self._body(replace(step, op=DELETE, id=written.result)))
            raise
        return written.result

    def update(self, step: Step, properties: Mapping[str, Any]) -> None:
        """Set these properties."""
        written = self._session.write(self._body(replace(step, changes=properties)))
        self._settle(written.configuration, step.id)

    def adopt(self, step: Step) -> None:
        """Put our marker on it, and on its tunnel."""
        self._session.write(self._body(step))

    def delete(self, step: Step) -> None:
        """Remove it; one that is gone is fine."""
        self._session.write(self._body(step))

    def missing(self, kind: str, ids: Sequence[str]) -> set[str]:
        """A transaction that was done shows what it made."""
        return set(ids) - {one.id for one in self._inventory().mirrors}

    def prove(self, step: Step) -> str:
        """The server does the whole transaction and takes it back. Raises RunError for a refusal."""
        self._session.write(self._body(step), dry_run=True)
        return "proved"

    def _body(self, step: Step) -> Body:
        return lambda transaction, tables: _BODIES[step.op, step.kind](transaction, tables, self._name, step)

    # -- what the switch makes of it ------------------------------------------------------------------------------

    def _settle(self, configuration: int, identifier: str) -> None:
        """Raises RunError where ovs-vswitchd does not take it over, or can't do it."""
        if not self._session.settled(configuration, SWITCH_SECONDS):
            raise RunError(
                f"it stands in the database, and ovs-vswitchd has not taken it over within {SWITCH_SECONDS:.0f} s: "
                "is it running?"
            )
        refusals = self._refusals(identifier)
        if refusals:
            raise RunError(refusals[0])

    def _refusals(self, identifier: str) -> list[str]:
        """What makes a mirror useless or harmful; that a way is missing may still change."""
        inventory = self._inventory()
        mirror = next((one for one in inventory.mirrors if one.id == identifier), Mirror("", "", ""))
        port = inventory.ports.get(mirror.output_port)
        if port is None or not (port.error or loops(mirror, port, inventory)):
            return []
        return output_problems(mirror, inventory)


def _put(transaction: Any, tables: Tables, name: str, step: Step) -> Any:
    return ovs_write.put(transaction, tables, name, step.id, step.changes)


_BODIES: Mapping[tuple[str, str], Callable[[Any, Tables, str, Step], Any]] = {
    (CREATE, MIRROR): _put,
    (UPDATE, MIRROR): _put,
    (ADOPT, MIRROR): lambda _, tables, name, step: ovs_write.take_over(tables, name, step.id),
    (DELETE, MIRROR): lambda _, tables, name, step: ovs_write.remove(tables, name, step.id),
    (DELETE, ovs_model.TUNNEL): lambda _, tables, name, step: ovs_write.remove_tunnel(tables, name, step.id),
}
"""The transaction of each step."""
