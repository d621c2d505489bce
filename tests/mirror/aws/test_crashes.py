"""A crash, a lost answer or late news, wherever it falls, is mended by the next run of `mirror aws`."""

import pytest

from tests.mirror.aws.fake import Fake
from tests.mirror.aws.wire import Lost, Refusal
from tests.mirror.aws.words import STEPS, WEB, WORDS, Run, stranger
from tests.mirror.killed import killed_after


@pytest.mark.parametrize("writes", range(1, STEPS + 1))
def test_a_crash_after_each_write_is_repaired(web: Fake, mirror_json: Run, writes: int) -> None:
    """SIGKILL after any write of create: the next run adopts what is there, and nothing is there twice."""
    stranger(web)
    killed_after(web, writes, ("aws", "create", *WORDS))

    assert mirror_json("create", *WORDS)[0] == 0

    assert mirror_json("plan", *WORDS)[0] == 0
    assert {kind: len(objects) for kind, objects in web.objects.items()} == {
        "filter": 2, "filter_rule": 4, "target": 2, "session": 3,
    }  # fmt: skip


def test_a_crash_is_repaired_though_lists_lag(web: Fake, mirror_json: Run) -> None:
    """Killed after the first create, and EC2 does not list the filter yet: the same token brings back the same one."""
    killed_after(web, 1, ("aws", "create", *WORDS))
    web.hidden_calls = 1

    assert mirror_json("create", *WORDS)[0] == 0
    assert len(web.objects["filter"]) == 1


@pytest.mark.parametrize("writes", [1, 3, 7])
def test_a_crash_during_delete_is_repaired(web: Fake, mirror_json: Run, writes: int) -> None:
    """SIGKILL midway through delete: the next delete removes the rest."""
    mirror_json("create", *WORDS)
    killed_after(web, writes, ("aws", "delete", "--name", "web", "--yes"))

    assert mirror_json("delete", "--name", "web", "--yes")[0] == 0
    assert not any(web.objects.values())


def test_the_write_count_is_right(web: Fake, mirror_json: Run) -> None:
    """The crash test covers every write that create does."""
    mirror_json("create", *WORDS)

    assert len(web.writes()) == STEPS


def test_a_lost_answer_makes_nothing_twice(web: Fake, mirror_json: Run) -> None:
    """The connection breaks after a create was done: botocore repeats it with our token."""
    web.faults += [(action, Lost()) for action in ("CreateTrafficMirrorFilter", "CreateTrafficMirrorSession")]

    assert mirror_json("create", *WEB)[0] == 0
    assert (len(web.objects["filter"]), len(web.objects["session"])) == (1, 2)


def test_throttling_and_late_news_are_waited_for(web: Fake, mirror_json: Run) -> None:
    """Two throttled calls, a filter not known yet and lists that lag behind: create succeeds all the same."""
    web.faults += [("CreateTrafficMirrorTarget", Refusal("RequestLimitExceeded", status=503))] * 2
    web.faults.append(("CreateTrafficMirrorFilterRule", Refusal("InvalidTrafficMirrorFilterId.NotFound")))

    def lag() -> None:
        web.hidden_calls = 1

    web.after_write = lag
    assert mirror_json("create", *WEB)[0] == 0
    assert len(web.objects["filter"]) == 1


def test_a_mirror_may_be_made_again_and_again(web: Fake, mirror_json: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2 may answer a known token with what was deleted since; then a new one is used, however often that was."""
    monkeypatch.setattr("guestagent.mirror.aws.provider.PATIENCE_SECONDS", 0.3)
    for _ in range(4):
        assert mirror_json("create", *WEB)[0] == 0
        assert mirror_json("delete", "--name", "web", "--yes")[0] == 0

    assert mirror_json("create", *WEB)[0] == 0
    assert mirror_json("plan", *WEB)[0] == 0
