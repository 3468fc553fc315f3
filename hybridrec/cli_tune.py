"""``hybridrec tune``: search settings for your data; ``hybridrec fit --settings`` takes them."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError
from hybridrec.cli_data import (
    ENCODER,
    add_data_arguments,
    data_words,
    encoder_of,
    last_held_out,
    read_data,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.data.dataset import Dataset
    from hybridrec.engine import HybridRecommender

_MINUTES = 30.0


def add_tune_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command ``tune``."""
    tune = commands.add_parser(
        "tune",
        parents=[shared],
        help="search settings for your interactions",
        description="Search settings of recallers, of the fusion and, if asked for, of the "
        "reranker, by NDCG@10 on the last event of each user. Started again with the same "
        "arguments it goes on where it ended.",
        epilog="Example: hybridrec tune log.csv -o tuned/ --minutes 10; then "
        "hybridrec fit log.csv --settings tuned/best.json -o model/",
    )
    add_data_arguments(tune)
    tune.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the search; best.json is there"
    )
    tune.add_argument(
        "--minutes",
        type=float,
        help="for the whole search, interrupted runs included "
        f"(default: {_MINUTES:g}, or no limit with --trials)",
    )
    tune.add_argument(
        "--trials", type=int, help="of each part at most; of the reranker a quarter as many"
    )
    tune.add_argument(
        "--encoder",
        help="text encoder for text recall and the reranker; used where the items have text "
        f"(default there: {ENCODER})",
    )
    tune.add_argument(
        "--reranker", action="store_true", help="search the cross-encoder, too: hours, not minutes"
    )
    tune.add_argument(
        "--settings",
        type=Path,
        metavar="BEST",
        help="start from the best.json of another search, with its stages alone, in place of what "
        "suits the data",
    )
    tune.add_argument(
        "--hold-out",
        action="store_true",
        help="leave each user's last event out of everything, as `hybridrec fit --hold-out` does",
    )
    tune.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    tune.set_defaults(run=_tune)


def _tune(chosen: argparse.Namespace) -> None:
    import hybridrec as hr
    from hybridrec.recipe import further_stages

    data = read_data(chosen)
    if chosen.hold_out:
        data = last_held_out(data).train
    minutes = chosen.minutes
    if minutes is None and chosen.trials is None:
        minutes = _MINUTES
    engine = _start(chosen, data)
    with _trials_unheard(heard=chosen.verbose):
        try:
            found = hr.tune(
                data,
                engine,
                folder=chosen.output,
                minutes=minutes,
                trials=chosen.trials,
                offered=() if chosen.settings else further_stages(engine),
                seed=chosen.seed,
            )
        except KeyboardInterrupt:
            print(f"Go on with: {_command('tune', chosen, _own(chosen))}", file=sys.stderr)
            sys.exit(130)
    best = chosen.output / "best.json"
    print(f"{found}\nWrote {best}")
    print(f"Next: {_command('fit', chosen, ['--settings', str(best), '-o', 'model'])}")


def _start(chosen: argparse.Namespace, data: Dataset) -> HybridRecommender:
    """What the search starts from."""
    from hybridrec.recipe import default_recommender, from_settings

    if chosen.settings:
        if chosen.encoder or chosen.reranker:
            raise InputError("--settings says what to start from: leave --encoder, --reranker out")
        return from_settings(chosen.settings)
    encoder = encoder_of(chosen, data)
    if chosen.reranker and encoder is None:
        raise InputError("--reranker needs item text: give --items and --item-text")
    return default_recommender(data, encoder=encoder, reranker=chosen.reranker, seed=chosen.seed)


def _own(chosen: argparse.Namespace) -> list[str]:
    words = ["--reranker"] if chosen.reranker else []
    for name in ("minutes", "trials", "encoder", "settings"):
        if getattr(chosen, name) is not None:
            words += [f"--{name}", f"{getattr(chosen, name)}"]
    if chosen.seed:
        words += ["--seed", str(chosen.seed)]
    return [*words, "-o", str(chosen.output)]


def _command(name: str, chosen: argparse.Namespace, own: list[str]) -> str:
    held = ["--hold-out"] if chosen.hold_out else []
    return shlex.join(["hybridrec", name, *data_words(chosen), *held, *own])


@contextmanager
def _trials_unheard(*, heard: bool) -> Iterator[None]:
    """Show what the search says, and of the fits inside it nothing short of a warning."""

    def of_the_search(record: logging.LogRecord) -> bool:
        inside = Path(record.pathname).parent.name == "tuning"
        return heard or inside or record.levelno >= logging.WARNING

    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(of_the_search)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_the_search)
