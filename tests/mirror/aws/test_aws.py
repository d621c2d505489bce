"""`guestagent mirror aws` with the real boto3 client against a server that botocore's own model drives."""

from tests.mirror.aws.fake import Fake
from tests.mirror.aws.words import GWLB, NLB, TARGET, WEB, Run, stranger


def test_create_converges_and_delete_removes_all(web: Fake, mirror_json: Run) -> None:
    """Plan has changes, create makes them, a second create and plan do nothing, delete leaves nothing of ours."""
    stranger(web)
    before = {kind: dict(objects) for kind, objects in web.objects.items()}
    assert mirror_json("plan", *WEB)[0] == 4
    assert not web.writes()

    code, made, _ = mirror_json("create", *WEB, "--filter", "tcp/443 local", "--dns", "--vni", "77")
    assert (code, made["schema"], made["kind"]) == (0, "guestagent.mirror/1", "outcome")
    ours = [one for one in web.objects["session"].values() if one["TrafficMirrorSessionId"] != "tms-stranger"]
    assert {(one["NetworkInterfaceId"], one["SessionNumber"]) for one in ours} == {
        (f"eni-{1:017x}", 2),  # the stranger has number 1
        (f"eni-{2:017x}", 1),
    }
    assert {one["VirtualNetworkId"] for one in ours} == {77}
    assert len(web.objects["filter_rule"]) == 4
    assert sorted(one["NetworkServices"] for one in web.objects["filter"].values()) == [[], ["amazon-dns"]]

    writes = len(web.writes())
    assert mirror_json("create", *WEB, "--filter", "tcp/443 local", "--dns", "--vni", "77")[0] == 0
    assert mirror_json("plan", *WEB, "--filter", "tcp/443 local", "--dns", "--vni", "77")[0] == 0
    assert len(web.writes()) == writes

    assert mirror_json("delete", "--name", "web", "--yes")[0] == 0
    assert web.objects == before


def test_a_changed_spec_changes_in_place(web: Fake, mirror_json: Run) -> None:
    """Filter, length and sources follow the spec; what stays keeps its identifier; what goes is removed."""
    mirror_json("create", *WEB, "--filter", "tcp/443", "--packet-length", "128")
    sessions = set(web.objects["session"])

    code, _, _ = mirror_json(
        "create", "--name", "web", "--source", f"i-{1:017x}", "--target", TARGET, "--filter", "icmp"
    )

    assert code == 0
    (session,) = web.objects["session"].values()
    assert session["TrafficMirrorSessionId"] in sessions
    assert "PacketLength" not in session
    rules = [(one["Protocol"], one.get("SourcePortRange")) for one in web.objects["filter_rule"].values()]
    assert sorted(rules) == [(1, None), (1, None), (58, None), (58, None)]


def test_another_target_is_made_before_the_old_one_goes(web: Fake, mirror_json: Run) -> None:
    """The sessions move over; none is made again, and the old target is gone."""
    mirror_json("create", *WEB)
    sessions = set(web.objects["session"])
    web.listeners[NLB] = [("UDP", 4789)]

    code, _, _ = mirror_json("create", "--name", "web", "--source", "tag:role=web", "--target", NLB)

    assert code == 0
    assert set(web.objects["session"]) == sessions
    assert [one["Type"] for one in web.objects["target"].values()] == ["network-load-balancer"]


def test_what_goes_makes_room(web: Fake, mirror: Run) -> None:
    """Ten rules of a filter, ten sources of an interface: both may be full, and a changed spec finds its place."""
    for number in range(20, 31):
        web.add_instance(number)
    rules = [f"tcp/{number} local 10.{number}.0.0/16" for number in range(10)]
    sources = [f"i-{number:017x}" for number in range(20, 31)]
    words = ("create", "--name", "web", "--target", TARGET, "--source")
    assert mirror(*words, ",".join(sources[:10]), "--filter", ",".join(rules[:5]))[0] == 0
    assert (len(web.objects["filter_rule"]), len(web.objects["session"])) == (10, 10)

    code, _, said = mirror(*words, ",".join(sources[1:]), "--filter", ",".join(rules), "--direction", "ingress")

    assert code == 0, said
    assert {one["TrafficDirection"] for one in web.objects["filter_rule"].values()} == {"ingress"}
    assert f"eni-{30:017x}" in {one["NetworkInterfaceId"] for one in web.objects["session"].values()}


def test_one_source_that_never_works_keeps_nothing_alive(web: Fake, mirror: Run) -> None:
    """EC2 refuses one interface in each run: a source that left and the target that was given up go all the same."""
    assert mirror("create", *WEB)[0] == 0
    web.add_instance(4)
    web.unsupported = {f"eni-{4:017x}"}
    web.listeners[NLB] = [("UDP", 4789)]

    code, _, said = mirror("create", "--name", "web", "--source", f"i-{2:017x},i-{4:017x}", "--target", NLB)

    assert (code, "run the agent there" in said, "it is kept" in said) == (1, True, False)
    assert [one["NetworkInterfaceId"] for one in web.objects["session"].values()] == [f"eni-{2:017x}"]
    assert [one["Type"] for one in web.objects["target"].values()] == ["network-load-balancer"]


