"""`guestagent mirror PROVIDER ACTION`: reads the spec, looks, plans, asks, does, and says what it did."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any

from guestagent.cloudinit.command import recipe_of, write
from guestagent.cloudinit.render import user_data
from guestagent.errors import ConfigError, RunError
from guestagent.mirror import show
from guestagent.mirror.apply import Outcome, apply
from guestagent.mirror.plan import KEEP, Resource, Step, diff, has_changes, identifiers, removal, resolve
from guestagent.mirror.providers import check, connect, policy
from guestagent.mirror.spec import KEYS, Spec
from guestagent.mirror.survey import Health, Provider, Survey
from guestagent.mirror.terminal import confirm, most_lines, progress, reading
from guestagent.settings import merge

DONE, FAILED, CHANGES = 0, 1, 4
REFUSED = "refused: "


class Mirror:
    """One invocation. `provider` connects at the first use, so that `policy` needs no SDK."""

    def __init__(self, provider_name: str, flags: dict[str, Any]) -> None:
        self._name = provider_name
        self._as_json = bool(flags.pop("json", None))
        self._dry_run = bool(flags.pop("dry_run", None))
        self._yes = bool(flags.pop("yes", None))
        self._adopt = tuple(flags.pop("adopt", None) or ())
        self._user_data = {key: flags.pop(key, None) for key in ("user_data", "family", "repository", "repository_key")}
        self._spec = Spec(**merge(flags.pop("file", None), flags, dict(KEYS)))
        check(provider_name, self._spec)
        self._open = ExitStack()

    def run(self, action: str) -> int:
        """The exit code. Raises GuestagentError."""
        with self._open:
            return _ACTIONS[action](self)

    def _connect(self) -> Provider:
        return self._open.enter_context(closing(connect(self._name, self._spec)))

    def _need(self, *keys: str) -> None:
        for key in keys:
            if not getattr(self._spec, key):
                raise ConfigError(f"no {key}: give --{key}, or the key in mirror.toml")

    def _say(self, lines: Sequence[str]) -> None:
        if not self._as_json:
            sys.stdout.write("".join(f"{line}\n" for line in lines))

    def _say_steps(self, head: str, steps: Sequence[Step], proofs: dict[int, str]) -> None:
        self._say([head, *show.steps_text(steps, proofs, most_lines())])

    def _json(self, kind: str, **content: Any) -> None:
        if self._as_json:
            sys.stdout.write(show.as_json(kind, self._name, **content))

    # -- actions --------------------------------------------------------------------------------------------------

    def plan(self) -> int:
        """Look, and say what create would do. Without a name or a target: the choice for each machine alone."""
        if not (self._spec.source or self._spec.vpc or self._spec.tag):
            raise ConfigError("nothing selects a machine: give --source, --vpc or --tag")
        provider = self._connect()
        survey, steps = self._survey(provider)
        proofs = self._prove(provider, steps, survey.found) if self._dry_run else {}
        self._show_plan(survey, steps, proofs)
        self._render_user_data(survey)
        _refuse_refused(proofs)
        return CHANGES if has_changes(steps) else DONE

    def create(self) -> int:
        """Bring about what the spec says."""
        self._need("name", "source" if not (self._spec.vpc or self._spec.tag) else "name", "target")
        if self._dry_run:
            return self.plan()
        provider = self._connect()
        survey, steps = self._survey(provider)
        if not survey.wanted:
            self._show_plan(survey, steps, {})
            raise RunError("none of the selected machines can be mirrored natively: run the agent there")
        self._say([f"note: {text}" for text in survey.warnings])
        self._say_steps("steps:", steps, {})
        outcome = apply(steps, survey.found, provider, progress())
        self._render_user_data(survey)
        return self._conclude(steps, outcome, survey)

    def delete(self) -> int:
        """Remove all that is ours of this name, and nothing else."""
        self._need("name")
        provider = self._connect()
        own = [one for health in _mirrors(provider) if health.name == self._spec.name for one in health.resources]
        steps = removal(own, provider.kinds)
        if self._dry_run:
            proofs = self._prove(provider, steps, own)
            self._say_steps(f"mirror {self._spec.name}:", steps, proofs)
            self._json("plan", name=self._spec.name, steps=_steps_json(steps, proofs))
            _refuse_refused(proofs)
            return CHANGES if steps else DONE
        self._say_steps(f"mirror {self._spec.name}:", steps, {})
        if steps and not self._yes:
            if self._as_json:  # standard output is for the document alone
                sys.stderr.write("".join(f"{line}\n" for line in show.steps_text(steps, {}, None)))
            confirm(len(steps))
        return self._conclude(steps, apply(steps, own, provider, progress()))

    def list(self) -> int:
        """All mirrors of ours."""
        healths = _mirrors(self._connect())
        for health in healths:
            self._say(show.health_text(health)[:1])
        self._say([] if healths else ["no mirror of ours here"])
        self._json("list", mirrors=[show.health_json(one) for one in healths])
        return DONE

    def status(self) -> int:
        """One mirror; exit 1 where it is broken."""
        self._need("name")
        found = [one for one in _mirrors(self._connect()) if one.name == self._spec.name]
        if not found:
            raise RunError(
                f"there is no mirror {self._spec.name} of ours here: see `guestagent mirror {self._name} list`"
            )
        self._say(show.health_text(found[0]))
        self._json("status", **show.health_json(found[0]))
        return FAILED if found[0].problems else DONE

    def policy(self) -> int:
        """What a role needs."""
        sys.stdout.write(policy(self._name, self._spec) + "\n")
        return DONE

    # -- parts ----------------------------------------------------------------------------------------------------

    def _survey(self, provider: Provider) -> tuple[Survey, tuple[Step, ...]]:
        with reading():
            survey = provider.survey(self._spec, self._adopt)
        if not (self._spec.name and self._spec.target):
            return survey, ()
        if not survey.wanted:  # nothing can be mirrored: what is there stays, `delete` removes it
            return survey, ()
        return survey, diff(survey.wanted, survey.found, provider.kinds, self._adopt)

    def _prove(self, provider: Provider, steps: Sequence[Step], found: Sequence[Resource]) -> dict[int, str]:
        """What the provider says of each step, by its number. Where one is refused its likes are not asked for."""
        proofs: dict[int, str] = {}
        refused: dict[tuple[str, str], str] = {}
        todo = [(number, step) for number, step in enumerate(steps) if step.op != KEEP]
        ids, tell = identifiers(found), progress()
        for count, (number, step) in enumerate(todo):
            tell(count, len(todo), f"ask for {step.op} {step.kind} {step.key}")
            likes = (step.op, step.kind)
            if likes not in refused:
                try:
                    changes = {name: resolve(value, ids) for name, value in step.changes.items()}
                    proofs[number] = provider.prove(replace(step, changes=changes))
                    continue
                except RunError as error:
                    refused[likes] = str(error)
            proofs[number] = REFUSED + refused[likes]
        tell(len(todo), len(todo), "asked")
        return proofs

    def _show_plan(self, survey: Survey, steps: Sequence[Step], proofs: dict[int, str]) -> None:
        self._say(["machines:", *show.choices_text(survey.choices, most_lines())])
        if self._spec.name and self._spec.target:
            self._say_steps("steps:", steps, proofs)
        self._say([f"note: {text}" for text in survey.warnings])
        self._json(
            "plan",
            name=self._spec.name,
            steps=_steps_json(steps, proofs),
            machines=[asdict(one) for one in survey.choices],
            warnings=list(survey.warnings),
            verified="permissions" if set(proofs.values()) == {"proved"} else "reads-only",
        )

    def _render_user_data(self, survey: Survey) -> None:
        machines = show.agents_of(survey.choices)
        if not self._user_data["user_data"]:
            if machines:
                self._say([f"note: --user-data FILE writes the cloud-init of the {len(machines)} that need the agent"])
            return
        for key, what in (("family", "apt or dnf"), ("repository", "URL"), ("repository_key", "FILE")):
            if not self._user_data[key]:
                flag = key.replace("_", "-")
                raise ConfigError(f"no --{flag}: --user-data needs --{flag} {what}, as `guestagent cloud-init` does")
        if not self._spec.collector:
            raise ConfigError("no collector: --user-data needs --collector URL, where the agents send to")
        recipe = recipe_of({**self._user_data, "to": [self._spec.collector]})
        write(user_data(recipe, self._user_data["family"]), self._user_data["user_data"], "--user-data")

    def _conclude(self, steps: Sequence[Step], outcome: Outcome, survey: Survey | None = None) -> int:
        self._json(
            "outcome",
            name=self._spec.name,
            done=[show.step_json(one) for one in outcome.done],
            failed=[{**show.step_json(one), "error": text} for one, text in outcome.failed],
            machines=[asdict(one) for one in survey.choices] if survey else [],
            warnings=list(survey.warnings) if survey else [],
        )
        for step, text in outcome.failed:
            sys.stderr.write(f"guestagent: {step.op} {step.kind} {step.key}: {text}\n")
        if outcome.failed:
            raise RunError(
                f"{len(outcome.failed)} of {len(outcome.done) + len(outcome.failed)} steps failed: run again"
            )
        self._say([f"{len(outcome.done)} steps done" if outcome.done else "nothing to do"])
        return DONE


_ACTIONS: dict[str, Callable[[Mirror], int]] = {
    "plan": Mirror.plan,
    "create": Mirror.create,
    "list": Mirror.list,
    "status": Mirror.status,
    "delete": Mirror.delete,
    "policy": Mirror.policy,
}


def _steps_json(steps: Sequence[Step], proofs: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {**show.step_json(step), **({"proof": proofs[number]} if number in proofs else {})}
        for number, step in enumerate(steps)
    ]


def _mirrors(provider: Provider) -> list[Health]:
    with reading():
        return provider.mirrors()


def _refuse_refused(proofs: dict[int, str]) -> None:
    """Raises RunError with every reason, each once."""
    refused = [text.removeprefix(REFUSED) for text in proofs.values() if text.startswith(REFUSED)]
    if refused:
        raise RunError(f"{len(refused)} of {len(proofs)} steps are refused: {'; '.join(dict.fromkeys(refused))}")


def mirror(flags: dict[str, Any]) -> int:
    """The verb. Raises GuestagentError."""
    provider, action = flags.pop("provider"), flags.pop("action")
    return Mirror(provider, flags).run(action)
