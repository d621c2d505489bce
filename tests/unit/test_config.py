"""The config: each bad input is one sentence that begins with the key's path; good ones come out as they were meant."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent import values
from guestagent.config import (
    CollectConfig,
    Endpoint,
    RunConfig,
    load_collect,
    load_run,
)
from guestagent.errors import ConfigError
from guestagent.values import size as parse_size
from guestagent.values import slice_ as parse_slice

LISTEN = {"listen": ["tcp://127.0.0.1:0"]}


def run_with(tmp_path: Path, text: str | bytes, flags: dict[str, Any] | None = None) -> RunConfig:
    """The config of `run` with this file."""
    path = tmp_path / "guestagent.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_run(str(path), flags or {})


def test_defaults() -> None:
    """Without file and flags `run` writes everything of the default interface to captures."""
    assert RunConfig() == load_run(None, {})
    assert (Endpoint("dir", path="captures"),) == load_run(None, {}).to
    assert CollectConfig(listen=(Endpoint("tcp", "127.0.0.1", 0),)) == load_collect(None, LISTEN)


def test_every_key_of_run(tmp_path: Path) -> None:
    """Each key of a complete file arrives with its meaning."""
    text = """
    interface = ["eth*", "ens5"]
    to = "tcp://[fd00::1]"
    filter = "tcp port 80"
    slice = 128
    ring = "16MiB"
    promiscuous = true
    engine = "ring"
    full = true
    duration = 1.5
    report = "r.json"
    agent_id = "vm-1"
    rotate_bytes = "1.5 GB"
    rotate_seconds = 60
    retain_bytes = 0
    """
    expected = RunConfig(
        interface=("eth*", "ens5"),
        to=(Endpoint("tcp", "fd00::1", 4795),),
        filter="tcp port 80",
        slice=128,
        ring=16 << 20,
        promiscuous=True,
        engine="ring",
        full=True,
        duration=1.5,
        report="r.json",
        agent_id="vm-1",
        rotate_bytes=1_500_000_000,
        rotate_seconds=60.0,
        retain_bytes=0,
    )

    assert expected == run_with(tmp_path, text)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """A flag that was given replaces the file's key; one that was not leaves it."""
    config = run_with(tmp_path, 'slice = 128\nring = "1MB"\n', {"slice": "headers", "ring": None})

    assert ("headers", 1_000_000) == (config.slice, config.ring)


