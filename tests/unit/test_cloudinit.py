"""User-data and vendor-data: valid for cloud-init, and out of them comes what the agent, apt and dnf read."""

import configparser
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from guestagent.cli import main
from guestagent.cloudinit.recipe import CONFIG_PATH, FAMILIES, File, Recipe, own_files, toml
from guestagent.cloudinit.render import FORMS, user_data, vendor_data
from guestagent.config import load_run

ROOT = Path(__file__).parents[2]
SCHEMA = Path(sys.prefix) / "share" / "cloudinit" / "config" / "schemas" / "schema-cloud-config-v1.json"
KEY = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEawsiNRYJKwYBBAHaRw8BAQ==\n=VpB/\n-----END PGP PUBLIC KEY BLOCK-----\n"
)
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
EXAMPLE = ("--repository", "https://packages.example/guestagent", "--to", "tls://collector.example")
_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"))
LINES = _TEXTS.map(lambda text: text.rstrip("\n")).filter(lambda text: text.strip()).map(lambda text: f"{text}\n")
"""No file of ours is empty; a first line may be, or begin with spaces."""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Flags that name a key and an authority."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "ca").write_text(CA)
    return ("--repository-key", str(tmp_path / "key"), "--ca", str(tmp_path / "ca"))


def rendered(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints."""
    assert main(["cloud-init", "render", *words]) == 0
    return capsys.readouterr().out


def recipe(**changes: Any) -> Recipe:
    """One with everything in it."""
    settings = {"to": ["tls://collector.example"], "cpu": 3.0, "slice": "headers", "full": True}
    return Recipe(**{"repository": "https://r.example/x", "repository_key": KEY, "settings": settings, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_user_data_holds_to_the_schema_of_cloud_init(family: str) -> None:
    """Upstream's own schema accepts it, and refuses it with a key misspelt."""
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.exists():
        pytest.skip(f"not installed: {SCHEMA}; run `make setup`")
    schema = json.loads(SCHEMA.read_text())
    config = yaml.safe_load(user_data(recipe(pin="1.2.3", proxy="http://10.0.0.2:3128", ca=CA), family))
    jsonschema.validate(config, schema)
    config["write_files"][0]["ownr"] = "root:root"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_agent_reads_the_config_it_is_given(
    family: str, files: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Budgets, slice, filter and the three files of TLS come out of the YAML as they went in by flags."""
    text = rendered(
        capsys,
        *("--family", family, *EXAMPLE, *files, "--cpu", "2.5", "--rate", "50mbit", "--yield", "off"),
        *("--filter", 'not port 22 and not host "x"', "--slice", "96", "-i", "eth*"),
        *("--tag", "role=web", "--tag", 'owner=team "x"'),
    )
    entries = {one["path"]: one for one in yaml.safe_load(text)["write_files"]}
    path = tmp_path / "guestagent.toml"
    path.write_text(entries[CONFIG_PATH]["content"])
    config = load_run(str(path), {})

    assert (config.cpu, config.rate, config.yields, config.slice) == (2.5, 50e6 / 8, False, 96)
    assert config.filter == 'not port 22 and not host "x"'
    assert config.interface == ("eth*",)
    assert config.tags == {"role": "web", "owner": 'team "x"'}
    assert config.tls_ca == "/etc/guestagent/ca.crt"
    assert entries["/etc/guestagent/ca.crt"]["content"] == CA
    assert (entries[CONFIG_PATH]["permissions"], entries[CONFIG_PATH]["owner"]) == ("0640", "root:guestagent")
    assert entries[CONFIG_PATH]["defer"], "the group is made by the package, so the file comes after it"


def test_apt_and_dnf_get_their_own_files() -> None:
    """The key is the one source's alone; a version is pinned and a proxy set for this repository and no other."""
    one = recipe(pin="1.2.3", proxy="http://10.0.0.2:3128")
    apt = {file.path: file.text for file in FAMILIES["apt"].files(one)}
    dnf = {file.path: file.text for file in FAMILIES["dnf"].files(one)}
    repository = configparser.ConfigParser()
    repository.read_string(dnf["/etc/yum.repos.d/guestagent.repo"])

    assert "Signed-By: /etc/apt/keyrings/guestagent.asc\n" in apt["/etc/apt/sources.list.d/guestagent.sources"]
    assert apt["/etc/apt/keyrings/guestagent.asc"] == KEY
    assert "Pin: version 1.2.3*\n" in apt["/etc/apt/preferences.d/guestagent"]
    assert apt["/etc/apt/apt.conf.d/90guestagent-proxy"] == (
        'Acquire::https::Proxy::r.example "http://10.0.0.2:3128";\n'
    )
    assert repository["guestagent"]["gpgcheck"] == repository["guestagent"]["repo_gpgcheck"] == "1"
    assert repository["guestagent"]["proxy"] == "http://10.0.0.2:3128"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vendors_script_does_the_same(family: str, tmp_path: Path) -> None:
    """Run by a shell whose commands are ours: the same files with the same bytes, then the installation, in order."""
    one = recipe(pin="1.2.3", proxy="http://10.0.0.2:3128", ca=CA)
    wanted = [*FAMILIES[family].files(one), *own_files(one)]
    script = vendor_data(one, family)
    for file in wanted:
        script = script.replace(f"put {file.path} ", f"put {tmp_path}{file.path} ")
    calls = tmp_path / "calls"
    for name in ("apt-get", "dnf", "systemctl", "chown"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\n[ "$2" != is-enabled ]\n')
        (tmp_path / name).chmod(0o755)
    subprocess.run(["sh"], input=script, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})

    for file in wanted:
        path = Path(f"{tmp_path}{file.path}")
        assert (path.read_text(), f"{path.stat().st_mode & 0o7777:04o}") == (file.text, file.mode)
    said = [line for line in calls.read_text().splitlines() if not line.startswith("chown root:root")]
    install = next(at for at, line in enumerate(said) if "install" in line)
    owner = next(at for at, line in enumerate(said) if "root:guestagent" in line)
    assert install < owner < said.index("systemctl enable --now guestagent")


def test_openstack_wraps_the_same_script() -> None:
    """Nova's JSON carries it under the key that cloud-init reads."""
    assert json.loads(FORMS["openstack"](recipe(), "apt")) == {"cloud-init": vendor_data(recipe(), "apt")}


@given(text=LINES)
def test_every_text_survives_yaml(text: str) -> None:
    """What stands in a file's content is what cloud-init writes, whatever is in it."""
    from guestagent.cloudinit.render import _entry

    entry = yaml.safe_load("\n".join([*_entry(File("/x", text)), ""]))[0]

    assert entry["content"] == text


SETTINGS = st.dictionaries(
    st.sampled_from(["filter", "slice", "dedupe"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))
    | st.integers(0, 2**62)
    | st.booleans(),
)


@given(
    settings=SETTINGS,
    table=st.dictionaries(st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.integers(0, 99)),
)
def test_every_setting_survives_toml(settings: dict[str, Any], table: dict[str, int]) -> None:
    """The settings come back from the standard library's reader."""
    assert tomllib.loads(toml({**settings, "keys": table})) == {**settings, "keys": table}


@pytest.mark.parametrize(
    "words, said",
    [
        (("--to", "tls://c.example:port"), "--to"),
        (("--rate", "fast"), "--rate"),
        (("--repository", "ftp://x"), "--repository: 'ftp://x' is no URL"),
        (("--repository", "https://u:p@x"), "everybody on the VM could read"),
        (("--repository", 'https://x/"; exit'), "is no URL"),
        (("--proxy", "10.0.0.2:3128"), "--proxy"),
        (("--pin", "1.2\nx"), "--pin"),
        (("--tag", "role"), "--tag: 'role' is no tag"),
        (("--tag", "ro le=web"), "--tag: the name of a tag"),
        (("--ca", "/nowhere"), "/nowhere can't be read"),
        (("-o", "/nowhere/file"), "--output: /nowhere/file can't be written"),
    ],
)
def test_bad_input_gets_a_sentence(
    words: tuple[str, ...], said: str, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the agent, apt or dnf would choke on is refused here, with the flag's name."""
    assert main(["cloud-init", "render", "--family", "apt", *EXAMPLE, *files, *words]) in {1, 2}
    assert said in capsys.readouterr().err


def test_a_private_key_is_never_rendered(
    tmp_path: Path, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with a private key in it, alone or behind the certificate, is refused."""
    secret = tmp_path / "both"
    secret.write_text(CA + "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n")

    assert main(["cloud-init", "render", "--family", "apt", *EXAMPLE, *files, "--ca", str(secret)]) == 2
    assert "private key" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form, name", [("user-data", "user-data.{}.yaml"), ("vendor-data", "vendor-data.{}.sh")])
def test_the_templates_are_what_the_command_writes(
    form: str, name: str, family: str, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """cloudinit/ shows today's output, with placeholders where a key and an authority stand."""
    text = rendered(capsys, "--family", family, "--form", form, *EXAMPLE, *files, "--cpu", "5")

    assert (ROOT / "cloudinit" / name.format(family)).read_text() == text
