"""Which files a recommender is: a folder a stage, the catalogue, and the users' histories apart.

Versions, hashes and the atomic swap are :mod:`hybridrec.storage`'s.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import StorageError
from hybridrec.data.dataset import Dataset
from hybridrec.data.ids import IdMap
from hybridrec.lessons import Training, TrainingReport
from hybridrec.pipeline import Pipeline
from hybridrec.ragged import Ragged
from hybridrec.recall.blend import Blend
from hybridrec.recall.popularity import Popularity
from hybridrec.state import read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_log = logging.getLogger("hybridrec")

SIDECAR = "histories"
"""What ``HybridRecommender.save(histories=True)`` writes beside the versions."""

_COLUMNS = "item_columns.arrow"
_LATER = ("calibration", "calibration_with_reranker", "newcomers")
_PARTS = ("reranker", "fusion", "fusion_with_reranker", *_LATER)
"""Stages that a model may lack; those of ``_LATER`` older manifests do not name."""


@dataclass(frozen=True, eq=False)
class Model:
    """What a model folder holds.

    Attributes:
        pipeline: the fitted stages.
        data: the catalogue, with the users and histories of the sidecar if there is one.
        retired: (I,) bool, items that are never recommended.
        settings: what the recommender was made with.
        report: what happened in its ``fit``.
        saved_user_ids: "int" or "str", as its manifest says; None where it says nothing of them.
    """

    pipeline: Pipeline
    data: Dataset
    retired: NDArray[np.bool_]
    settings: Training
    report: TrainingReport
    saved_user_ids: str | None = None

    @property
    def user_ids(self) -> str | None:
        """The type of the users' ids, "int" or "str"; None where nobody knows."""
        return id_type(self.data.users.ids) if self.data.n_users else self.saved_user_ids


def write_model(model: Model, folder: Path) -> dict[str, Any]:
    """Fill ``folder`` with every stage and the catalogue; returns what the manifest should say.

    Raises:
        StorageError: a stage cannot be written.
    """
    pipeline, data = model.pipeline, model.data
    for place, recaller in enumerate(pipeline.blend.recallers):
        recaller.save_files(folder / f"recaller_{place}")
    for place, signal in enumerate(pipeline.blend.scorers):
        signal.save_files(folder / f"signal_{place}")
    pipeline.popularity.save_files(folder / "popularity")
    parts = {name: getattr(pipeline, name) for name in _PARTS}
    for name, part in parts.items():
        if part is not None:
            part.save_files(folder / name)
    _write_catalogue(data, model.retired, folder / "catalogue")
    return {
        "recallers": [_kind(recaller) for recaller in pipeline.blend.recallers],
        "signals": [_kind(signal) for signal in pipeline.blend.scorers],
        "blend_weights": pipeline.blend.weights,
        **{name: None if part is None else _kind(part) for name, part in parts.items()},
        "settings": asdict(model.settings),
        "report": model.report.to_json(),
        "user_ids": model.user_ids,
    }


def id_type(ids: NDArray[Any]) -> str:
    """What ids are to a caller: "int" or "str"."""
    return "int" if ids.dtype.kind == "i" else "str"


def read_model(folder: Path, manifest: Mapping[str, Any], kinds: Mapping[str, type]) -> Model:
    """What :func:`write_model` wrote.

    Args:
        folder: the version's folder.
        manifest: what its manifest says.
        kinds: the stage classes that may be made, by name.

    Raises:
        StorageError: a stage of a kind that is not known, or files that do not fit together.
    """

    def part(name: str, where: str) -> Any:
        if name not in kinds:
            raise StorageError(
                f"{where} is of kind {name!r}, which hybridrec does not know; if the class is "
                f"yours, pass it: load(path, kinds={{{name!r}: TheClass}})"
            )
        kind: Any = kinds[name]
        return kind.load_files(folder / where)

    try:
        recallers = [
            part(name, f"recaller_{place}") for place, name in enumerate(manifest["recallers"])
        ]
        # Models saved before there were signals and calibrations name none.
        signals = [
            part(name, f"signal_{place}") for place, name in enumerate(manifest.get("signals", []))
        ]
        optional: dict[str, Any] = {
            where: None if manifest[where] is None else part(manifest[where], where)
            for where in _PARTS
            if where in manifest or where not in _LATER
        }
        settings = Training(**manifest["settings"])
        report = TrainingReport(**manifest["report"])
        blend = Blend(recallers, manifest["blend_weights"], signals)
    except (KeyError, TypeError) as error:
        raise StorageError(f"the manifest in {folder} is not a recommender's: {error}") from error
    data, retired = _read_catalogue(folder / "catalogue")
    pipeline = Pipeline(
        blend=blend,
        popularity=Popularity.load_files(folder / "popularity"),
        depth=settings.depth,
        rerank_depth=settings.rerank_depth,
        **optional,
    )
    return Model(pipeline, data, retired, settings, report, manifest.get("user_ids"))


