"""Names of collectors: resolved off the loop, with the last good answer kept."""

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest

from guestagent.links import resolve
from guestagent.links.resolve import Resolver, is_numeric
from tests.fakes import PATIENCE_SECONDS


def answer(resolver: Resolver) -> None:
    """Wait for the helper thread."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            resolver.collect()
            return
        time.sleep(0.001)
    raise AssertionError("no answer came")


@pytest.mark.parametrize(
    "host, expected", [("127.0.0.1", True), ("::1", True), ("fe80::1%lo", True), ("localhost", False)]
)
def test_numeric_hosts_need_no_thread(host: str, expected: bool) -> None:
    """An address is its own answer; a name is not."""
    assert expected == is_numeric(host)


def test_a_name_keeps_its_last_good_answer() -> None:
    """When the name server is gone, the addresses of before stay and the error is told."""
    resolver = Resolver("collector.test", 4795)
    address = (socket.AF_INET, ("192.0.2.1", 4795))
    with mock.patch.object(resolve, "look_up", side_effect=[[address], socket.gaierror(-3, "Try again")]):
        for error in ("", "Try again"):
            assert resolver.start()
            answer(resolver)
            assert ([address], error) == (resolver.addresses, resolver.error)
    resolver.close()
    resolver.close()


def test_a_zone_that_is_not_there_yet_is_asked_for_again() -> None:
    """fe80::1 of an interface that comes later is an error till then, and no bug of ours."""
    resolver = Resolver("fe80::1%no-such-nic", 4795)
    assert ([], "Name or service not known") == (resolver.addresses, resolver.error)
    address = (socket.AF_INET6, ("fe80::1", 4795, 0, 7))
    with mock.patch.object(resolve, "look_up", return_value=[address]):
        assert not resolver.start()
    assert ([address], "") == (resolver.addresses, resolver.error)
    resolver.close()


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "." * 3, "\ud800"], ids=ascii)
def test_impossible_names_are_an_error_not_a_dead_thread(host: str) -> None:
    """A name that can't even be asked for is answered with an error, and the next try asks again."""
    resolver = Resolver(host, 4795)
    for _ in range(2):
        assert resolver.start()
        answer(resolver)
        assert resolver.error
    resolver.close()


def test_a_name_that_answers_after_the_end_harms_nobody() -> None:
    """A thread that still waits when the link closes writes to no descriptor that others use by then."""
    release = threading.Event()

    def slow(*_: Any) -> list[Any]:
        release.wait(PATIENCE_SECONDS)
        return []

    with mock.patch.object(resolve, "look_up", slow):
        resolver = Resolver("collector.test", 4795)
        resolver.start()
        number = resolver.fileno()
        resolver.close()
        event = os.eventfd(0, os.EFD_NONBLOCK)
        assert number == event
        release.set()
        for thread in threading.enumerate():
            if thread.name == "resolve":
                thread.join(PATIENCE_SECONDS)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
        os.close(event)
