"""Every figure of docs/quality.md: one command a data set, which goes on where it was stopped.

    python benches/quality run ml-1m                        # every step that is not there yet
    python benches/quality run ml-1m --only fast --seeds 0
    python benches/quality report ml-1m                     # writes benches/quality/results/

What a step found stays in bench-output/quality/DATA/: its report, and every user's NDCG@10.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scenes import SCENES
from steps import STEPS, run
from summary import report

import hybridrec as hr


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="the steps that are not there yet")
    running.add_argument("data", choices=SCENES)
    running.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    reporting = commands.add_parser("report", help="compare what was found, and write it down")
    reporting.add_argument("data", choices=SCENES)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("hybridrec").setLevel(logging.INFO)
    if chosen.command == "run":
        with hr.progress(shown=sys.stderr.isatty()):
            for step in chosen.only:
                run(chosen.data, step, chosen.seeds)
    report(chosen.data)


if __name__ == "__main__":
    main()
