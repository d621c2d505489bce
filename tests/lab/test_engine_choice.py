"""Which engine it is: the ring, another one where it is refused, or a sentence."""

import logging
import sys

import pytest

from guestagent.capture import engine as engine_room
from guestagent.capture.engine import Wish, open_capture
from guestagent.capture.portable import PortableSource
from guestagent.capture.ring import FEWEST_BLOCKS, Ring
from guestagent.errors import HostError
from guestagent.lab.hosts import Host
from guestagent.model import Interface
from tests.lab.engines import OURS


def _refused(*_: object, **__: object) -> Ring:
    raise HostError("the kernel refused a ring")


def _fall_back(choice: str) -> tuple[str, str, list[str], list[str]]:
    """Open a capture where no ring can be had; runs inside the agent's network."""
    engine_room.Ring = _refused  # type: ignore[assignment,misc]
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("guestagent.capture").addHandler(handler)
    capture = open_capture(Wish(interfaces=("eth0", "lo"), engine=choice))
    layouts = [source.layout for source in capture.sources]
    for source in capture.sources:
        source.close()
    return capture.engine, capture.reason, layouts, said


def test_a_refused_ring_falls_back(pair: tuple[Host, Host]) -> None:
    """Left to choose, the capture takes the portable engine and says why; told to take the ring, it fails."""
    agent, _ = pair
    engine, reason, layouts, said = agent.call(_fall_back, "auto")

    assert (engine, reason, layouts) == ("portable", "the kernel refused a ring", ["tpacket3"] * 2)
    assert [line for line in said if "falling back to the portable engine" in line and reason in line]
    with pytest.raises(Exception, match="HostError: the kernel refused a ring"):
        agent.call(_fall_back, "ring")


def test_without_scapy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable engine without its extra is a missing piece of this host, told in one sentence."""
    for name in [name for name in sys.modules if name.startswith("scapy")]:  # other tests use it as their oracle
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scapy", None)
    with pytest.raises(HostError, match=r"^the portable engine needs scapy: install guestagent\[portable\]$"):
        PortableSource(Interface(id=0, name="lo", mac="", mtu=0), 1, OURS, block_count=FEWEST_BLOCKS)
