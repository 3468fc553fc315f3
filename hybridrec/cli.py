"""``hybridrec demo | fit | tune | recommend | evaluate | serve | keys | rollback | doctor``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from hybridrec import __version__
from hybridrec.bars import progress
from hybridrec.checks import HybridrecError, InputError
from hybridrec.cli_data import ENCODER, add_data_arguments, encoder_of, last_held_out, read_data
from hybridrec.cli_evaluate import add_evaluate_parser
from hybridrec.cli_output import check_folder
from hybridrec.cli_serve import add_serve_parsers
from hybridrec.cli_tune import add_tune_parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.data.dataset import Dataset
    from hybridrec.engine import HybridRecommender


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0; 2 after an error that was explained; 130, as shells have it, after Ctrl-C.
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not hasattr(chosen, "run"):
        parser.print_help()
        return 0
    logging.basicConfig(format="%(message)s", handlers=[_BesideBars()], level=logging.WARNING)
    logging.getLogger("hybridrec").setLevel(logging.DEBUG if chosen.verbose else logging.INFO)
    try:
        with progress(shown=not chosen.quiet):
            chosen.run(chosen)
    except (HybridrecError, ImportError) as error:
        print(f"hybridrec: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hybridrec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        return 0
    except OSError as error:
        print(f"hybridrec: error: {error}", file=sys.stderr)
        return 2
    return 0


class _BesideBars(logging.Handler):
    """Log lines on standard error, above a progress bar rather than through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybridrec",
        description="A two-stage recommender: recall by collaborative filtering and text, "
        "reranking by a fine-tuned cross-encoder.",
        epilog="Start with: hybridrec demo",
    )
    parser.add_argument("--version", action="version", version=f"hybridrec {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    shared.add_argument("-v", "--verbose", action="store_true", help="say more on standard error")
    _demo_parser(commands, shared)
    _fit_parser(commands, shared)
    add_tune_parser(commands, shared)
    _recommend_parser(commands, shared)
    add_evaluate_parser(commands, shared)
    add_serve_parsers(commands, shared)
    doctor = commands.add_parser(
        "doctor",
        parents=[shared],
        help="print versions, the CPU build picked, devices, conflicts and what is missing",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _demo_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    demo = commands.add_parser(
        "demo", parents=[shared], help="fit and evaluate on MovieLens 100k (some minutes)"
    )
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), help="default: %(default)s"
    )
    demo.add_argument("--encoder", default=ENCODER, help="folder, hub name or package: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    demo.set_defaults(run=_demo)


def _fit_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    fit = commands.add_parser(
        "fit",
        parents=[shared],
        help="fit a recommender to your interactions",
        epilog="Example: hybridrec fit log.csv --items items.csv --item-text '{title}' -o model/",
    )
    add_data_arguments(fit)
    fit.add_argument("-o", "--output", type=Path, required=True, help="model folder to write")
    fit.add_argument(
        "--encoder",
        default=None,
        help="text encoder for text recall and reranking: a folder, a hub name, or the package "
        f"{ENCODER}; used where the items have text (default there: {ENCODER})",
    )
    fit.add_argument(
        "--no-reranker", action="store_true", help="leave the cross-encoder out: much faster to fit"
    )
    fit.add_argument("--factors", type=int, help="ALS factors (default: 64)")
    fit.add_argument("--depth", type=int, help="candidates a request (default: 100)")
    fit.add_argument(
        "--settings",
        type=Path,
        metavar="BEST",
        help="fit what `hybridrec tune` found: its best.json, in place of --encoder, --factors, "
        "--depth and --seed",
    )
    fit.add_argument(
        "--hold-out",
        action="store_true",
        help="leave each user's last event out, for `hybridrec evaluate` on the same data",
    )
    fit.add_argument(
        "--no-histories",
        action="store_true",
        help="save no user data; the model then answers to --history only",
    )
    fit.add_argument("--seed", type=int, help="default: 0")
    fit.set_defaults(run=_fit)


def _recommend_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    recommend = commands.add_parser(
        "recommend",
        parents=[shared],
        help="print recommendations for users, or for a history",
        epilog="Example: hybridrec recommend model/ --user alice --user bob -k 5",
    )
    recommend.add_argument("model", type=Path, help="a folder that `hybridrec fit` wrote")
    recommend.add_argument("--user", action="append", help="user id; may be given several times")
    recommend.add_argument(
        "--history", help="comma-separated item ids, oldest first, of somebody new"
    )
    recommend.add_argument("-k", type=int, default=10, help="items a user (default: %(default)s)")
    recommend.add_argument(
        "--unknown",
        choices=("raise", "popular"),
        default="raise",
        help="what a user nobody knows gets: an error (default) or the popular items",
    )
    recommend.add_argument("--with-seen", action="store_true", help="do not leave out seen items")
    recommend.add_argument(
        "--budget-ms",
        type=float,
        help="milliseconds in which to answer; --json then says what was reranked",
    )
    recommend.add_argument("--json", action="store_true", help="one JSON object a line")
    recommend.set_defaults(run=_recommend)


def _demo(chosen: argparse.Namespace) -> None:
    from hybridrec.demo import run

    def say(line: str) -> None:
        print(line, flush=True)

    check_folder("--output", chosen.output)
    run(chosen.output, say, encoder=chosen.encoder, seed=chosen.seed)


def _fit(chosen: argparse.Namespace) -> None:
    from hybridrec.storage import check_root

    check_root(chosen.output)
    check_folder("--output", chosen.output)
    data = read_data(chosen)
    if chosen.hold_out:
        data = last_held_out(data).train
    engine = _settled(chosen, data) if chosen.settings else _default(chosen, data)
    version = engine.fit(data).save(chosen.output, histories=not chosen.no_histories)
    print(f"Fitted {data}; wrote version {version} to {chosen.output}")
    whom = f"--history {quote(str(data.items.ids[data.histories.items[0]]))}"
    if not chosen.no_histories:
        whom = f"--user {quote(str(data.users.ids[0]))}"
    print(f"Next: hybridrec recommend {quote(str(chosen.output))} {whom}")


def _default(chosen: argparse.Namespace, data: Dataset) -> HybridRecommender:
    from hybridrec.recipe import default_recommender

    given = {name: getattr(chosen, name) for name in ("factors", "depth", "seed")}
    return default_recommender(
        data,
        encoder=encoder_of(chosen, data),
        reranker=not chosen.no_reranker,
        **{name: value for name, value in given.items() if value is not None},
    )


def _settled(chosen: argparse.Namespace, data: Dataset) -> HybridRecommender:
    """The recommender of ``--settings``."""
    from hybridrec.recipe import from_settings, read_settings, settings_of
    from hybridrec.tuning.folder import mark_of

    for name in ("encoder", "factors", "depth", "seed"):
        if getattr(chosen, name) is not None:
            raise InputError(f"--settings says what to fit: leave --{name} out")
    found = read_settings(chosen.settings)
    if chosen.hold_out and found.get("data") not in (None, mark_of(data)):
        logging.getLogger("hybridrec").warning(
            "%s was found on other data: if on the same without --hold-out, the held-out events "
            "had a say in it, and an evaluation on them promises too much",
            chosen.settings,
        )
    engine = from_settings(chosen.settings)
    if chosen.no_reranker:
        engine = from_settings({**settings_of(engine), "reranker": None})
    return engine


def _recommend(chosen: argparse.Namespace) -> None:
    import hybridrec as hr
    from hybridrec.persistence import id_type

    if (chosen.user is None) == (chosen.history is None):
        raise InputError("give --user (once or more) or --history, and not both")
    engine = hr.load(chosen.model)
    options: dict[str, Any] = {"k": chosen.k, "exclude_seen": not chosen.with_seen}
    options |= {"unknown": chosen.unknown, "frame": "pyarrow", "budget_ms": chosen.budget_ms}
    data = engine.data
    if chosen.user:
        answer = engine.recommend(_users(chosen, engine), **options)
    else:
        given = [part.strip() for part in chosen.history.split(",")] if chosen.history else []
        history = _ids(given, id_type(data.items.ids), "--history")
        answer = engine.recommend(histories=[history], **options)
    codes = data.items.codes(answer["item"])
    texts = data.item_text(codes) if data.texts is not None else [""] * len(codes)
    for row, text in zip(answer.to_pylist(), texts, strict=True):
        if chosen.json:
            print(json.dumps({**row, "text": text}, ensure_ascii=False))
        else:
            print(f"{row['user']}\t{row['rank']}\t{row['item']}\t{row['score']:.4f}\t{text}")


def _users(chosen: argparse.Namespace, engine: HybridRecommender) -> list[Any]:
    """The ids of ``--user``, all of them known unless ``--unknown`` lets others be."""
    users = _ids(chosen.user, engine.user_ids, "--user")
    known = engine.data.users.codes(users, "mark") >= 0
    if chosen.unknown == "raise" and not known.all():
        why = "" if engine.data.n_users else ", as this model holds no users' histories"
        who = users[known.argmin()]
        raise InputError(f"--user {who!r} is unknown{why}: give --history, or --unknown popular")
    return users


def _ids(given: Sequence[str], kind: str, argument: str) -> list[Any]:
    """What was typed, as the type of id that the model holds: "int" or "str"."""
    if kind != "int":
        return list(given)
    try:
        return [int(text) for text in given]
    except ValueError as error:
        raise InputError(f"{argument} is {given}; this model's ids are integers") from error


def _doctor(_: argparse.Namespace) -> None:
    from hybridrec.doctor import report

    for line in report():
        print(line)


if __name__ == "__main__":
    sys.exit(main())
