"""What is concluded from silence, from bytes that the peer's kernel takes, and from segments that are sent again."""

from guestagent.links.pulse import FEWEST_RESENT, LARGE_BYTES, LOSS_LOOK_SECONDS, PING_SECONDS, Loss, Pulse, Sign
from guestagent.links.ramp import USUAL_PAYLOAD_BYTES

SILENCE_SECONDS = 3.0


def pulse(sent_bytes: int = 500) -> Pulse:
    """Of a connection whose hello was answered at 100 s."""
    new = Pulse(SILENCE_SECONDS)
    new.welcomed(100.0, sent_bytes)
    return new


def test_a_quiet_peer_is_asked_and_then_given_up() -> None:
    """Well for a second, asked after that, given up after three."""
    one = pulse()

    assert one.due_at == 100.0 + PING_SECONDS
    assert [one.look(100.0 + after, 5000, 0) for after in (0.9, 1.0, 2.0, 3.0)] == [
        Sign.WELL,
        Sign.QUIET,
        Sign.QUIET,
        Sign.SILENT,
    ]
    one.heard(103.5)
    assert one.look(104.0, 5000, 0) is Sign.WELL


def test_bytes_that_are_taken_are_a_sign_of_life() -> None:
    """While a ping waits behind data and the peer's kernel takes bytes, the connection is not given up."""
    one = pulse()
    one.asked(50_000)
    signs = [one.look(100.0 + after, 100_000, 90_000 - 1000 * after) for after in range(1, 10)]

    assert signs == [Sign.QUIET] * 9
    assert [one.look(110.0 + after, 100_000, 81_000) for after in range(4)][-1] is Sign.SILENT


def test_a_kernel_takes_bytes_for_a_process_that_hangs() -> None:
    """Once the ping was taken, or where none waits, bytes that go on being taken are no sign of life."""
    one = pulse()
    one.asked(5_000)
    one.asked(90_000)
    signs = [one.look(100.0 + after, 10_000 * after, 100) for after in (1, 2, 3)]

    assert signs == [Sign.QUIET, Sign.QUIET, Sign.SILENT]
    one.heard(110.0)
    assert [one.look(110.0 + after, 100_000 * after, 100) for after in (1, 2, 3)] == signs


def test_a_path_that_swallows_large_packets_is_found() -> None:
    """Where the hello passed and nothing that followed, large packets are suspected after a second."""
    one = pulse(500)

    assert one.look(100.5, 50_500, 50_000) is Sign.WELL
    assert one.look(101.0, 50_500, 50_000) is Sign.SWALLOWED


def test_a_long_path_gets_more_time() -> None:
    """Where the hello took a second and a half to be answered, three are waited before large packets are suspected."""
    one = Pulse(SILENCE_SECONDS)
    one.welcomed(100.0, 500, 1.5)

    assert [one.look(100.0 + after, 50_500, 50_000) for after in (1, 2, 3)] == [Sign.WELL, Sign.WELL, Sign.SWALLOWED]


def test_other_silences_are_not_that() -> None:
    """Neither where a part was taken, nor where only something small waits, nor before the hello was answered."""
    stranger = Pulse(SILENCE_SECONDS)
    stranger.heard(100.0)

    assert pulse(500).look(101.0, 50_500, 49_999) is Sign.QUIET
    assert pulse(500).look(101.0, 500 + LARGE_BYTES - 1, LARGE_BYTES - 1) is Sign.QUIET
    assert stranger.look(101.0, 50_500, 50_000) is Sign.QUIET


def test_a_lossy_path_is_told_and_forgotten() -> None:
    """Above 2 % of a second's segments the path loses packets, below it does not; a new connection counts anew."""
    loss = Loss()
    loss.counted(20)
    lossy = loss.look(100.0, 100 * USUAL_PAYLOAD_BYTES)
    loss.counted(20 + FEWEST_RESENT)
    clean = loss.look(101.0, 1100 * USUAL_PAYLOAD_BYTES)
    loss.new_connection()
    loss.counted(FEWEST_RESENT)

    assert "20 retransmissions beside 100 segments" in lossy
    assert clean == ""
    assert loss.due_at == 101.0 + LOSS_LOOK_SECONDS
    assert loss.resent == 20 + 2 * FEWEST_RESENT
    assert loss.look(102.0, 1100 * USUAL_PAYLOAD_BYTES)


def test_a_few_segments_sent_again_are_no_trouble() -> None:
    """An idle link that repeats a segment or two says nothing."""
    loss = Loss()
    loss.counted(FEWEST_RESENT - 1)

    assert loss.look(100.0, 0) == ""
