"""tapstream on the wire: what is encoded is deframed however it is split, and nothing else gets far."""

import json
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Deframer, Frame, Kind, ProtocolError, printable
from tests.fakes import parsed

LARGEST_HELLO = 64 * 1024 + frames.HEADER_BYTES
LARGEST_FRAME = 1024 * 1024 + frames.HEADER_BYTES

Taken = tuple[int, int, int, int, bytes]


def feed(deframer: Deframer, data: bytes, pieces: Iterable[int] = ()) -> list[Taken]:
    """Put the bytes in, in pieces of these sizes and then in pieces as large as they fit; the frames that came out."""
    taken: list[Taken] = []
    sizes, at = iter(pieces), 0
    while at < len(data):
        space = deframer.space()
        size = min(next(sizes, len(data)), len(space), len(data) - at)
        space[:size] = data[at : at + size]
        at += size
        deframer.filled(size)
        for frame in deframer.frames():
            taken.append((*frame[:4], bytes(frame.payload)))
            deframer.welcome()
    return taken


def allocated(deframer: Deframer) -> int:
    """Bytes of the buffer behind the space that is offered."""
    return len(deframer.space().obj)


def payload(kind: Kind) -> st.SearchStrategy[bytes]:
    """A payload as large as this kind may have in a test."""
    return st.just(b"") if frames.MOST_PAYLOAD_BYTES[kind] == 0 else st.binary(max_size=300)


FRAMES = st.sampled_from(list(Kind)).flatmap(
    lambda kind: st.tuples(
        st.just(kind), st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1), payload(kind)
    )
)
PIECES = st.lists(st.integers(1, 40), max_size=60)


def stream(rows: list[Taken]) -> bytes:
    """Preface, an empty HELLO, then these frames."""
    parts = [frames.encode(Kind(kind), body, flags=f, interface=i, sequence=s) for kind, f, i, s, body in rows]
    return PREFACE + frames.encode(Kind.HELLO) + b"".join(parts)


@given(st.lists(FRAMES, max_size=8), PIECES)
def test_any_split_gives_the_same_frames(rows: list[Taken], pieces: list[int]) -> None:
    """A stream cut into any pieces yields each of its frames, once, in order, with the same bytes."""
    assert [(Kind.HELLO, 0, 0, 0, b""), *rows] == feed(Deframer(), stream(rows), pieces)


def test_one_byte_at_a_time() -> None:
    """A peer that sends single bytes is understood, large frames included."""
    rows: list[Taken] = [(Kind.BLOCK, 1, 7, 9, bytes(range(256)) * 40), (Kind.PING, 0, 0, 0, b"")]
    data = stream(rows)

    assert [(Kind.HELLO, 0, 0, 0, b""), *rows] == feed(Deframer(), data, [1] * len(data))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 1024 * 1024), max_size=6), st.lists(st.integers(1, 700_000), max_size=20))
def test_large_frames_in_bounded_memory(sizes: list[int], pieces: list[int]) -> None:
    """Frames up to the bound pass, and the buffer never outgrows one frame and one read."""
    rows: list[Taken] = [(Kind.BLOCK, 0, 0, at, bytes(size)) for at, size in enumerate(sizes)]
    deframer = Deframer()

    taken = feed(deframer, stream(rows), pieces)

    assert [len(row[4]) for row in rows] == [len(row[4]) for row in taken[1:]]
    assert allocated(deframer) <= LARGEST_FRAME + Deframer.READ_BYTES


@given(st.binary(max_size=400), PIECES, st.booleans())
def test_garbage_is_refused_or_awaited(data: bytes, pieces: list[int], is_welcome: bool) -> None:
    """Any bytes after a preface raise ProtocolError or wait for more, in a bounded buffer; nothing else happens."""
    deframer = Deframer()
    if is_welcome:
        deframer.welcome()
    try:
        feed(deframer, PREFACE + data, pieces)
        assert deframer._end - deframer._start <= len(data)
        assert allocated(deframer) <= LARGEST_FRAME + Deframer.READ_BYTES
    except ProtocolError:
        pass


@given(st.binary(min_size=1, max_size=50))
def test_another_preface_is_refused_at_its_first_wrong_byte(data: bytes) -> None:
    """Bytes that begin unlike our preface are refused as soon as they differ."""
    differs = next((at for at in range(min(7, len(data))) if data[at] != PREFACE[at]), None)
    if differs is None:
        return

    with pytest.raises(ProtocolError, match="no tapstream preface"):
        feed(Deframer(), data[: differs + 1])


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_named(version: int) -> None:
    """A peer of another version is told which one came and which one is spoken."""
    with pytest.raises(ProtocolError, match=f"^tapstream version {version} is not spoken here, only 1$"):
        feed(Deframer(), PREFACE[:7] + bytes([version]))


def test_a_partial_preface_waits() -> None:
    """The beginning of a preface is neither refused nor taken for one."""
    for size in range(len(PREFACE)):
        deframer = Deframer()
        assert feed(deframer, PREFACE[:size]) == []
        assert size == deframer._end - deframer._start


