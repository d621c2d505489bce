"""Open vSwitch port mirroring by OVSDB: reads, and does the steps of a plan. What it decides is in model.py."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from guestagent.errors import RunError
from guestagent.mirror.ovs import model as ovs_model
from guestagent.mirror.ovs import read as ovs_read
from guestagent.mirror.ovs import write as ovs_write
from guestagent.mirror.ovs.health import healths, output_problems
from guestagent.mirror.ovs.inventory import Inventory, Mirror
from guestagent.mirror.ovs.model import MIRROR, is_own
from guestagent.mirror.ovs.policy import document
from guestagent.mirror.ovs.session import COLUMNS, DATABASE, Refused, Session, Tables
from guestagent.mirror.plan import ADOPT, CREATE, DELETE, UPDATE, Step
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import Health, Survey

SWITCH_SECONDS = 5.0
"""ovs-vswitchd takes over a change within milliseconds; with 10,000 ports within a second."""
LOOK_SECONDS = 0.3
"""Of a tunnel that was led elsewhere the switch tells the new way a few milliseconds after it has taken it over."""
NOTHING: Mapping[str, Any] = {"select_all": False, "ingress": (), "egress": ()}
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

    def create(self, step: Step, properties: Mapping[str, Any], *, is_repeatable: bool) -> str:
        """Make the mirror; what the switch refuses is taken back."""
        if not _has_tunnel(properties):
            return self._commit(step, properties)
        identifier = self._commit(step, {**properties, **NOTHING})
        made = replace(step, op=UPDATE, id=identifier)
        try:
            self._check(identifier)
            self._commit(made, {key: properties[key] for key in NOTHING})
        except Refused:
            self.delete(replace(made, op=DELETE))
            raise
        return identifier

    def update(self, step: Step, properties: Mapping[str, Any]) -> None:
        """Set these properties."""
        if _has_tunnel(properties):
            selection = self._selection(step.id) | {key: properties[key] for key in NOTHING if key in properties}
            self._commit(step, {**properties, **NOTHING})
            time.sleep(LOOK_SECONDS)
            self._check(step.id)
            properties = selection
        self._commit(step, properties)

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

    def _commit(self, step: Step, properties: Mapping[str, Any]) -> str:
        """The mirror's identifier. Raises RunError where ovs-vswitchd does not take it over."""
        written = self._session.write(self._body(replace(step, changes=properties)))
        if not self._session.settled(written.configuration, SWITCH_SECONDS):
            raise RunError(
                f"it stands in the database, and ovs-vswitchd has not taken it over within {SWITCH_SECONDS:.0f} s: "
                "is it running?"
            )
        return written.result

    def _check(self, identifier: str) -> None:
        """Raises Refused where the switch can't make the tunnel."""
        inventory = self._inventory()
        for mirror in inventory.mirrors:
            port = inventory.ports.get(mirror.output_port)
            if mirror.id == identifier and port and port.error:
                raise Refused(f"the switch refuses {port.name}: {port.error}")

    def _selection(self, identifier: str) -> dict[str, Any]:
        """What the mirror selects now."""
        (one,) = [one for one in self._inventory().mirrors if one.id == identifier] or [Mirror("", "", "")]
        return {"select_all": one.select_all, "ingress": one.destinations, "egress": one.sources}


def _has_tunnel(properties: Mapping[str, Any]) -> bool:
    """A tunnel is made before anything is selected for it, so that a loop is seen before a packet runs in it: one that
    sends through a bridge of which it gets a copy ends an ovs-vswitchd 3.1 with the user-space datapath."""
    return "://" in properties.get("output", "")


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