def known_kinds() -> dict[str, type]:
    """The stage classes of hybridrec by name; importing them loads no torch."""
    from hybridrec.fuse.baselines import ConvexFusion, OrderBefore, ReciprocalRankFusion
    from hybridrec.fuse.calibration import Calibration
    from hybridrec.fuse.linear import LinearFusion
    from hybridrec.fuse.trees import TreeFusion
    from hybridrec.newcomers import Newcomers
    from hybridrec.recall.als import ALS
    from hybridrec.recall.ease import EASE
    from hybridrec.recall.implicit_model import ImplicitModel
    from hybridrec.recall.item_knn import ItemKNN
    from hybridrec.recall.linear_transitions import LinearTransitions
    from hybridrec.recall.sequence import SequenceRecall
    from hybridrec.recall.text import TextRecall
    from hybridrec.recall.transitions import ItemTransitions
    from hybridrec.rerank.cross_encoder import CrossEncoder
    from hybridrec.signals.at_half_life import AtHalfLife
    from hybridrec.signals.histories import HistoryLength, HistoryStage
    from hybridrec.signals.times import ItemAge, NewestGap, RecentPopularity

    recallers = (
        ALS,
        EASE,
        ImplicitModel,
        ItemKNN,
        ItemTransitions,
        LinearTransitions,
        Popularity,
        SequenceRecall,
        TextRecall,
    )
    signals = (AtHalfLife, HistoryLength, HistoryStage, ItemAge, NewestGap, RecentPopularity)
    fusions = (ConvexFusion, LinearFusion, OrderBefore, ReciprocalRankFusion, TreeFusion)
    kinds: tuple[type, ...] = (*recallers, *signals, *fusions, Calibration, CrossEncoder, Newcomers)
    return {kind.__name__: kind for kind in kinds}


def _kind(part: object) -> str:
    return type(part).__name__


def _write_catalogue(data: Dataset, retired: NDArray[np.bool_], folder: Path) -> None:
    settings = {
        "item_id": data.item_id,
        "item_template": data.item_template,
        "item_columns": list(data.item_columns),
        "ordered": data.ordered,
        "frame": data.frame,
    }
    write_state(folder, settings, {"ids": data.items.ids, "retired": retired})
    if data.texts is not None:
        text = json.dumps(list(data.texts), ensure_ascii=False)
        (folder / "texts.json").write_text(text, encoding="utf-8")
    if data.item_columns:
        import pyarrow as pa

        table = pa.table(
            {name: pa.array(column, from_pandas=True) for name, column in data.item_columns.items()}
        )
        with pa.ipc.new_file(folder / _COLUMNS, table.schema) as file:
            file.write_table(table)


def _read_catalogue(folder: Path) -> tuple[Dataset, NDArray[np.bool_]]:
    settings, arrays = read_state(folder)
    path = folder / "texts.json"
    texts = tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    columns = {}
    if settings["item_columns"]:
        import pyarrow as pa

        try:
            table = pa.ipc.open_file((folder / _COLUMNS).read_bytes()).read_all()
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot read the item columns in {folder}: {error}") from error
        columns = {name: table[name].to_numpy() for name in settings["item_columns"]}
    data = Dataset(
        users=IdMap(arrays["ids"][:0]),
        items=IdMap(arrays["ids"]),
        histories=Ragged.empty(0),
        texts=texts,
        item_columns=columns,
        ordered=settings["ordered"],
        item_id=settings["item_id"],
        item_template=settings["item_template"],
        frame=settings["frame"],
    )
    return data, arrays["retired"]


# Histories are user data: they lie outside the sealed version, so that forgetting is an edit there.


def write_histories(data: Dataset, folder: Path) -> dict[str, Any]:
    """Write who did what, with the mark of the catalogue that its codes belong to."""
    arrays = {"users": data.users.ids, **_arrays("", data.histories)}
    if data.excluded is not None:
        arrays |= _arrays("excluded_", data.excluded)
    mark = {"n_items": data.n_items, "catalogue": _mark(data.items.ids), "dated": data.dated}
    write_state(folder, mark, arrays)
    return {"users": data.n_users, "events": data.n_events}


def with_histories(data: Dataset, folder: Path) -> Dataset:
    """``data`` with the users of a sidecar; without them if they belong to another catalogue."""
    settings, arrays = read_state(folder)
    n_items = int(settings["n_items"])
    if n_items > data.n_items or settings["catalogue"] != _mark(data.items.ids[:n_items]):
        _log.warning(
            "the histories beside this model belong to another catalogue and are left out: save "
            "with histories=True again"
        )
        return data
    excluded = _ragged("excluded_", arrays) if "excluded_indptr" in arrays else None
    return replace(
        data,
        users=IdMap(arrays["users"]),
        histories=_ragged("", arrays),
        excluded=excluded,
        dated=bool(settings.get("dated", False)),
    )


_FIELDS = ("indptr", "items", "weights", "times")


def _arrays(prefix: str, rows: Ragged) -> dict[str, NDArray[Any]]:
    fields = {prefix + name: getattr(rows, name) for name in _FIELDS}
    return {name: values for name, values in fields.items() if values is not None}


def _ragged(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Ragged:
    indptr, items, weights, times = (arrays.get(prefix + name) for name in _FIELDS)
    if indptr is None or items is None:
        raise StorageError("the histories beside this model are damaged: save them again")
    return Ragged(indptr, items, weights, times)


def _mark(ids: NDArray[Any]) -> str:
    """A digest of ids in their order, whatever width numpy stores them at."""
    return hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()
