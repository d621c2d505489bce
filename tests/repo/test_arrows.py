"""Arrows point down: words at the bottom, pure thinking above, hands above that, one desk that sees all rooms."""

import ast
from pathlib import Path

import pytest

from tests.repo.source import PACKAGE, dotted, imports, modules, parse

WORDS = {"errors", "model"}
EVERYTHING = {"*"}

MAY_IMPORT: dict[str, set[str]] = {
    # words
    "__init__": set(),
    "errors": set(),
    "model": set(),
    "flags": set(),
    # Scheme, key and port of a tunnel's URL are those of the encoders' table.
    "endpoint": WORDS | {"encap.tunnel"},
    "values": WORDS | {"endpoint"},
    "trust": WORDS | {"endpoint"},
    "settings": WORDS | {"trust"},
    "config": WORDS | {"values", "endpoint", "encap.tunnel", "settings", "trust"},
    # thinking
    "tapstream": WORDS,
    "encap": WORDS,
    "governor": WORDS | {"netlink"},
    # hands
    "netlink": set(),
    "loop": WORDS,
    "privileges": WORDS,
    "identity": WORDS,
    "cloud": WORDS | {"loop"},
    "backstops": WORDS,
    "rlimits": WORDS,
    "standback": set(),
    "capture": WORDS | {"netlink", "rlimits"},
    # A direct tunnel has no collector behind it: it walks the records itself, on the way to an endpoint.
    "links": WORDS | {"loop", "tapstream", "encap", "endpoint", "trust", "capture.block"},
    # Of capture the collector knows the layout of a record alone.
    "collector": WORDS | {"loop", "tapstream", "encap", "links", "endpoint", "capture.block", "rlimits"},
    "observe": WORDS | {"loop"},
    # A switch's tunnels are written as the agent's are, and lead to the same sensors.
    "mirror": WORDS | {"settings", "cloudinit", "encap.tunnel", "endpoint", "trust"},
    "cloudinit": WORDS | {"config", "values"},
    # The lab starts the command as a user would, in a process of its own.
    "lab": WORDS,
    # desk
    "agent": EVERYTHING,
    "check": EVERYTHING,
    "checkcollect": WORDS | {"check", "collect", "collector", "config", "endpoint", "links", "observe", "rlimits"},
    "answer": WORDS | {"endpoint", "tapstream", "trust", "links"},
    "runs": WORDS | {"capture", "tapstream"},
    "desk": WORDS | {"capture", "governor", "identity", "runs", "tapstream"},
    "sharing": WORDS | {"capture", "desk", "governor", "runs", "tapstream"},
    "follow": WORDS | {"capture", "desk"},
    "neighbours": WORDS | {"desk", "loop"},
    "steering": WORDS | {"backstops", "capture", "config", "desk", "governor", "links"},
    "lull": WORDS | {"capture", "desk", "links", "loop"},
    "way": WORDS | {"collector", "config", "desk", "links", "loop", "sharing"},
    "reload": WORDS | {"capture", "config", "desk", "start", "steering"},
    "cli": EVERYTHING,
    "demo": EVERYTHING,
    "pki": WORDS | {"tapstream", "trust"},
    "enrol": WORDS | {"config", "endpoint", "identity", "pki", "tapstream", "trust"},
    "bundle": WORDS | {"config", "identity", "observe", "settings"},
    "merge": WORDS | {"collector"},
    "__main__": EVERYTHING,
    "start": WORDS | {"capture", "config", "observe", "rlimits", "route", "standback", "trust"},
    "route": WORDS | {"capture", "links", "endpoint"},
    # The collector's desk: it runs on another machine and knows nothing of agent, capture or governor.
    "collect": WORDS
    | {"collector", "config", "endpoint", "front", "links", "loop", "observe", "reception", "rlimits"}
    | {"supervise", "trust"},
    "reception": WORDS | {"collector", "config", "endpoint", "identity", "links", "loop"},
    "front": WORDS | {"config", "loop", "observe", "privileges"},
    # Above the workers of one collector; each of them is a fork of it.
    "supervise": WORDS | {"collector", "config", "front", "links", "loop", "observe", "reception", "worker"},
    "worker": WORDS | {"collector", "config", "links", "loop", "observe", "reception"},
}
"""Room or top-level module: what it may import of guestagent, beside itself and `guestagent.__version__`."""

PURE = (
    "tapstream/**/*.py",
    "encap/**/*.py",
    "governor/**/*.py",
    "capture/assembler.py",
    "capture/block.py",
    "capture/bpf.py",
    "capture/dissect.py",
    "capture/flowhash.py",
    "capture/stages/*.py",
    "collector/foreign.py",
    "collector/leases.py",
    "collector/summary.py",
    "collector/summed.py",
    "collector/sinks/pcapng.py",
    "cloudinit/recipe.py",
    "cloudinit/render.py",
    "mirror/spec.py",
    "mirror/plan.py",
    "mirror/*/facts.py",
    "mirror/gcp/errors.py",
    "mirror/gcp/filter.py",
    "mirror/gcp/shares.py",
)
HANDS = {"governor/meter.py"}
"""The exceptions in PURE: files whose work is to read the machine."""

NOT_PURE = {
    "asyncio",
    "fcntl",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "psutil",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}


def pure_modules(package: Path = PACKAGE) -> set[str]:
    """Dotted names of the modules that think and touch nothing."""
    files = {path for pattern in PURE for path in package.glob(pattern)} - {package / name for name in HANDS}
    return {"guestagent." + ".".join(path.relative_to(package).with_suffix("").parts) for path in files}


