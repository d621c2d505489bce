"""The spec: texts to rules and back to what a packet filter needs, and every wrong text one sentence."""

import string
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import ConfigError
from guestagent.mirror.providers import check
from guestagent.mirror.spec import KEYS, Match, Rule, Spec, matches, parse_rule, rules


@pytest.mark.parametrize(
    "text, rule",
    [
        ("all", Rule()),
        ("tcp/443", Rule(True, 6, (443, 443))),
        ("not  udp/1000-2000 remote", Rule(False, 17, (1000, 2000), "remote")),
        ("tcp/22 local 10.0.0.0/8", Rule(True, 6, (22, 22), "local", "10.0.0.0/8")),
        ("icmp fd00::/8", Rule(True, 1, None, "either", "fd00::/8")),
        ("47", Rule(True, 47)),
    ],
)
def test_a_rule_is_read(text: str, rule: Rule) -> None:
    """Each part of the grammar lands in its field."""
    assert parse_rule(text, "filter") == rule


@pytest.mark.parametrize(
    "text",
    ["", "tpc/1", "icmp/8", "tcp/70000", "tcp/9-1", "tcp local", "all 10.0.0.1/8", "256", "tcp/443 both", "/443"],
)
def test_a_wrong_rule_is_a_sentence(text: str) -> None:
    """What is no rule is refused with the place."""
    with pytest.raises(ConfigError, match=r"^filter: "):
        parse_rule(text, "filter")


def test_reject_alone_ends_in_accept() -> None:
    """`not tcp/22` means all but that."""
    assert rules("not tcp/22", "filter") == (Rule(False, 6, (22, 22)), Rule())


def accepts(found: list[Match], packet: tuple[int, str, str, int, int]) -> bool:
    """An independent reading: the first match decides, none rejects."""
    protocol, source, destination, source_port, destination_port = packet
    for one in found:
        networks = ip_network(one.source), ip_network(one.destination)
        addresses = ip_address(source), ip_address(destination)
        if any(address not in network for address, network in zip(addresses, networks, strict=True)):
            continue
        if one.protocol not in (None, protocol):
            continue
        ports = ((one.source_ports, source_port), (one.destination_ports, destination_port))
        if all(bounds is None or bounds[0] <= port <= bounds[1] for bounds, port in ports):
            return one.accept
    return False


@pytest.mark.parametrize(
    "text, packet, ingress, egress",
    [
        ("tcp/443 local", (6, "9.9.9.9", "10.0.0.1", 5000, 443), True, False),
        ("tcp/443 local", (6, "10.0.0.1", "9.9.9.9", 443, 5000), False, True),
        ("tcp/443 remote", (6, "9.9.9.9", "10.0.0.1", 443, 5000), True, False),
        ("tcp/443", (6, "fd00::1", "fd00::2", 443, 5000), True, True),
        ("udp/443", (6, "9.9.9.9", "10.0.0.1", 443, 443), False, False),
        ("all 9.0.0.0/8", (6, "9.9.9.9", "10.0.0.1", 1, 2), True, False),
        ("all 9.0.0.0/8", (6, "10.0.0.1", "9.9.9.9", 1, 2), False, True),
        ("icmp", (58, "fd00::1", "fd00::2", 0, 0), True, True),
        ("not tcp/22", (6, "9.9.9.9", "10.0.0.1", 5000, 22), False, False),
        ("not tcp/22", (6, "9.9.9.9", "10.0.0.1", 5000, 23), True, True),
    ],
)
def test_rules_select_what_they_say(
    text: str, packet: tuple[int, str, str, int, int], ingress: bool, egress: bool
) -> None:
    """Local and remote ports, peers and families land at the right end of each direction."""
    found = matches(Spec(filter=rules(text, "filter")))

    assert (accepts(found["ingress"], packet), accepts(found["egress"], packet)) == (ingress, egress)


@given(st.text(string.printable, max_size=40))
def test_any_text_is_a_rule_or_a_sentence(text: str) -> None:
    """No text brings anything but a rule or ConfigError."""
    try:
        rule = parse_rule(text, "filter")
    except ConfigError:
        return
    assert matches(Spec(filter=(rule,)))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), st.lists, max_leaves=4
)


@given(st.sampled_from(sorted(KEYS)), _VALUES)
def test_any_value_of_any_key_is_read_or_refused(key: str, value: object) -> None:
    """TOML of any type brings a value or one sentence with the place."""
    try:
        KEYS[key](value, f"mirror.toml: {key}")
    except ConfigError as error:
        text = str(error)
    else:
        return
    assert text.startswith(f"mirror.toml: {key}: ")


@pytest.mark.parametrize(
    "spec, word",
    [
        (Spec(source=("web",)), "source"),
        (Spec(source=("i-0a1b2c3d", "arn:aws:ec2")), "source"),
        (Spec(target="10.0.0.9"), "target"),
        (Spec(packet_length=8501), "packet_length"),
    ],
)
def test_a_word_of_another_provider_is_refused(spec: Spec, word: str) -> None:
    """Sources, targets and lengths are checked against the provider's row."""
    with pytest.raises(ConfigError, match=f"^{word}: "):
        check("aws", spec)