def header(kind: int, length: int) -> bytes:
    """A frame header of any type and length."""
    return struct.pack("<BBHIQ", kind, 0, 0, length, 0)


@pytest.mark.parametrize("kind", list(Kind))
def test_lengths_over_the_bound_are_refused_before_allocation(kind: Kind) -> None:
    """A length over the bound of its type is refused at the header, and no byte is allocated for it."""
    for length in (frames.MOST_PAYLOAD_BYTES[kind] + 1, 2**32 - 1):
        deframer = Deframer()
        deframer.welcome()
        before = allocated(deframer)
        with pytest.raises(ProtocolError, match=f"a {kind.name} frame of {length} bytes is over the bound"):
            feed(deframer, PREFACE + header(kind, length))
        with pytest.raises(ProtocolError):
            deframer.space()
        assert before == len(deframer._buffer)


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_unknown_types_are_refused(kind: int) -> None:
    """A type that version 1 does not know is refused by its number."""
    deframer = Deframer()
    deframer.welcome()
    with pytest.raises(ProtocolError, match=f"unknown frame type {kind}"):
        feed(deframer, PREFACE + header(kind, 0))


@pytest.mark.parametrize("kind", sorted(set(Kind) - frames.BEFORE_THE_HELLO))
def test_strangers_may_only_greet(kind: Kind) -> None:
    """Before the hello was accepted every other frame is refused at its header."""
    with pytest.raises(ProtocolError, match=f"a {kind.name} frame came before the hello"):
        feed(Deframer(), PREFACE + header(kind, 0))


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.BYE])
def test_a_stranger_gets_64_kb_at_most(kind: Kind) -> None:
    """Before the hello the buffer begins small and never exceeds the largest hello, however slowly it comes."""
    deframer = Deframer()
    assert Deframer.FIRST_BYTES == allocated(deframer)

    feed(deframer, PREFACE + header(kind, 64 * 1024) + bytes(64 * 1024 - 1), [1000] * 100)

    assert allocated(deframer) <= LARGEST_HELLO + Deframer.FIRST_BYTES


@given(st.binary(max_size=120) | st.text(max_size=60).map(str.encode))
def test_json_is_an_object_or_refused(data: bytes) -> None:
    """The payload of a JSON frame is an object, or nothing, or refused with the frame's name."""
    frame = parsed(frames.encode(Kind.REPORT, data))
    try:
        value = frames.decode_json(frame)
    except ProtocolError:
        return
    assert value == (json.loads(data) if data else {})


@pytest.mark.parametrize(
    "data",
    [b"[]", b"1", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 12_000, b"9" * 60_000, b'{"a":1}x'],
    ids=lambda data: data[:12].decode(errors="replace"),
)
def test_hostile_json_is_refused(data: bytes) -> None:
    """No object, broken text, deep nesting and numbers of 60,000 digits are refused."""
    with pytest.raises(ProtocolError):
        frames.decode_json(parsed(frames.encode(Kind.ACK, data)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.integers(0, 2**64 - 1), st.integers(0, 0xFFFF))
def test_json_frames_round_trip(value: dict[str, object], sequence: int, interface: int) -> None:
    """A JSON object comes back as it was, with sequence and interface."""
    frame = parsed(frames.encode_json(Kind.INFO, value, sequence=sequence, interface=interface))

    assert Frame(Kind.INFO, 0, interface, sequence, frame.payload) == frame
    assert value == frames.decode_json(frame)


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1), st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1))
def test_a_block_is_sent_where_it_lies(records: bytes, count: int, interface: int, sequence: int) -> None:
    """The header written into the room in front of the records makes one contiguous BLOCK frame of them."""
    memory = memoryview(bytearray(b"\xaa" * 50 + records + b"\xbb" * 50))
    sent = frames.write_block_header(
        memory, 50, 50 + len(records), interface=interface, sequence=sequence, records=count, flags=1
    )
    frame = parsed(bytes(sent))

    assert (Kind.BLOCK, 1, interface, sequence) == frame[:4]
    assert (count, records) == frames.decode_block(frame)
    assert b"\xaa" * 26 == bytes(memory[:26])
    assert b"\xbb" * 50 == bytes(memory[50 + len(records) :])


@pytest.mark.parametrize("size", range(8))
def test_a_short_block_is_refused(size: int) -> None:
    """A BLOCK without its whole prefix is refused."""
    with pytest.raises(ProtocolError, match=f"a BLOCK frame of {size} bytes is too short"):
        frames.decode_block(parsed(frames.encode(Kind.BLOCK, bytes(size))))


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    """Whatever a peer says, its printable form has no control character, and sound text is left as it is."""
    assert printable(text).isprintable()
    assert not text.isprintable() or text == printable(text)
    assert "\\x1b[2J\\n" == printable("\x1b[2J\n")
