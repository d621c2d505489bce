"""Metadata from a real HTTP server on the real address in a namespace, with botocore's own client as second opinion."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import HostError
from guestagent.lab.hosts import Host, Lab
from guestagent.mirror.metadata import Cloud
from tests.mirror.aws.fake import Fake
from tests.mirror.metadata_fake import AWS, AZURE, GCP, serve


@pytest.fixture
def vm() -> Iterator[Host]:
    """A host with the link-local address."""
    try:
        lab = Lab()
        host = lab.host("vm")
    except HostError as error:
        pytest.skip(str(error))
    with lab:
        host.run(["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"])
        host.run(["ip", "link", "set", "lo", "up"])
        yield host


def asked(host: Host, **environment: str) -> Any:
    """What the child of the agent prints."""
    command = [sys.executable, "-m", "guestagent.mirror.metadata"]
    return json.loads(host.run(command, env={**os.environ, **environment}).stdout)


EXPECTED = {
    "aws": {
        "provider": "aws",
        "instance_id": "i-0123456789abcdef0",
        "zone": "eu-central-1a",
        "kind": "m5.large",
        "tags": [["Name", "web1"], ["team/role", "front [31m"]],
        "label": "aws i-0123456789abcdef0 eu-central-1a m5.large",
    },
    "gcp": {
        "provider": "gcp",
        "instance_id": str(GCP["id"]),
        "zone": "europe-west3-b",
        "kind": "e2-small",
        "tags": [["web", ""]],
        "label": f"gcp {GCP['id']} europe-west3-b e2-small",
    },
    "azure": {
        "provider": "azure",
        "instance_id": AZURE["compute"]["vmId"],
        "zone": "westeurope-2",
        "kind": "Standard_D2s_v5",
        "tags": [["role", "web"]],
        "label": f"azure {AZURE['compute']['vmId']} westeurope-2 Standard_D2s_v5",
    },
}


@pytest.mark.root
@pytest.mark.parametrize("cloud", EXPECTED)
def test_each_cloud_is_told_apart(vm: Host, cloud: str) -> None:
    """By its own protocol on its own address, whatever proxies the environment names; control characters are gone."""
    vm.start(serve, cloud)
    vm.wait_for_port(80)

    assert asked(vm, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9") == EXPECTED[cloud]


@pytest.mark.root
@pytest.mark.parametrize("server", ["nobody", "liar"])
def test_outside_of_the_clouds_it_is_null(vm: Host, server: str) -> None:
    """Nobody listens, or somebody who redirects and sends without end: no cloud, no error."""
    if server == "liar":
        vm.start(serve, server)
        vm.wait_for_port(80)

    assert asked(vm) is None


@pytest.mark.root
def test_botocore_reads_the_same_server(vm: Host) -> None:
    """AWS's own client finds the region behind our fake's tokens, so the fake speaks IMDSv2."""
    vm.start(serve, "aws")
    vm.wait_for_port(80)
    code = (
        "from botocore.utils import InstanceMetadataRegionFetcher\n"
        "print(InstanceMetadataRegionFetcher().retrieve_region())"
    )

    assert vm.run([sys.executable, "-c", code]).stdout.strip() == AWS["/latest/meta-data/placement/region"]


READ_BY_CLOUD_INIT = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
from cloudinit import url_helper
spec = importlib.util.spec_from_file_location("ec2", f"{sys.argv[1]}/cloudinit/sources/helpers/ec2.py")
ec2 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ec2)
asked = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
token = url_helper.readurl("http://169.254.169.254/latest/api/token", headers=asked, request_method="PUT").contents
more = {"headers_cb": lambda url: {"X-aws-ec2-metadata-token": token.decode()}, "retries": 0, "timeout": 2}
print(json.dumps([ec2.get_instance_metadata(**more), ec2.get_instance_identity(**more)]))
"""
"""Its EC2 reader as a file, as the package around it wants more than is here."""