BAD_FILES = [
    ("colour = 1", "colour is no key of the config: choose among agent_id, allow_cleartext"),
    ("run.slice = 1", "run is no key of the config"),
    ("[tls]\nverify = false", "tls.verify is no key of the config"),
    ("tls = 1", "tls is no key of the config"),
    ("tcp_ca = 1", "tcp_ca is no key of the config"),
    ("slice = 13", "slice: 13 is neither"),
    ("slice = 262145", "slice: 262145 is neither"),
    ("slice = -1", "slice: -1 is neither"),
    ("slice = 1.5", "slice: 1.5 is neither"),
    ("slice = true", "slice: True is neither"),
    ("slice = 'half'", "slice: 'half' is neither"),
    ("ring = 'much'", "ring: 'much' is no size"),
    ("ring = '64M'", "ring: '64M' is no size"),
    ("ring = '-1'", "ring: '-1' is no size"),
    ("ring = -1", "ring: -1 is no size"),
    ("ring = 1.5", "ring: 1.5 is no size"),
    ("ring = []", "ring: [] is no size"),
    ("ring = true", "ring: True is no size"),
    (f"ring = '{'9' * 400}'", "is no size"),
    (f"ring = {'9' * 400}", "is no size"),
    (f"ring = {'9' * 5000}", "is no TOML"),
    (f"ring = {'[' * 3000}{']' * 3000}", "is no TOML"),
    ("duration = -1", "duration: -1 must be a number of seconds"),
    ("duration = nan", "duration: nan must be a number of seconds"),
    ("duration = inf", "duration: inf must be a number of seconds"),
    ("duration = '1s'", "duration: '1s' must be a number of seconds"),
    ("duration = true", "duration: True must be a number of seconds"),
    ("promiscuous = 1", "promiscuous: 1 must be true or false"),
    ("full = 'yes'", "full: 'yes' must be true or false"),
    ("engine = 'dpdk'", "engine: 'dpdk' must be one of 'auto'"),
    ("engine = []", "engine: [] must be one of 'auto'"),
    ("filter = 80", "filter: 80 must be text"),
    ('filter = "tcp\\u0000"', "must be text"),
    ("interface = 1", "interface: 1 must be a list"),
    ("interface = [1]", "interface: 1 must be text"),
    ("interface = {a = 1}", "must be a list"),
    ("agent_id = '..'", "agent_id: '..' must be 1 to 64 of"),
    ("agent_id = 'a/b'", "agent_id: 'a/b' must be 1 to 64 of"),
    (f"agent_id = '{'x' * 65}'", "must be 1 to 64 of"),
    ("agent_id = 0", "agent_id: 0 must be"),
    ("agent_id = false", "agent_id: False must be"),
    ("to = []", "to: no destination"),
    ("to = ['dir:a', 'dir:b']", "to: several destinations are all collectors"),
    (
        "to = ['tcp://h', 'vxlan://h?vni=1']",
        "to: several destinations are all collectors, tls:// or tcp://, or all tunnels",
    ),
    ("to = ['gre://h?key=1', 'gre://h?key=1']", "to: the same destination is named twice"),
    ("mode = 'first'", "mode: 'first' must be one of 'balance', 'replicate', 'failover', 'spread'"),
    ("mode = 'spread'\nto = 'gre://h?key=1'", "mode: 'spread' is not for tunnels: choose among balance, replicate"),
    ("mode = 'replicate'", "mode: 'replicate' copies to several collectors, and to names one"),
    (
        "mode = 'replicate'\nto = ['tcp://10.0.0.1', 'tcp://10.0.0.2', 'tcp://10.0.0.3', 'tcp://10.0.0.4']",
        "to: 4 collectors are more than the 3 that mode = 'replicate' takes: name fewer",
    ),
    (
        "mode = 'replicate'\ndedupe = 'vpc-1'\nto = ['tcp://10.0.0.1', 'tcp://10.0.0.2']",
        "mode: with 'replicate' one collector can't lease packets for another: leave dedupe out",
    ),
    ("oversize = 'fragment'", "oversize: 'fragment' must be one of"),
    ("keys = 5", "keys: 5 must be a table"),
    ("[keys]\n'eth0 up' = 5", "keys: 'eth0 up' must be an interface"),
    ("[keys]\n'in out' = 5", "keys: 'in out' must be an interface"),
    ("[keys]\n'' = 5", "keys: '' must be an interface"),
    ("[keys]\neth0 = -1", "keys.eth0: -1 must be a whole number"),
    ("[keys]\neth0 = true", "keys.eth0: True must be a whole number"),
    ("[keys]\neth0 = 5", "keys: only tunnels have keys"),
    ("to = ['erspan://h?session=1', 'vxlan://h?vni=1']\n[keys]\nin = 1024", "keys.in: 1024 is more than the 1023"),
    ("to = 5", "to: 5 must be a list"),
    ("to = 'udp://h'", "to: 'udp://h' is no address that this version knows"),
    ("slice =", "is no TOML"),
    ("slice = 1\nslice = 2", "is no TOML"),
    (b"\xff\xfe", "is no TOML"),
    ("date = 1979-05-27", "date is no key"),
    ("rotate_seconds = 1979-05-27", "must be a number of seconds"),
]


@pytest.mark.parametrize("text, message", BAD_FILES, ids=lambda value: str(value)[:30])
def test_bad_files_are_one_sentence(tmp_path: Path, text: str | bytes, message: str) -> None:
    """Each bad key or value is a ConfigError of one line that names file and key, and no traceback."""
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        run_with(tmp_path, text)

    assert 2 == caught.value.exit_code
    assert "\n" not in str(caught.value)
    assert "guestagent.toml" in str(caught.value) or message.startswith(("to: ", "mode: ", "keys: only", "keys.in"))


