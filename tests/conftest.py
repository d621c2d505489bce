"""What all tests share: the hypothesis profile, the marks `root` and `alone`, and no silent skips in CI."""

import fcntl
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# Examples are the same in each CI run, so that a failure there is of the commit; shared cores make deadlines lie.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if IN_CI else "dev")

MACHINE_IS_NOT_SET_UP = re.compile(
    r"\b(root|privileges?|CAP_[A-Z_]+|not installed|not found|could not import|no module named|packages?)\b",
    re.IGNORECASE,
)
"""Reasons to skip that name what `make setup` or root would bring, unlike a kernel feature that this machine lacks."""

TMP_CHARACTERS = 12
RERUN_LINES, RERUN_COLUMNS = 30, 300
"""With CI=true pytest shortens no difference between two captures."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: one test for each core, and one more, as tests of the lab wait most of their time.

    A plain user has one process: it becomes root of a user namespace, for which it may have no thread of xdist's.
    """
    return (os.cpu_count() or 1) + 1 if os.geteuid() == 0 else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `alone` come last, so that no other one waits for them."""
    items.sort(key=_is_alone)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """While a test marked `alone` runs, no other one of this checkout does, in whatever process of pytest."""
    checkout = os.open(item.config.rootpath, os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH)
        return (yield)
    finally:
        fcntl.flock(checkout, fcntl.LOCK_UN)  # closing is not enough: a child may have the descriptor still
        os.close(checkout)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's own by a shorter name: a Unix socket's path has 107 bytes at most, of which pytest takes over 70."""
    name = re.sub(r"\W", "_", request.node.name.removeprefix("test_"))
    return tmp_path_factory.mktemp(name[:TMP_CHARACTERS])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `root` are skipped for a plain user, with the reason that CI refuses."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def _refuse_skip(report: Report) -> Report:
    if not (IN_CI and report.skipped and isinstance(report.longrepr, tuple)):
        return report
    path, line, reason = report.longrepr
    if MACHINE_IS_NOT_SET_UP.search(reason):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: in CI nothing is skipped for want of root or a package: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip in a test or fixture."""
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A skip of a whole module, such as `pytest.importorskip`."""
    return _refuse_skip((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why a test failed at first that was run once more: the end of what it said."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first try of {report.nodeid}", "_")
        for line in report.longreprtext.splitlines()[-RERUN_LINES:]:
            terminalreporter.write_line(line[:RERUN_COLUMNS])
