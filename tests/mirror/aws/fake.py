"""EC2's mirroring, and the listeners of ELB, over HTTP: botocore's own service models say what a request may hold.

The schema of requests and answers is botocore's; semantics, limits and error codes are of the Traffic Mirroring guide
and the EC2 error table. Nothing here was compared with AWS itself.
"""

from collections.abc import Iterator

from tests.mirror.aws.filters import Filters
from tests.mirror.aws.sessions import Sessions
from tests.mirror.aws.wire import Body, Refusal


class Fake(Filters, Sessions):
    """The account, with all that mirroring needs of it."""

    def do_CreateTags(self, body: Body) -> Body:
        for identifier in body["Resources"]:
            found = [objects[identifier] for objects in self.objects.values() if identifier in objects]
            if not found:
                raise Refusal("InvalidID", f"{identifier} is not valid")
            keys = {one["Key"] for one in body["Tags"]}
            found[0]["Tags"] = [one for one in found[0]["Tags"] if one["Key"] not in keys] + body["Tags"]
        return {}

    def state(self) -> dict[str, list[Body]]:
        """Everything that exists, without identifiers of ours that differ from run to run."""
        return {kind: [dict(one) for one in objects.values()] for kind, objects in self.objects.items()}

    def writes(self) -> list[str]:
        """The actions that were to change something."""
        return [action for action, _ in self.calls if not action.startswith("Describe")]


def fake_account() -> Iterator[Fake]:
    """For a fixture."""
    fake = Fake()
    try:
        yield fake
    finally:
        fake.close()
