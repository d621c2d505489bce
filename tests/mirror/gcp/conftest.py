"""The project in which most tests of `mirror gcp` begin."""

import pytest

from tests.mirror.gcp.fake import Fake


@pytest.fixture
def web(project: Fake) -> Fake:
    """Two web servers, a database, a VM of another network and one of another region."""
    project.add_vm("web-1", labels={"role": "web"}, tags=["http"])
    project.add_vm("web-2", "europe-west3-b", labels={"role": "web"})
    project.add_vm("db-1", labels={"role": "db"}, subnet="db")
    project.add_vm("lab-1", labels={"role": "lab"}, network="lab", subnet="ops")
    project.add_vm("far-1", "us-central1-a", labels={"role": "web"})
    return project
