"""The whole fault suite: each fault on a stage of its own; writes docs/faults.md where no promise was broken.

python -m tests.lab.faults                       all of them, and the document
python -m tests.lab.faults --only 'MTU|killed'   some of them, and their rows where they lasted as long as usual
"""

import argparse
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from guestagent.lab.hosts import Lab
from tests.lab.faults.document import DOCUMENT, render, replaced
from tests.lab.faults.harness import Outcome, Trial
from tests.lab.faults.stage import Stage
from tests.lab.faults.table import FAULTS, Fault

HOLD_SECONDS = 5.0


def run(fault: Fault, hold_seconds: float) -> Outcome:
    """One fault on a fresh stage; what broke over the whole run is among its complaints."""
    with TemporaryDirectory(prefix="guestagent-faults-") as directory, Lab() as lab:
        trial = Trial(Stage(lab, Path(directory), fault.scene))
        outcome = trial.endure(fault, hold_seconds)
        trial.end()
        outcome.complaints += trial.complaints
        return outcome


def main() -> int:
    """Run, say how each went; write the document, or the rows of some faults, where no promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.faults", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="faults whose title matches")
    parser.add_argument("--hold", type=float, default=HOLD_SECONDS, metavar="S", help="how long each lasts at least")
    chosen = parser.parse_args()
    outcomes = []
    for fault in FAULTS:
        if re.search(chosen.only, fault.title):
            outcome = run(fault, chosen.hold)
            outcomes.append(outcome)
            print(
                f"{fault.id:4}{fault.title:40} told after {outcome.seen_seconds:4.1f} s, "
                f"recovered in {outcome.recovery_seconds:4.1f} s, kept {outcome.kept:.2f}, lost {outcome.losses}: "
                f"{outcome.seen[:100]}"
            )
            for complaint in outcome.complaints:
                print(f"    BROKEN {complaint[:2000]}")
            sys.stdout.flush()
    is_broken = any(outcome.complaints for outcome in outcomes)
    if chosen.only and chosen.hold == HOLD_SECONDS:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), (one for one in outcomes if not one.complaints)))
    elif not chosen.only and not is_broken:
        DOCUMENT.write_text(render(outcomes, chosen.hold))
    return is_broken


if __name__ == "__main__":
    sys.exit(main())