def test_an_endpoint_of_a_gateway_load_balancer_is_a_target(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """It is made of its type, has its own MTU, counts no sources, and status tells when it is gone."""
    words = ("--name", "web", "--source", "tag:role=web", "--target", GWLB)
    assert "does not exist" in mirror("plan", *words)[2]
    web.endpoints[GWLB] = "Interface"
    code, _, said = mirror("plan", *words)
    assert (code, "type Interface" in said) == (2, True)
    web.endpoints[GWLB] = "GatewayLoadBalancer"
    for number in range(20, 40):
        web.add_instance(number, tags={"role": "web"})

    code, made, _ = mirror_json("create", *words)

    assert code == 0
    (target,) = web.objects["target"].values()
    assert (target["Type"], target["GatewayLoadBalancerEndpointId"]) == ("gateway-load-balancer-endpoint", GWLB)
    assert {one["TrafficMirrorTargetId"] for one in web.objects["session"].values()} == {
        target["TrafficMirrorTargetId"]
    }
    assert {one["mtu"] for one in made["machines"]} == {"up to 8446, longer packets are cut"}
    assert not any("largest size" in text for text in made["warnings"])
    assert mirror_json("plan", *words)[0] == 0
    assert mirror_json("status", "--name", "web")[0] == 0
    del web.endpoints[GWLB]
    assert "does not exist any more" in mirror_json("status", "--name", "web")[1]["problems"][0]


def test_a_load_balancer_is_looked_behind(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """What it sends copies to is no source, by instance the first interface alone, by address that one; nobody there is
    a broken mirror, nobody well a note."""
    words = ("--name", "web", "--source", "tag:role=web", "--target", NLB)
    web.listeners[NLB] = [("UDP", 4789)]
    second = {**web.instances[f"i-{1:017x}"]["NetworkInterfaces"][0], "NetworkInterfaceId": f"eni-{101:017x}"}
    second |= {"Attachment": {"DeviceIndex": 1}, "PrivateIpAddresses": [{"PrivateIpAddress": "10.1.0.1"}]}
    web.instances[f"i-{1:017x}"]["NetworkInterfaces"].append(second)
    web.interfaces.add(second["NetworkInterfaceId"])
    for member, left in ((f"i-{1:017x}", 101), ("10.1.0.1", 1)):
        web.members[NLB] = [(member, "healthy")]
        _, plan, _ = mirror_json("plan", *words)
        ways = {one["machine"]: (one["way"], one["reason"]) for one in plan["machines"]}
        assert ways[f"i-{2:017x}"][0] == "native"
        assert ways[f"i-{1:017x}"][0] == "agent"
        assert "behind the target" in ways[f"i-{1:017x}"][1]
        alone = mirror_json("plan", "--name", "web", "--source", f"eni-{left:017x}", "--target", NLB)[1]
        assert [one["way"] for one in alone["machines"]] == ["native"]

    web.members[NLB] = [("10.9.9.9", "unhealthy")]
    code, made, _ = mirror_json("create", *words)
    assert (code, f"{NLB}: none of the 1 behind it is healthy" in made["warnings"]) == (0, True)
    code, state, _ = mirror_json("status", "--name", "web")
    assert (code, state["notes"]) == (0, [f"{NLB}: none of the 1 behind it is healthy"])
    web.members[NLB] = []
    code, state, _ = mirror_json("status", "--name", "web")
    assert (code, len(state["problems"])) == (1, 1)
    assert "has nobody behind its listener" in state["problems"][0]
    assert "has nobody behind" in mirror("plan", *words)[1]


def test_a_mirror_target_of_others_is_looked_through(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """`tmt-ID`: one that is not there is told before anything is made; where it leads counts as if it were named; it is
    used and neither changed nor removed."""
    stranger(web)
    before = dict(web.objects["target"])
    named = "tmt-0123456789abcdef0"
    words = ("--name", "web", "--source", "tag:role=web", "--target")
    code, _, said = mirror("create", *words, named)
    assert (code, f"target: {named} does not exist" in said, web.writes()) == (2, True, [])
    web.objects["target"] = {named: {**web.objects["target"].pop("tmt-stranger"), "TrafficMirrorTargetId": named}}
    web.objects["session"]["tms-stranger"]["TrafficMirrorTargetId"] = named
    for number in range(20, 29):
        web.add_instance(number, tags={"role": "web"})

    code, plan, _ = mirror_json("plan", *words, named)

    assert code == 4
    assert any(text.startswith("11 sources for eni-") for text in plan["warnings"])
    assert mirror("plan", "--name", "web", "--source", TARGET, "--target", named)[1].count("is itself a mirror target")
    few = ("--name", "web", "--source", f"i-{1:017x},i-{2:017x}", "--target", named)
    assert mirror_json("create", *few)[0] == 0
    assert mirror_json("delete", "--name", "web", "--yes")[0] == 0
    assert list(web.objects["target"]) == [named]
    assert before["tmt-stranger"]["Tags"] == web.objects["target"][named]["Tags"]
