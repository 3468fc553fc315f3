"""An unfitted recommender as JSON and back, and the one that is made where none is asked for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec.checks import HybridrecError, InputError, StorageError
from hybridrec.defaults import default_stages
from hybridrec.engine import HybridRecommender
from hybridrec.newcomers import Newcomers
from hybridrec.persistence import known_kinds
from hybridrec.recall.item_knn import ItemKNN
from hybridrec.recall.text import TextRecall
from hybridrec.rerank.cross_encoder import CrossEncoder
from hybridrec.state import config_to_json, python_number

if TYPE_CHECKING:
    from hybridrec.data.dataset import Dataset

__all__ = ["default_recommender", "from_settings", "settings_of"]

_FORMAT = 1
_TELLING = ("item transitions", "als")
"""Recallers of which either finds as many newcomers as all together (docs/quality.md)."""


def default_recommender(
    data: Dataset,
    *,
    encoder: str | None = None,
    reranker: bool = False,
    factors: int = 64,
    depth: int = 100,
    seed: int = 0,
) -> HybridRecommender:
    """What ``HybridRecommender()`` takes for ``data``, and what reads texts where it is wanted.

    Args:
        data: what it will be fitted to.
        encoder: of text recall, by which newcomers get their places, and of the reranker; None
            leaves all three out.
        reranker: whether there is one.
        factors: of ALS.
        depth: candidates a request.
        seed: of every random choice.
    """
    recallers, signals = default_stages(seed, data, factors=factors)
    newcomers = None
    if encoder:
        known = {recaller.name for recaller in recallers}
        newcomers = Newcomers(reads=[name for name in _TELLING if name in known])
        recallers.append(TextRecall(encoder))
    return HybridRecommender(
        recallers,
        CrossEncoder(encoder, seed=seed) if encoder and reranker else None,
        "auto",
        signals=signals,
        newcomers=newcomers,
        depth=depth,
        seed=seed,
    )


def further_stages(engine: HybridRecommender) -> list[Any]:
    """Cheap stages that ``engine`` lacks and a search may take in."""
    there = {stage.name for stage in (*engine.recallers, *engine.signals)}
    return [stage for stage in (ItemKNN(),) if stage.name not in there]


def settings_of(engine: HybridRecommender) -> dict[str, Any]:
    """Everything that ``engine`` was made with, as JSON values; nothing that it has learned.

    Of one that was told no recallers these are those for any data, and once it is fitted those
    that suited its data.
    What belongs to a machine, a device or a number of threads, is left out.

    Raises:
        InputError: a stage is made of more than its settings.
    """
    return {
        "format": _FORMAT,
        "recallers": [entry_of(stage) for stage in engine.recallers],
        "signals": [entry_of(stage) for stage in engine.signals],
        "reranker": None if engine.reranker is None else entry_of(engine.reranker),
        "newcomers": None if engine.newcomers is None else entry_of(engine.newcomers),
        "fusions": [entry_of(fusion) for fusion in engine.fusions],
        "settings": asdict(engine.settings),
    }


def from_settings(
    settings: Mapping[str, Any] | str | Path, *, kinds: Mapping[str, type] | None = None
) -> HybridRecommender:
    """The unfitted recommender that :func:`settings_of` told of.

    Args:
        settings: the same mapping, or the path of a JSON file with it under ``"recommender"``, such
            as the ``best.json`` that :func:`~hybridrec.tune` writes.
        kinds: stage classes of your own by name, where it has some.

    Raises:
        StorageError: the file cannot be read, or was written by a newer hybridrec.
        InputError: settings that this hybridrec does not have, or stages that it does not know.
    """
    if isinstance(settings, Mapping):
        where, told = "settings", settings
    else:
        where, told = str(settings), read_settings(Path(settings))["recommender"]
    known = {**known_kinds(), **(kinds or {})}
    try:
        if told["format"] != _FORMAT:
            raise StorageError(f"{where} has format {told['format']}; wanted {_FORMAT}")
        return HybridRecommender(
            [_stage(entry, known, where) for entry in told["recallers"]],
            told["reranker"] and _stage(told["reranker"], known, where),
            [_stage(entry, known, where) for entry in told["fusions"]],
            signals=[_stage(entry, known, where) for entry in told["signals"]],
            newcomers=told["newcomers"] and _stage(told["newcomers"], known, where),
            **told["settings"],
        )
    except HybridrecError:
        raise
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} is not what settings_of wrote: {error!r}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON file ``path``, which holds a recommender's settings.

    Raises:
        StorageError: there is no such file, or it is another one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the settings in {path}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("recommender"), dict):
        raise StorageError(
            f"{path} holds no recommender's settings: it is no best.json of a search"
        )
    return found


def entry_of(stage: object) -> dict[str, Any]:
    """One stage's kind and settings, as JSON values.

    Raises:
        InputError: it is made of more than its settings.
    """
    kind = type(stage).__name__
    config: Any = getattr(stage, "config", None)
    settings = config_to_json(config) if is_dataclass(config) else {}
    arguments = inspect.signature(type(stage)).parameters
    if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        for name in set(settings) - set(arguments):
            if settings.pop(name) != _default(config, name):
                raise InputError(
                    f"{kind} has the {name} {getattr(config, name)!r}, which its settings cannot "
                    "tell: put one into this recommender that was made by its class alone"
                )
    for name, argument in arguments.items():
        wanted = argument.default is argument.empty and name not in settings
        if wanted and argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise InputError(
                f"{kind} is made with a {name!r} that its settings cannot tell: leave this stage "
                "out, or keep its settings in the dataclass config"
            )
    # Through JSON, so that what is told is what will be read.
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=python_number))
    return {"kind": kind, "settings": plain}


def _default(config: Any, name: str) -> Any:
    found = next(field for field in fields(config) if field.name == name)
    return None if found.default is MISSING else found.default


def _stage(entry: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> Any:
    kind = entry["kind"]
    if kind not in kinds:
        raise InputError(
            f"{where} names a stage of kind {kind!r}, which hybridrec does not know; if the class "
            f"is yours, pass it: kinds={{{kind!r}: TheClass}}"
        )
    try:
        return kinds[kind](**entry["settings"])
    except HybridrecError as error:
        raise InputError(f"{where}, {kind}: {error}") from error
    except TypeError as error:
        raise InputError(
            f"{where}: {kind} cannot be made from {entry['settings']}: {error}"
        ) from error
