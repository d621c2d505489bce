"""The book of a bench's requests: latencies without omission, percentiles."""

from collections import Counter
from math import inf, isnan

import pytest

from tests.bench.harm.book import MESSAGE_BYTES, Answer, Answers, Book, percentile

DUE = [0.0, 1.618034, 2.236068, 3.854102, 4.472136, 5.090170, 6.708204, 7.326238, 8.944272, 9.562306]
"""When the first ten requests are due, in periods: by the golden ratio."""


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """By nearest rank; the extremes are the least and the greatest, and nothing has no percentile."""
    thousand = [float(at) for at in range(1, 1001)]
    assert (500.0, 990.0, 999.0) == tuple(percentile(thousand, at) for at in (0.5, 0.99, 0.999))
    assert (1.0, 1000.0, 7.0) == (percentile(thousand, 0), percentile(thousand, 1), percentile([7.0], 0.99))
    assert isnan(percentile([], 0.5))


def test_a_stall_counts_for_all_who_should_have_asked() -> None:
    """A server that stands still for a second delays each request that was due meanwhile, not just the one in hand."""
    book = Book(start=10.0, per_second=10, count=10, connections=2)
    assert [0] == book.take(10.0)
    assert book.next_due == pytest.approx(10.0 + DUE[1] / 10)
    assert [1, 0, 1, 0, 1, 0, 1, 0, 1] == book.take(11.0)  # the client was stuck
    assert inf == book.next_due
    for connection in (0, 1):
        book.received(connection, 5 * MESSAGE_BYTES, 11.0)
    assert book.is_over
    assert book.close(11.0).ordered_seconds == pytest.approx([1 - due / 10 for due in reversed(DUE)])


def test_requests_keep_step_with_nothing() -> None:
    """One in each period, in order, and where in it differs: no tenth of the period has more than a seventh of them."""
    book, dues = Book(0.0, 1, 1000, 1), []
    while (due := book.next_due) < inf:
        dues.append(due)
        book.take(due)
    assert [int(due) for due in dues] == list(range(1000))
    assert max(Counter(int(10 * (due % 1)) for due in dues).values()) < 143


def test_answers_may_come_in_pieces() -> None:
    """An answer counts when its last byte is there."""
    book = Book(0.0, 1, 2, 1)
    book.take(2.0)
    book.received(0, MESSAGE_BYTES - 1, 2.0)
    book.received(0, MESSAGE_BYTES, 3.0)
    assert not book.is_over
    book.received(0, 1, 4.0)
    assert book.close(4.0).ordered_seconds == pytest.approx([4 - DUE[1], 3.0])


def test_a_tap_is_told_what_was_due_in_its_time() -> None:
    """A request belongs to the window that it was due in, whenever its answer came, and whether one came at all."""
    book = Book(0.0, per_second=10, count=4, connections=1)
    assert [0, 0, 0, 0] == book.take(0.4)
    book.received(0, 3 * MESSAGE_BYTES, 0.4)
    answers = book.close(0.5)
    assert [3, 2, 1, 0] == [answers.between(*one).answered for one in ((0, 1), (0.1, 1), (0.2, 1), (0.3, 1))]
    assert answers.between(0.2, 0.5).ordered_seconds == pytest.approx([0.5 - DUE[3] / 10, 0.4 - DUE[2] / 10])
    assert answers.between(0.1, 0.2).ordered_seconds == pytest.approx([0.4 - DUE[1] / 10])


def test_a_moment_of_standstill_is_not_what_is_usual() -> None:
    """Of ten groups one is slow throughout: it makes the 99th percentile of all, and not that of an ordinary group."""
    slow = range(300, 400)
    answers = Answers([Answer(at, 0.5 if at in slow else 0.001 * (1 + at % 100), True) for at in range(1000)])
    assert percentile(answers.ordered_seconds, 0.99) == 0.5
    assert answers.usual(0.99) == pytest.approx(0.099)


def test_who_was_never_answered_counts_until_the_end() -> None:
    """Neither a request without an answer nor one that could not even be sent is forgotten."""
    book = Book(0.0, 1, 3, 1)
    book.take(2.0)
    book.received(0, MESSAGE_BYTES, 1.5)
    answers = book.close(9.0)
    assert answers.answered == 1
    assert answers.ordered_seconds == pytest.approx([1.5, 9 - DUE[2], 9 - DUE[1]])
