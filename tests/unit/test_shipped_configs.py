"""The configs that the packages lay: they parse, name every key, and show the defaults as they are."""

import re
import tomllib
from typing import Any

import pytest

from guestagent import config, settings
from guestagent.config import CollectConfig, RunConfig, load_collect, load_run
from guestagent.errors import ConfigError
from tests.repo.source import ROOT

SHIPPED = {
    "guestagent.toml": (config._RUN_KEYS, RunConfig(), load_run),
    "collect.toml": (config._COLLECT_KEYS, CollectConfig(), load_collect),
}
EXAMPLES = set(
    "filter seed dedupe packets rate ring agent_id collector_id metrics report tap keys tags tls cpu mode".split()
)
"""Keys whose line is an example, or a default that depends on the machine."""


def text_of(name: str) -> str:
    return (ROOT / "packaging" / "etc" / name).read_text(encoding="utf-8")


def uncommented(name: str) -> dict[str, Any]:
    """The config with each of its keys in force."""
    return tomllib.loads(re.sub(r'(?m)^#(?=[a-z_]+ = |\[|")', "", text_of(name)))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_is_there(name: str) -> None:
    """Each key of the table stands in the file, with a value that the table takes, and no other does."""
    keys, _, _ = SHIPPED[name]
    found = dict(settings.flat(uncommented(name)))

    assert set(keys) == set(found)
    for key, value in found.items():
        keys[key](value, key)


@pytest.mark.parametrize("name", SHIPPED)
def test_defaults_are_the_defaults(name: str) -> None:
    """What a line shows is what is in force without it, where it is no example."""
    keys, defaults, _ = SHIPPED[name]
    for key, value in uncommented(name).items():
        if key not in EXAMPLES | {"to", "listen"}:
            shown, real = keys[key](value, key), getattr(defaults, settings._field(key))
            assert shown == real or (key == "yield" and real is None), key


@pytest.mark.parametrize("name", SHIPPED)
def test_as_shipped_it_says_what_to_set(name: str) -> None:
    """As laid, the config is refused with a sentence that names the file and the key."""
    path = ROOT / "packaging" / "etc" / name
    path.chmod(0o644)
    _, _, load = SHIPPED[name]
    with pytest.raises(ConfigError, match=rf"{name}: (to|listen): no destination|no --listen"):
        load(str(path), {})