def test_missing_files_are_one_sentence(tmp_path: Path) -> None:
    """A config that is not there, or is a directory, is named with the reason."""
    with pytest.raises(ConfigError, match="can't be read: No such file or directory"):
        load_run(str(tmp_path / "none.toml"), {})
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load_collect(str(tmp_path), LISTEN)


def test_flags_are_named_as_typed() -> None:
    """A bad flag is named with its dashes."""
    with pytest.raises(ConfigError, match=r"^--agent-id: '\.\.' must be"):
        load_run(None, {"agent_id": ".."})
    with pytest.raises(ConfigError, match=r"^--rotate-bytes: 'x' is no size"):
        load_collect(None, {"rotate_bytes": "x", **LISTEN})


def test_a_key_of_the_other_verb_is_unknown(tmp_path: Path) -> None:
    """`write` means nothing to `run`, `to` nothing to `collect`."""
    with pytest.raises(ConfigError, match="write is no key of the config"):
        run_with(tmp_path, "write = 'x'")
    path = tmp_path / "collect.toml"
    path.write_text("to = 'dir:x'")
    with pytest.raises(ConfigError, match="to is no key of the config: choose among allow_cleartext, collector_id"):
        load_collect(str(path), LISTEN)


def test_collect_needs_a_listener() -> None:
    """Without --listen the sentence shows one."""
    for flags in ({}, {"listen": None}, {"listen": []}):
        with pytest.raises(ConfigError, match=r"no --listen: write for example --listen tcp://10\.0\.0\.9:4795"):
            load_collect(None, flags)


SIZES = {
    "0": 0, "65536": 65536, 7: 7, "1kB": 1000, "1 KB": 1000, "64MB": 64_000_000, "1GiB": 1 << 30, "1.5MiB": 1_572_864,
    " 2 gb ": 2 * 10**9, "0.5kib": 512,
}  # fmt: skip


@pytest.mark.parametrize("text, size", SIZES.items())
def test_sizes(text: str | int, size: int) -> None:
    """Numbers with decimal and binary units become bytes."""
    assert size == parse_size(text, "x")


@given(st.text(max_size=12) | st.from_regex(r"\d{1,400}\.?\d{0,9} ?[kKmMgG]?[iI]?[bB]?", fullmatch=True))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    """Any text is a whole number of bytes or a ConfigError."""
    try:
        size = parse_size(text, "--ring")
    except ConfigError:
        return
    assert isinstance(size, int)
    assert size >= 0


@given(st.text(max_size=12) | st.integers() | st.sampled_from(["9" * 5000, "²", "١٤", "full", "headers", "14"]))
def test_any_slice_is_sound_or_refused(value: str | int) -> None:
    """Any value is `full`, `headers`, 14 to 262,144 bytes, or a ConfigError."""
    try:
        found = parse_slice(value, "--slice")
    except ConfigError:
        return
    assert found in ("full", "headers") or 14 <= int(found) <= 262_144


@pytest.mark.parametrize(
    "text", ["tags = 3", '[tags]\n"a b" = "x"', "[tags]\nrole = 3", f'[tags]\nrole = "{"x" * 65}"']
)
def test_bad_tags_are_named(tmp_path: Path, text: str) -> None:
    """No table, a name with a space, a number, a long text: one sentence with the key."""
    path = tmp_path / "c.toml"
    path.write_text(f'to = "tcp://10.0.0.9"\n{text}\n')
    with pytest.raises(ConfigError, match="tags"):
        load_run(str(path), {})


def test_keys_are_found_however_they_are_spaced() -> None:
    """What is accepted is what is looked for."""
    assert values.keys({" eth0": 1, "eth0  out": 2, "in": 3}, "keys") == {"eth0": 1, "eth0 out": 2, "in": 3}
