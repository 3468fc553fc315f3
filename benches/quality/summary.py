"""What the steps found, compared over the same users, and written to results/DATA.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from steps import USERS, folder_of

from hybridrec.evaluation.compare import holm, paired_ci, paired_p

RESULTS = Path(__file__).resolve().parent / "results"

SAMPLES = 2000
Values = NDArray[np.float64]


def report(data: str) -> None:
    """Print every comparison there is, and write them with each step's own report.

    What was written of steps that were run elsewhere stays.
    """
    runs = _read(data)
    if not runs:
        print(f"nothing was run on {data} yet")
        return
    steps = {}
    for name, found in runs.items():
        mean = _mean([run["values"] for run in found])
        steps[name] = {
            "seeds": [run["said"]["seed"] for run in found],
            "training seconds": [run["said"]["training seconds"] for run in found],
            "means": {
                stage: [float(run["values"][stage].mean()) for run in found] for stage in mean
            },
            "reports": [run["said"] for run in found],
        }
    comparisons = _compared(runs)
    for name, step in steps.items():
        print(f"\n{name}: seeds {step['seeds']}, trained in {step['training seconds']} s")
        for stage, means in step["means"].items():
            print(f"  {stage:<32} {np.mean(means):.4f}  {' '.join(f'{x:.4f}' for x in means)}")
    print()
    for row in comparisons:
        print(
            f"{row['stage']} against {row['against']}: {row['ratio']:.3f}x "
            f"[{row['ratio_ci'][0]:.3f}, {row['ratio_ci'][1]:.3f}], {row['mean']:+.4f}, "
            f"p {row['p_holm']:.4f} (Holm)"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{data}.json"
    content = {"data": data, "comparisons": comparisons, "steps": steps}
    if path.exists():
        content = _joined(json.loads(path.read_text("utf-8")), content)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.parent.parent.name}/{path.parent.name}/{path.name}")


def _joined(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``new``, and of ``earlier`` the steps that are not in it."""
    steps = earlier["steps"] | new["steps"]
    rows = [row for row in earlier["comparisons"] if row["stage"].split(":")[0] not in new["steps"]]
    return {**new, "comparisons": rows + new["comparisons"], "steps": steps}


def _read(data: str) -> dict[str, list[dict[str, Any]]]:
    """Step -> its runs, in the order of their seeds."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder_of(data).glob("*-[0-9].json")):
        said = json.loads(path.read_text("utf-8"))
        with np.load(path.with_suffix(".npz")) as arrays:
            values = {stage: arrays[stage] for stage in arrays.files if stage != USERS}
            users = arrays[USERS]
        runs.setdefault(said["step"], []).append({"said": said, "values": values, "users": users})
    return runs


def _mean(runs: Sequence[Mapping[str, Values]]) -> dict[str, Values]:
    """(B,) each user's mean over the seeds: one draw of that user."""
    return {stage: np.mean([run[stage] for run in runs], axis=0) for stage in runs[0]}


def _compared(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The last stage of each step against the rest of it, and against other steps."""
    means = {name: _mean([run["values"] for run in found]) for name, found in runs.items()}
    rows = []
    for name, mean in means.items():
        if name in ("candidates", "plain"):
            continue
        last, users = _last(runs[name][0], mean), runs[name][0]["users"]
        for stage, other in mean.items() if not name.startswith("without ") else ():
            if stage != last and (name != "cold" or stage in ("text", "text, cold only")):
                mine = mean[f"{last}, cold only" if stage.endswith("cold only") else last]
                rows.append(_row(f"{name}: {last}", stage, mine, other, users))
        for against in ("plain", "fast", "sequence"):
            if name not in ("cold", against) and against in means:
                other = means[against][_last(runs[against][0], means[against])]
                if len(other) == len(mean[last]):
                    label = f"{against}, all of it"
                    rows.append(_row(f"{name}: {last}", label, mean[last], other, users))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def _last(run: Mapping[str, Any], mean: Mapping[str, Values]) -> str:
    """The stage that serves, newcomers aside where the targets are items with events."""
    if run["said"]["step"] == "cold":
        return "with newcomers"
    names = [stage["name"] for stage in run["said"]["stages"] if stage["kind"] == "fused"]
    return [name for name in names if name in mean and name != "with newcomers"][-1]


def _row(
    stage: str, against: str, mine: Values, other: Values, users: NDArray[Any]
) -> dict[str, Any]:
    delta = paired_ci(mine, other, groups=users)
    low, high = _ratio_ci(mine, other, users)
    return {
        "stage": stage,
        "against": against,
        "mean": delta.mean,
        "ci": [delta.low, delta.high],
        "ratio": float(mine.sum() / max(other.sum(), 1e-9)),
        "ratio_ci": [low, high],
        "p": paired_p(mine, other, groups=users),
    }


def _ratio_ci(mine: Values, other: Values, users: NDArray[Any]) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the ratio of two means; users are what is drawn."""
    _, rows = np.unique(users, return_inverse=True)
    sums = np.stack([np.bincount(rows, weights=values) for values in (mine, other)], axis=1)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(SAMPLES):
        above, below = sums[rng.integers(len(sums), size=len(sums))].sum(axis=0)
        drawn.append(above / max(below, 1e-9))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
