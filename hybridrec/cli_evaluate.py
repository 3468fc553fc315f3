"""``hybridrec evaluate``: a saved model on the last event of each user, which it has not seen."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.checks import InputError, whole_number
from hybridrec.cli_data import add_data_arguments, last_held_out, read_data
from hybridrec.cli_output import check_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.data.dataset import Dataset
    from hybridrec.data.split import Split
    from hybridrec.ragged import Items, Ragged


def add_evaluate_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command ``evaluate``."""
    evaluate = commands.add_parser(
        "evaluate",
        parents=[shared],
        help="evaluate a model on the last event of each user in DATA",
        epilog="Fit with --hold-out first: a model that has seen the answers is refused.",
    )
    evaluate.add_argument("model", type=Path, help="a folder that `hybridrec fit` wrote")
    add_data_arguments(evaluate)
    evaluate.add_argument(
        "-k", type=int, default=10, help="places to look at (default: %(default)s)"
    )
    evaluate.add_argument(
        "--sample", type=int, help="ask for so many users only, drawn evenly (default: all)"
    )
    evaluate.add_argument("--json", type=Path, help="also write the report to this file")
    evaluate.add_argument(
        "--report", type=Path, help="also write an HTML page with plots and example users"
    )
    evaluate.add_argument(
        "--examples",
        type=int,
        default=6,
        help="users that the page shows by name; 0 keeps user data out (default: %(default)s)",
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(chosen: argparse.Namespace) -> None:
    import hybridrec as hr
    from hybridrec.loading import histories_version
    from hybridrec.storage import current

    examples = whole_number("--examples", chosen.examples)
    check_file("--json", chosen.json)
    check_file("--report", chosen.report)
    version = current(chosen.model)
    engine = hr.load(chosen.model, version=version)
    data = _named_as(engine.data, read_data(chosen), chosen.data)
    split = last_held_out(data).for_catalogue(engine.data.items)
    if histories_version(chosen.model) == version:
        _refuse_seen_answers(engine.data, split)
    else:
        logging.getLogger("hybridrec").warning(
            "the histories that version %s was fitted on are not beside it: whether it has seen "
            "the answers is unknown",
            version,
        )
    if chosen.sample is not None:
        split = split.sample(chosen.sample)
    report = hr.evaluate(engine, split, k=chosen.k, slices=True)
    print(report)
    if chosen.json:
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        chosen.json.write_text(text + "\n", encoding="utf-8")
    if chosen.report:
        title = f"{chosen.model.resolve().name} on {chosen.data.name}"
        page = hr.report_page(report, split, catalogue=engine.data, title=title, examples=examples)
        chosen.report.write_text(page, encoding="utf-8")


def _refuse_seen_answers(fitted: Dataset, split: Split) -> None:
    """A model that was fitted on the held-out events has nothing to prove on them."""
    users = fitted.users.codes(split.train.users.ids[split.queries.users], unknown="mark")
    known = users >= 0
    targets = split.targets.items[split.targets.indptr[:-1]][known]
    recoded = fitted.items.codes(split.train.items.ids, unknown="mark")
    train = split.train.histories.select(split.queries.users[known])
    learnt = fitted.histories.select(users[known])
    # The last item may be a repeat of one in the history: that one was rightly learnt from.
    seen = int(
        (_times(learnt, learnt.items, targets) > _times(train, recoded[train.items], targets)).sum()
    )
    if seen:
        raise InputError(
            f"the model has been fitted on {seen} of the {len(split.queries)} held-out events, so "
            "the figures would mean nothing: fit it with --hold-out on the same data"
        )


def _times(rows: Ragged, items: Items, targets: Items) -> NDArray[Any]:
    """(rows,) how often each row, with ``items`` for its codes, holds its target."""
    row_of = rows.row_of()
    return np.bincount(row_of[items == targets[row_of]], minlength=len(rows))


def _named_as(fitted: Dataset, data: Dataset, path: Path) -> Dataset:
    """``data`` with ids of the type that the model holds, which a text file leaves open."""
    from hybridrec.data.frames import as_written
    from hybridrec.data.ids import IdMap

    named: dict[str, Any] = {}
    for name in ("user", "item"):
        known = getattr(fitted, f"{name}s").ids
        ids = as_written(getattr(data, f"{name}s").ids, path, known)
        if len(known) and ids.dtype.kind != known.dtype.kind:
            raise InputError(
                f"{path} has {name} ids such as {ids[0].item()!r}, and the model such as "
                f"{known[0].item()!r}: name the column that the model was fitted by with --{name}"
            )
        named[f"{name}s"] = IdMap(ids)
    return replace(data, **named)
