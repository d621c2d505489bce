"""A run of `mirror` in this process, that dies after so many of its provider's calls."""

from typing import Any

from guestagent.mirror.apply import Outcome, apply
from guestagent.mirror.plan import diff
from guestagent.mirror.spec import Spec


class Crash(BaseException):
    """The process dies."""


def run_once(provider: Any, method: str, spec: Spec, crash_after: int = 0) -> Outcome:
    """Survey, plan and apply, as the command does; the call of `method` that crashes has been answered."""
    call, calls = getattr(provider, method), 0

    def counted(*arguments: Any, **parameters: Any) -> Any:
        nonlocal calls
        answer = call(*arguments, **parameters)
        calls += 1
        if calls == crash_after:
            raise Crash
        return answer

    setattr(provider, method, counted)
    survey = provider.survey(spec)
    steps = diff(survey.wanted, survey.found, provider.kinds)
    return apply(steps, survey.found, provider, lambda done, total, what: None)
