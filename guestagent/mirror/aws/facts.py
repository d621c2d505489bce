"""Facts of AWS Traffic Mirroring that no API tells: instance families, limits, overheads, price. Pure.

Source of families, limits and overheads: the Traffic Mirroring guide as it stood in FACTS_DATE. AWS changes the list of
families; EC2's own answer to a call has the last word.
"""

import re

FACTS_DATE = "2025"
PRICE_DATE = "2026-09"
MIRRORED_FAMILIES = frozenset(
    """
    a1 m4 m5 m5a m5ad m5d m5dn m5n m5zn m6a m6g m6gd m6i m6id m6idn m6in m7a m7g m7gd m7i m7i-flex mac1 mac2
    mac2-m1ultra mac2-m2 mac2-m2pro t3 t3a t4g
    c4 c5 c5a c5ad c5d c5n c6a c6g c6gd c6gn c6i c6id c6in c7a c7g c7gd c7i c7i-flex
    r4 r5 r5a r5ad r5b r5d r5dn r5n r6a r6g r6gd r6i r6id r6idn r6in r7a r7g r7gd r7i r7iz u-3tb1 u-6tb1 u-9tb1 u-12tb1
    u-18tb1 u-24tb1 u7i-6tb u7i-8tb u7i-12tb u7in-16tb u7in-24tb u7in-32tb u7inh-32tb x1 x1e x2gd x2idn x2iedn x2iezn
    z1d d2 d3 d3en h1 i3 i3en i4g i4i i7i im4gn is4gen hpc6a hpc6id hpc7a
    dl1 dl2q f1 f2 g3 g4ad g4dn g5 g5g g6 g6e g6f gr6 gr6f inf1 inf2 p3 p3dn p4d p4de p5 p5e trn1 trn1n vt1
    """.split()
)
MIRRORED_METAL_FAMILIES = frozenset(
    """
    m5 m5d m6g m6gd mac1 mac2 mac2-m1ultra mac2-m2 mac2-m2pro a1 c5 c5d c6g c6gd r5 r5b r5d r6g r6gd x2gd z1d i3 g5g
    """.split()
)
_GENERATION = re.compile(r"([a-z]+)(\d+)")
"""Of a family: `p5en` is of the fifth of `p`."""


def _newest() -> dict[str, int]:
    newest: dict[str, int] = {}
    for family in MIRRORED_FAMILIES:
        if found := _GENERATION.match(family):
            newest[found[1]] = max(newest.get(found[1], 0), int(found[2]))
    return newest


NEWEST_GENERATIONS = _newest()
"""On the list, by letters. A later one may have come to it since."""

SESSIONS_PER_INTERFACE = 3
RULES_PER_FILTER = 10
SOURCES_PER_INTERFACE_TARGET = 10
SOURCES_PER_LARGEST_TARGET = 100
"""Where the target is of the largest size of its family."""
WITH_PORTS = {6, 17}
"""Protocols whose ports a rule may name."""
MOST_SESSION_NUMBER = 32_766
WHOLE_PACKET_BYTES = 8500
VXLAN_PORT = 4789
MOST_UNCUT_MTU = 8947
"""Of a source; what is longer is truncated on its way to an interface or a network load balancer."""
MOST_UNCUT_MTU_GWLB = 8446
OVERHEAD_BYTES = 54
OVERHEAD_V6_BYTES = 74
USD_PER_SESSION_HOUR = 0.015
"""The example of AWS's VPC pricing page in PRICE_DATE, for US East (Ohio). AWS's price list has the last word."""
HOURS_PER_MONTH = 730


def eligible(instance_type: str) -> tuple[str, str]:
    """`yes`, `no` or `unknown`, and the reason."""
    family, _, size = instance_type.partition(".")
    table = MIRRORED_METAL_FAMILIES if size.startswith("metal") else MIRRORED_FAMILIES
    if family in table:
        return "yes", f"{instance_type} can be mirrored (list of {FACTS_DATE})"
    found = _GENERATION.match(family)
    is_newer = not found or int(found[2]) > NEWEST_GENERATIONS.get(found[1], 0)
    if family not in MIRRORED_FAMILIES and is_newer:
        return "unknown", f"{instance_type} is not on the list of {FACTS_DATE}, maybe newer: EC2 has the last word"
    return "no", f"{instance_type} cannot be mirrored (not on the list of {FACTS_DATE})"


def monthly_cost(sessions: int) -> str:
    """The cost line of so many sessions."""
    usd = sessions * USD_PER_SESSION_HOUR * HOURS_PER_MONTH
    rate = f"{sessions} x {USD_PER_SESSION_HOUR} USD/h, about {usd:.2f} USD a month"
    return f"{rate} (US East, {PRICE_DATE}; see AWS's price list for other regions and now)"