@pytest.mark.root
def test_cloud_init_reads_the_same_server(vm: Host) -> None:
    """cloud-init's own reader walks our fake's folders and finds the identity, the zone and the tags that we find."""
    share = Path(sys.prefix) / "share"
    if not (share / "cloudinit").exists():
        pytest.skip("cloud-init's code not found: `make setup` fetches its package")
    vm.start(serve, "aws")
    vm.wait_for_port(80)

    metadata, identity = json.loads(vm.run([sys.executable, "-c", READ_BY_CLOUD_INIT, str(share)]).stdout)

    found = EXPECTED["aws"]
    document = identity["document"]
    assert (document["instanceId"], document["instanceType"]) == (found["instance_id"], found["kind"])
    assert metadata["placement"]["availability-zone"] == found["zone"]
    printable = {key: text.replace("\x1b", "") for key, text in metadata["tags"]["instance"].items()}
    assert printable == dict(found["tags"])


def serve_account(url_file: Path) -> None:
    """An EC2 account with the fake's own instance and another one, until killed."""
    fake = Fake()
    fake.add_instance(2)
    fake.add_instance(int("0123456789abcdef0", 16))
    url_file.write_text(fake.url)
    threading.Event().wait()


@pytest.mark.root
def test_self_is_this_instance_in_its_own_region(vm: Host, tmp_path: Path) -> None:
    """`--source self` asks the metadata service which one this is, and without a configured region where."""
    url_file = tmp_path / "url"
    vm.start(serve, "aws")
    vm.start(serve_account, url_file)
    vm.wait_for_port(80)
    deadline = time.monotonic() + 10
    while not (url_file.exists() and url_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": url_file.read_text(), "AWS_CONFIG_FILE": "/nonexistent"}
    environment |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}

    words = ["mirror", "aws", "plan", "--source", "self", "--json"]
    done = vm.run([sys.executable, "-m", "guestagent", *words], env=environment)

    assert [one["machine"] for one in json.loads(done.stdout)["machines"]] == [EXPECTED["aws"]["instance_id"]]


@pytest.mark.parametrize(
    "zone, region",
    [
        ("eu-central-1a", "eu-central-1"),
        ("us-gov-west-1b", "us-gov-west-1"),
        ("us-east-1-bos-1a", "us-east-1"),
        ("us-east-1-wl1-bos-wlz-1", "us-east-1"),
        ("europe-west3-b", "europe-west3"),
        ("northamerica-northeast1-a", "northamerica-northeast1"),
        ("", ""),
    ],
)
def test_a_zone_tells_its_region(zone: str, region: str) -> None:
    """Zones, local zones and wavelength zones begin with the region's name."""
    assert Cloud("aws", "i-1", zone).region == region


@pytest.mark.root
@pytest.mark.alone
@pytest.mark.flaky(reruns=2)  # the first hello waits 0.3 s for the answer, on a busy machine in vain
@pytest.mark.parametrize("is_on", [True, False])
def test_the_hello_names_the_cloud(vm: Host, tmp_path: Any, is_on: bool) -> None:
    """A run in a cloud says so in its captures; with `metadata = false` nobody asks."""
    vm.start(serve, "aws")
    vm.wait_for_port(80)
    config = tmp_path / "guestagent.toml"
    config.write_text(
        f'interface = "lo"\nto = "dir:{tmp_path}/captures"\nduration = 0.5\nmetadata = {str(is_on).lower()}\n'
    )
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}

    vm.run([sys.executable, "-m", "guestagent", "run", "-c", str(config)], env=environment)

    (file,) = (tmp_path / "captures").rglob("*.pcapng")
    assert (EXPECTED["aws"]["label"].encode() in file.read_bytes()) is is_on


@pytest.mark.root
def test_the_question_ends_with_the_agent(vm: Host, tmp_path: Any) -> None:
    """A metadata service that accepts and says nothing delays neither the first copy nor the end."""
    silent = "import socket, time\ns = socket.create_server(('169.254.169.254', 80))\ntime.sleep(60)"
    vm.popen([sys.executable, "-c", silent])
    vm.wait_for_port(80)
    words = ["run", "-i", "lo", "--to", f"dir:{tmp_path}/captures", "--duration", "0.2"]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}

    vm.run([sys.executable, "-m", "guestagent", *words], env=environment, timeout=15)

    left = vm.run(["ps", "-eo", "args"]).stdout
    assert "guestagent.mirror.metadata" not in left