def room_of(module: str) -> str:
    """`capture` of `guestagent.capture.ring`."""
    return [*module.split("."), "__init__"][1]


def within(name: str, allowed: str) -> bool:
    """Whether a dotted name is the allowed one or lies in it."""
    return f"{name}.".startswith(f"guestagent.{allowed}.")


def wrong_arrows(module: str, tree: ast.Module) -> list[str]:
    """A sentence for each import of guestagent that the table does not allow this module."""
    room = room_of(module)
    if room not in MAY_IMPORT:
        return [f"guestagent/{room} is not in the table of tests/repo/test_arrows.py: add a row for what it may import"]
    allowed = MAY_IMPORT[room] | {room, "__version__"}
    if "*" in allowed:
        return []
    return [
        f"{module}:{line} imports {name}; {room} may import {', '.join(sorted(MAY_IMPORT[room])) or 'nothing'} only"
        for line, name in imports(tree, module)
        if name.split(".")[0] == "guestagent" and not any(within(name, one) for one in allowed)
    ]


def impurities(module: str, tree: ast.Module, pure: set[str]) -> list[str]:
    """A sentence for each import by which a pure module would reach the machine, itself or through a neighbour."""
    found = []
    for line, name in imports(tree, module):
        ours = name.split(".")[0] == "guestagent"
        known = ours and (
            any(within(name, word) for word in WORDS) or any(f"{name}.".startswith(f"{one}.") for one in pure)
        )
        # `from guestagent.tapstream import frames` names the package as well, which is pure when its __init__ is.
        package = ours and f"{name}.__init__" in pure
        if (ours and not known and not package) or name.split(".")[0] in NOT_PURE:
            found.append(
                f"{module}:{line} imports {name}: pure modules touch nothing; let the caller pass what is needed"
            )
    return found


def test_each_room_imports_only_what_stands_below_it() -> None:
    """No module imports a room that its row in the table does not name, nor stands outside the table."""
    found = [complaint for path in modules() for complaint in wrong_arrows(dotted(path), parse(path))]

    assert not found, "\n".join(found)


def test_pure_modules_touch_nothing() -> None:
    """What encodes, decides or composes imports neither socket, os nor clock, nor a module that does."""
    pure = pure_modules()
    found = [
        complaint
        for path in modules()
        if dotted(path) in pure
        for complaint in impurities(dotted(path), parse(path), pure)
    ]

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "module, line",
    [
        ("guestagent.capture.ring", "from guestagent.governor import shed"),
        ("guestagent.capture.ring", "import guestagent.links.stream"),
        ("guestagent.model", "from guestagent.errors import ConfigError"),
        ("guestagent.collector.server", "from guestagent.capture.ring import Ring"),
        ("guestagent.collector.server", "from guestagent.capture import ring"),
        ("guestagent.collector.sinks.pcapng", "from ...capture import ring"),
        ("guestagent.collector.server", "import guestagent"),
        ("guestagent.lab.demo", "def start():\n    from guestagent.agent import Agent"),
        ("guestagent.links.stream", "from importlib import import_module\nimport_module('guestagent.capture.ring')"),
        ("guestagent.observe.status", "if TYPE_CHECKING:\n    from guestagent.agent import Agent"),
        ("guestagent.models.flow", "import json"),
    ],
)
def test_a_wrong_arrow_is_caught(module: str, line: str) -> None:
    """Each form of a forbidden import, and a room outside the table, earns one complaint."""
    assert len(wrong_arrows(module, ast.parse(line))) == 1


@pytest.mark.parametrize(
    "module, line",
    [
        ("guestagent.collector.server", "from guestagent.capture.block import RECORD"),
        ("guestagent.collector.server", "from guestagent.capture import block"),
        ("guestagent.collector.server", "from guestagent import __version__"),
        ("guestagent.capture.ring", "from . import block"),
        ("guestagent.capture.ring", "from guestagent.model import Interface"),
        ("guestagent.cli", "from guestagent.agent import run"),
    ],
)
def test_a_right_arrow_passes(module: str, line: str) -> None:
    """What the table allows earns no complaint."""
    assert not wrong_arrows(module, ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import os.path",
        "from time import monotonic",
        "def f():\n    import socket",
        "from guestagent.governor.meter import Meter",
        "from guestagent.governor import meter",
        "from . import meter",
    ],
)
def test_an_impure_import_is_caught(line: str) -> None:
    """A pure module that imports the machine, or a neighbour that does, earns one complaint."""
    pure = {"guestagent.governor.shed", "guestagent.governor.bucket", "guestagent.governor.__init__"}

    assert len(impurities("guestagent.governor.shed", ast.parse(line), pure)) == 1


def test_a_pure_import_passes() -> None:
    """A pure module may import words, pure neighbours and the harmless part of the standard library."""
    pure = {"guestagent.governor.shed", "guestagent.governor.bucket"}
    text = "import json, struct\nfrom guestagent.model import Interface\nfrom guestagent.governor import bucket"

    assert not impurities("guestagent.governor.shed", ast.parse(text), pure)


def test_meter_is_not_held_to_be_pure(tmp_path: Path) -> None:
    """Of the governor all files are pure, new ones too, but the meter."""
    (tmp_path / "governor").mkdir()
    for name in ("meter.py", "novel.py"):
        (tmp_path / "governor" / name).touch()

    assert pure_modules(tmp_path) == {"guestagent.governor.novel"}
