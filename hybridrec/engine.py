"""The recommender that an application embeds: ids in, ids out, every stage behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec import storage
from hybridrec.candidates import Queries, Ragged, Recommendations
from hybridrec.checks import (
    InputError,
    NotFittedError,
    UnknownIdError,
    one_of,
    whole_number,
)
from hybridrec.data.answers import answer_kind, as_frame
from hybridrec.persistence import (
    Model,
    known_kinds,
    read_model,
    with_histories,
    write_histories,
    write_model,
)
from hybridrec.training import Training, TrainingReport, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.candidates import Mask, Recaller
    from hybridrec.data.dataset import Dataset
    from hybridrec.evaluation.protocol import StageList
    from hybridrec.fuse.linear import LinearFusion
    from hybridrec.pipeline import Pipeline, Reranker

_log = logging.getLogger("hybridrec")

MAX_HISTORY = 1000
"""The newest events of a user that a request goes by."""

_SIDECAR = "histories"
_BATCH = 256


class HybridRecommender:
    """Recall by several recallers, rerank by a cross-encoder, fuse what both say.

    Args:
        recallers: the first stage, each with a name of its own.
        reranker: the second stage; None leaves it out.
        fusion: orders candidates by all signals; None leaves the blend's order, or the reranker's.
        depth: candidates that recall brings for every request.
        rerank_depth: how many of them the reranker reads; None reads all.
        reranker_examples: lists to fine-tune the reranker on at most; None takes all.
        fusion_examples: lists to fit the fusions on at most; None takes all.
        seed: of every random choice in ``fit``.

    After ``fit``, ``recommend`` only reads: threads may share one recommender.
    """

    def __init__(
        self,
        recallers: Sequence[Recaller],
        reranker: Reranker | None = None,
        fusion: LinearFusion | None = None,
        *,
        depth: int = 100,
        rerank_depth: int | None = None,
        reranker_examples: int | None = None,
        fusion_examples: int | None = None,
        seed: int = 0,
    ) -> None:
        if not recallers:
            raise InputError("recallers is empty; wanted at least one, such as hybridrec.ALS()")
        self.recallers = list(recallers)
        self.reranker = reranker
        self.fusion = fusion
        depth = whole_number("depth", depth, least=1)
        if rerank_depth is None:
            rerank_depth = depth
        self.settings = Training(
            depth=depth,
            rerank_depth=whole_number("rerank_depth", rerank_depth, least=1, most=depth),
            reranker_examples=_limit("reranker_examples", reranker_examples),
            fusion_examples=_limit("fusion_examples", fusion_examples),
            seed=whole_number("seed", seed),
        )
        self.report = TrainingReport()
        self._pipeline: Pipeline | None = None
        self._data: Dataset | None = None
        self._retired: NDArray[np.bool_] = np.zeros(0, dtype=bool)

    # -- training ---------------------------------------------------------------------------

    def fit(self, data: Dataset) -> Self:
        """Fit every stage to ``data`` without leakage (:mod:`hybridrec.training`).

        Raises:
            FitError: there is nothing to learn from; the message says what is missing.
        """
        self._pipeline, self.report = train(
            self.recallers, self.reranker, self.fusion, data, self.settings
        )
        self.reranker = self._pipeline.reranker
        self._data = data
        self._retired = np.zeros(data.n_items, dtype=bool)
        return self

    @property
    def pipeline(self) -> Pipeline:
        """The fitted stages.

        Raises:
            NotFittedError: before ``fit`` or ``load``.
        """
        if self._pipeline is None:
            raise NotFittedError(
                "this recommender is not fitted: call fit(data), or hybridrec.load"
            )
        return self._pipeline

    @property
    def data(self) -> Dataset:
        """The catalogue, with the users and histories the model was fitted on or saved with.

        Raises:
            NotFittedError: before ``fit`` or ``load``.
        """
        if self._data is None:
            raise NotFittedError(
                "this recommender is not fitted: call fit(data), or hybridrec.load"
            )
        return self._data

    # -- answers ----------------------------------------------------------------------------

    def recommend(
        self,
        users: Sequence[Any] | NDArray[Any] | None = None,
        k: int = 10,
        *,
        histories: Mapping[Any, Sequence[Any]] | Sequence[Sequence[Any]] | None = None,
        depth: int | None = None,
        exclude_seen: bool = True,
        allow: Sequence[Any] | None = None,
        block: Sequence[Any] | None = None,
        unknown: str = "raise",
        frame: str | None = None,
    ) -> Any:
        """The best ``k`` items for each user, or for each history of somebody the model never saw.

        Args:
            users: ids of users in the data that the model was fitted on or loaded with.
            k: items a user at most; fewer where fewer are possible, never padding.
            histories: instead of ``users``: item ids, oldest first, by name of the person
                (a mapping) or in a sequence; then the user column holds row numbers.
            depth: candidates to recall for this request; default the model's, at least ``k``.
            exclude_seen: leave out what the user already has in the history.
            allow: only these items; None allows all, [] none.
            block: never these items.
            unknown: "raise", or "popular" to give a user nobody knows the popular items.
            frame: "pandas", "polars" or "pyarrow"; default the kind the data came in.

        Returns:
            A tidy frame: user, rank (from 1), item, score.

        Raises:
            UnknownIdError: an id that is not known; names it.
        """
        k = whole_number("k", k, least=1)
        one_of("unknown", unknown, ("raise", "popular"))
        data = self.data
        mask = self._allowed(allow, block)
        if (users is None) == (histories is None):
            raise InputError(
                "give either users= (ids the model knows) or histories= (lists of item ids), "
                f"got {'both' if users is not None else 'neither'}"
            )
        if users is not None:
            names, queries = self._queries_of(data, users, exclude_seen, unknown)
        else:
            names, queries = self._queries_from(data, histories or [], exclude_seen)
        queries = replace(queries, allow=mask)
        depth = max(
            k, self.settings.depth if depth is None else whole_number("depth", depth, least=1)
        )
        answer = self._answer(names, queries, k, min(depth, data.n_items), data)
        return as_frame(answer.columns(), answer_kind(data.frame) if frame is None else frame)

    def _answer(
        self, names: NDArray[Any], queries: Queries, k: int, depth: int, data: Dataset
    ) -> Recommendations:
        parts = [self.pipeline.rank(part, depth).head(k) for _, part in queries.batches(_BATCH)]
        valid = [part.valid for part in parts]
        rows, ranks = np.nonzero(np.concatenate(valid)) if parts else (np.zeros(0, int),) * 2
        codes = [part.items[mask] for part, mask in zip(parts, valid, strict=True)]
        scores = [part.scores[mask] for part, mask in zip(parts, valid, strict=True)]
        return Recommendations(
            users=names[rows],
            ranks=(ranks + 1).astype(np.int32),
            items=data.items.ids_of(np.concatenate(codes) if codes else np.zeros(0, np.int32)),
            scores=np.concatenate(scores) if scores else np.zeros(0, np.float32),
        )

    def _queries_of(
        self, data: Dataset, users: Sequence[Any] | NDArray[Any], exclude_seen: bool, unknown: str
    ) -> tuple[NDArray[Any], Queries]:
        if isinstance(users, (str, int, np.integer)):
            users = [users]
        if not data.n_users and unknown == "raise":
            raise UnknownIdError(
                "this model holds no users' histories, as it was saved without them: pass "
                "histories= to recommend, or save with histories=True"
            )
        codes = data.users.codes(
            users, unknown="raise" if unknown == "raise" else "mark", name="users"
        )
        known = np.flatnonzero(codes >= 0)
        # Row 0 of each is an empty one, for those nobody knows.
        rows = np.zeros(len(codes), dtype=np.int64)
        rows[known] = 1 + np.arange(len(known))
        histories = _with_empty_row(data.histories.select(codes[known])).select(rows)
        exclude = None
        if exclude_seen:
            exclude = _with_empty_row(data.seen(codes[known])).select(rows)
        queries = Queries(
            histories.newest(MAX_HISTORY), data.n_items, codes, exclude, ordered=data.ordered
        )
        return np.asarray(users), queries

    def _queries_from(
        self,
        data: Dataset,
        histories: Mapping[Any, Sequence[Any]] | Sequence[Sequence[Any]],
        exclude_seen: bool,
    ) -> tuple[NDArray[Any], Queries]:
        if isinstance(histories, Mapping):
            names, rows = np.asarray(list(histories)), list(histories.values())
        else:
            names, rows = np.arange(len(histories)), list(histories)
        for name, row in zip(names, rows, strict=True):
            if isinstance(row, (str, bytes)) or not isinstance(row, (Sequence, np.ndarray)):
                raise InputError(f"histories[{name!r}] is {row!r}; wanted a list of item ids")
        ragged = Ragged.from_rows([data.items.codes(row, name="histories") for row in rows])
        exclude = ragged if exclude_seen else None
        queries = Queries(
            ragged.newest(MAX_HISTORY), data.n_items, exclude=exclude, ordered=data.ordered
        )
        return names, queries

    def similar_items(
        self, items: Sequence[Any] | NDArray[Any], k: int = 10, *, frame: str | None = None
    ) -> Any:
        """The ``k`` items nearest to each of ``items`` by cosine of their vectors.

        The vectors are those of the first recaller that has one for the item: ALS factors where
        there were interactions, text embeddings for an item that nobody has met yet.

        Returns:
            A tidy frame: item, rank, similar_item, score.
        """
        k = whole_number("k", k, least=1)
        data = self.data
        if isinstance(items, (str, int, np.integer)):
            items = [items]
        codes = data.items.codes(items)
        answer = self.pipeline.similar_items(codes, k, self._allowed(None, None))
        rows, ranks = np.nonzero(answer.valid)
        columns = {
            "item": data.items.ids_of(codes)[rows],
            "rank": (ranks + 1).astype(np.int32),
            "similar_item": data.items.ids_of(answer.items[answer.valid]),
            "score": answer.scores[answer.valid],
        }
        return as_frame(columns, answer_kind(data.frame) if frame is None else frame)

    def stage_lists(self, queries: Queries, k: int) -> Iterator[StageList]:
        """What every stage would answer to ``queries`` (codes of the fitted data)."""
        return self.pipeline.stage_lists(queries, k)

    # -- the catalogue ----------------------------------------------------------------------

    def add_items(self, items: Any) -> int:
        """Add new, cold items from a frame (or path) like the one the data set was built with.

        They can be recommended at once, by their text; the next ``fit`` lets them learn more.

        Returns:
            How many were added.

        Raises:
            InputError: an id is already in the catalogue; nothing is added then.
        """
        data = self.data
        new = data.read_items(items)
        extended = data.with_items(new)
        for recaller in [*self.recallers, self.pipeline.popularity]:
            recaller.add_items(new.texts, len(new.ids))
        if self.pipeline.reranker is not None:
            self.pipeline.reranker.add_items(new.texts, len(new.ids))
        self._data = extended
        self._retired = np.append(self._retired, np.zeros(len(new.ids), dtype=bool))
        return len(new.ids)

    def retire_items(self, items: Sequence[Any] | NDArray[Any]) -> None:
        """Never recommend ``items`` again; they stay in histories, where they still tell of taste.

        Raises:
            UnknownIdError: an id is not in the catalogue; nothing is retired then.
        """
        retired = self._retired.copy()
        retired[self.data.items.codes(items)] = True
        self._retired = retired

    def _allowed(self, allow: Sequence[Any] | None, block: Sequence[Any] | None) -> Mask | None:
        data = self.data
        if allow is None and block is None and not self._retired.any():
            return None
        mask = np.full(data.n_items, allow is None)
        if allow is not None and len(allow):
            mask[data.items.codes(allow)] = True
        if block is not None and len(block):
            mask[data.items.codes(block)] = False
        allowed: Mask = mask & ~self._retired
        return allowed

    # -- storage ----------------------------------------------------------------------------

    def save(self, path: str | Path, *, histories: bool = False) -> str:
        """Write a new version of the model into the folder ``path`` and make it the current one.

        Args:
            path: a model folder, made if it is not there; the newest two versions stay.
            histories: also write the users' histories, beside the sealed version; without them the
                model holds no user data and answers to ``histories=`` only.

        Returns:
            The version's id.
        """
        data, root = self.data, Path(path)
        model = Model(self.pipeline, data, self._retired, self.settings, self.report)
        version = storage.save_version(root, lambda folder: write_model(model, folder))
        if histories:
            storage.write_sidecar(root, _SIDECAR, lambda folder: write_histories(data, folder))
        return version

    @classmethod
    def _loaded(cls, model: Model) -> Self:
        pipeline, settings = model.pipeline, model.settings
        engine = cls(
            pipeline.blend.recallers,
            pipeline.reranker,
            pipeline.fusion,
            depth=settings.depth,
            rerank_depth=settings.rerank_depth,
            reranker_examples=settings.reranker_examples,
            fusion_examples=settings.fusion_examples,
            seed=settings.seed,
        )
        engine.report = model.report
        engine._pipeline = pipeline
        engine._data = model.data
        engine._retired = model.retired
        return engine


def load(path: str | Path, *, kinds: Mapping[str, type] | None = None) -> HybridRecommender:
    """The current version of the model in the folder ``path``.

    Args:
        path: a folder that :meth:`HybridRecommender.save` wrote.
        kinds: stage classes of your own by name, where the model has some.

    Raises:
        StorageError: there is none, or a file of it is missing, changed or newer than this version.
    """
    root = Path(path)
    folder, manifest = storage.open_current(root)
    model = read_model(folder, manifest, {**known_kinds(), **(kinds or {})})
    sidecar = storage.read_sidecar(root, _SIDECAR)
    if sidecar is not None:
        model = replace(model, data=with_histories(model.data, sidecar[0]))
    return HybridRecommender._loaded(model)


def _with_empty_row(rows: Ragged) -> Ragged:
    """``rows`` behind one empty row."""
    return replace(rows, indptr=np.concatenate([[0], rows.indptr]))


def _limit(name: str, value: int | None) -> int | None:
    return None if value is None else whole_number(name, value, least=1)
