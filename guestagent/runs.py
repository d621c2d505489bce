"""Runs of records: what of a block leaves in one frame, and the bytes of that frame."""

from guestagent.capture.block import cut
from guestagent.capture.tap import Loan
from guestagent.tapstream import frames

MOST_RUN_BYTES = 64 * 1024
"""Of a frame while a cap binds: acknowledgements, and pings from us, come between."""


def split(loan: Loan, room_bytes: float, room_packets: float) -> tuple[Loan, Loan | None]:
    """The run that may leave next, and what stays of the block: all leaves where the caps have room for it."""
    if loan.end - loan.start <= room_bytes and loan.records <= room_packets:
        return loan, None
    most = int(min(room_packets, loan.records))
    end, records = cut(
        loan.block.memory, loan.start, loan.end, loan.records, most_bytes=MOST_RUN_BYTES, most_records=most
    )
    if records == loan.records:
        return loan, None
    rest = loan._replace(start=end, records=loan.records - records)
    return loan._replace(end=end, records=records, is_last=False), rest


def block_frame(run: Loan, sequence: int) -> memoryview | bytes:
    """The whole frame, or its header where a run stands amid others: the room in front of it is theirs."""
    about = {
        "interface": run.source.interface.id,
        "sequence": sequence,
        "records": run.records,
        "flags": frames.FLAG_LAST_OF_BLOCK if run.is_last else 0,
    }
    if run.start == run.block.start:
        return frames.write_block_header(run.block.memory, run.start, run.end, **about)
    return frames.encode_block_header(size=run.end - run.start, **about)
