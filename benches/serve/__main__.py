"""The figures of the service: `hybridrec serve` under load from another process, on loopback.

    python benches/serve run                            # both models, ten minutes each
    python benches/serve run --model recall --seconds 5 --rounds 1
    python benches/serve soak --minutes 30

Closed loop: every client waits for its answer before it asks again. What was found is printed, and
written to benches/serve/results/ (at the smoke scale to bench-output/).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.pop(1)  # this folder: its modules are serve.load and so on

from contract import OUTPUT, SCALE, scaled
from serve.fitted import DATA, MODELS
from serve.runs import Settings, measure
from serve.soak import soak

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = scaled(smoke=1.0, default=20.0, full=30.0)
ROUNDS = scaled(smoke=1, default=3, full=5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", choices=DATA, default="ml-100k")
    shared.add_argument("--refit", action="store_true", help="rather than take the kept model")
    running = commands.add_parser("run", parents=[shared], help="latency and throughput")
    running.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    running.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    running.add_argument("--batch", nargs="+", type=int, default=[32, 1], help="two give ratios")
    running.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    running.add_argument("--rounds", type=int, default=ROUNDS)
    running.add_argument("--budget-ms", type=float, help="of the runs with deadlines")
    soaking = commands.add_parser("soak", parents=[shared], help="memory, errors, p99 over time")
    soaking.add_argument("--model", choices=MODELS, default="two-stage")
    soaking.add_argument("--minutes", type=float, default=30.0)
    soaking.add_argument("--clients", type=int, default=8)
    chosen = parser.parse_args()
    if chosen.command == "soak":
        found = soak(chosen.model, chosen.data, minutes=chosen.minutes, clients=chosen.clients,
                     again=chosen.refit)  # fmt: skip
        written(f"{chosen.data}-{chosen.model}-soak.json", found)
        raise SystemExit(0 if found["in order"] else 1)
    settings = Settings(
        data=chosen.data,
        clients=tuple(chosen.clients),
        batch=tuple(chosen.batch),
        seconds=chosen.seconds,
        rounds=chosen.rounds,
        budget_ms=chosen.budget_ms,
        again=chosen.refit,
    )
    for model in chosen.model:
        written(f"{chosen.data}-{model}.json", measure(model, settings))


def written(name: str, content: dict[str, Any]) -> None:
    folder = OUTPUT / "serve" if SCALE == "smoke" else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
