"""The account in which most tests of `mirror aws` begin."""

import pytest

from tests.mirror.aws.fake import Fake


@pytest.fixture
def web(ec2: Fake) -> Fake:
    """Two web servers, one database and a sensor."""
    for number in (1, 2):
        ec2.add_instance(number, tags={"role": "web", "Name": f"web{number}"})
    ec2.add_instance(3, tags={"role": "database"})
    ec2.add_instance(9)
    return ec2
