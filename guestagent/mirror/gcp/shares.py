"""GCP: what each policy of a mirror names, where one cannot name all of it. Pure.

A list of a policy cannot be emptied: the API merges what a PATCH says into what is there, and the client library leaves
empty lists out of it. A policy that would lose its last of one kind is therefore given up, and another one is made.
"""

from collections.abc import Collection, Mapping, Sequence

from guestagent.mirror.gcp.facts import MOST_OF_POLICY

Names = Mapping[str, Collection[str]]
"""By kind, of MOST_OF_POLICY."""
Share = dict[str, list[str]]
"""The same of one policy, each list sorted."""


def spread(wanted: Names, held: Mapping[str, Names]) -> tuple[dict[str, Share], list[Share]]:
    """The shares of policies that exist, by name, and those of new ones.

    What a policy has it keeps, gaps are filled, and the rest goes to new ones. Those of `held` that get no share are to
    go.
    """
    kept = dict(held)
    while True:
        shares, more = _fill(wanted, kept)
        stuck = {
            name
            for name, share in shares.items()
            if not any(share.values()) or any(kept[name][kind] and not share[kind] for kind in MOST_OF_POLICY)
        }
        if not stuck:
            return shares, more
        kept = {name: names for name, names in kept.items() if name not in stuck}


def _fill(wanted: Names, held: Mapping[str, Names]) -> tuple[dict[str, Share], list[Share]]:
    shares: dict[str, Share] = {name: {} for name in sorted(held)}
    more: list[Share] = []
    for kind, most in MOST_OF_POLICY.items():
        left = set(wanted[kind])
        for name, share in shares.items():
            share[kind] = sorted(left.intersection(held[name][kind]))[:most]
            left.difference_update(share[kind])
        rest = sorted(left)
        for share in shares.values():
            room = most - len(share[kind])
            share[kind] = sorted([*share[kind], *rest[:room]])
            rest = rest[room:]
        for number, names in enumerate(_cut(rest, most)):
            if number == len(more):
                more.append({each: [] for each in MOST_OF_POLICY})
            more[number][kind] = names
    return shares, more


def _cut(names: Sequence[str], most: int) -> list[list[str]]:
    return [list(names[start : start + most]) for start in range(0, len(names), most)]
