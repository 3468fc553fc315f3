"""The recommender that an application embeds: ids in, ids out, every stage behind it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec import storage
from hybridrec.candidates import Recommendations
from hybridrec.checks import (
    FitError,
    InputError,
    InputTypeError,
    NotFittedError,
    one_of,
    real_number,
    whole_number,
)
from hybridrec.data import requests
from hybridrec.data.answers import answer_kind, as_frame
from hybridrec.data.dataset import Dataset
from hybridrec.deadline import Deadline
from hybridrec.defaults import default_stages
from hybridrec.fuse.calibration import PROBABILITY
from hybridrec.lessons import Training, TrainingReport
from hybridrec.newcomers import Newcomers
from hybridrec.persistence import (
    SIDECAR,
    Model,
    write_histories,
    write_model,
)
from hybridrec.recall.blend import Blend
from hybridrec.stage_lists import stage_lists
from hybridrec.stages import checked_newcomers, checked_stages, fusion_kinds
from hybridrec.state import python_number
from hybridrec.training import train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.candidates import Queries
    from hybridrec.evaluation.protocol import StageList
    from hybridrec.pipeline import Pipeline, Reranker
    from hybridrec.protocols import Fusion, Recaller, Signal
    from hybridrec.ragged import Mask

_log = logging.getLogger("hybridrec")

_BATCH = 256


class HybridRecommender:
    """Recall by several recallers, rerank by a cross-encoder, fuse what both say.

    Args:
        recallers: the first stage, each with a name of its own; None takes those that did best in
            our benchmarks and suit the data, with their signals behind ``signals``, and "auto" for
            a fusion that is None.
        reranker: the second stage; None leaves it out.
        fusion: orders candidates by all signals: a fusion; a list of kinds, of which ``fit`` keeps
            the one with the best NDCG@10 on validation lists; "auto" for every kind there is; None
            leaves the blend's order, or the reranker's.
        signals: scorers that bring no candidates and give those there are one more column each:
            what only fusion reads. A recaller may be one, too.
        newcomers: gives items without events places of their own, by default from the eleventh on,
            and finds those that suit by their texts; None leaves such items to whichever recaller
            brings them.
        depth: candidates that recall brings for every request.
        rerank_depth: how many of them the reranker reads, from the top of what the fusion without
            it makes of them; None reads all.
        reranker_examples: lists to fine-tune the reranker on at most; None takes all.
        fusion_examples: lists to fit the fusion without the reranker on at most; None takes all.
        reranked_examples: the same for the fusion with it: lists that the reranker has to read.
        calibrated: let ``score`` be the probability that the item is the user's next one, as it
            was on validation events (:class:`~hybridrec.fuse.calibration.Calibration`); needs a
            fusion. The order is the same.
        seed: of every random choice in ``fit``.

    The stages given are settings: ``fit`` trains copies of them, which are then found in
    ``recallers``, ``signals``, ``reranker`` and ``fusion``; ``fusions`` keeps the kinds to try.
    What is fitted is swapped as a whole, so threads may share a recommender: whoever asks while one
    thread fits or adds items hears the model before or the model after.
    """

    def __init__(
        self,
        recallers: Sequence[Recaller] | None = None,
        reranker: Reranker | None = None,
        fusion: Fusion | Sequence[Fusion] | Literal["auto"] | None = None,
        *,
        signals: Sequence[Signal] = (),
        newcomers: Newcomers | None = None,
        depth: int = 100,
        rerank_depth: int | None = None,
        reranker_examples: int | None = 2000,
        fusion_examples: int | None = 16_000,
        reranked_examples: int | None = 1000,
        calibrated: bool = False,
        seed: int = 0,
    ) -> None:
        # What stands behind the stages of a recommender that was told none, whatever its data.
        self._beside_default = list(signals) if recallers is None else None
        if recallers is None:
            recallers, more = default_stages(seed)
            signals = [*more, *signals]
            fusion = "auto" if fusion is None else fusion
        self.fusions = fusion_kinds(fusion)
        self.recallers, self.signals = checked_stages(recallers, signals, reranker, self.fusions)
        self.reranker = reranker
        self.fusion = self.fusions[0] if len(self.fusions) == 1 else None
        depth = whole_number("depth", depth, least=1)
        if rerank_depth is None:
            rerank_depth = depth
        self.settings = Training(
            depth=depth,
            rerank_depth=whole_number("rerank_depth", rerank_depth, least=1, most=depth),
            reranker_examples=_limit("reranker_examples", reranker_examples),
            fusion_examples=_limit("fusion_examples", fusion_examples),
            reranked_examples=_limit("reranked_examples", reranked_examples),
            seed=whole_number("seed", seed),
            calibrated=bool(calibrated),
        )
        if calibrated and not self.fusions:
            raise InputError("calibrated is True and there is no fusion: pass fusion='auto'")
        self.newcomers = checked_newcomers(newcomers, self.recallers, self.signals)
        if calibrated and newcomers is not None:
            raise InputError(
                "calibrated is True and there are newcomers, of whom no event tells how likely "
                "they are: leave out one of the two"
            )
        self._model: Model | None = None

    # -- training ---------------------------------------------------------------------------

    def fit(self, data: Dataset) -> Self:
        """Fit every stage to ``data`` without leakage (:mod:`hybridrec.training`).

        Where it fails, the model that was there before goes on as it was.

        Raises:
            FitError: there is nothing to learn from; the message says what is missing.
            InputTypeError: ``data`` is no Dataset.
        """
        if not isinstance(data, Dataset):
            remedy = "make one with Dataset.from_frame(..., user=, item=)"
            if hasattr(data, "train"):
                remedy = "pass split.train"
            raise InputTypeError(f"data is {type(data).__name__}; wanted a Dataset: {remedy}")
        if self.reranker is not None and data.texts is None:
            raise FitError(
                "the reranker reads item text and this data set has none: build it with "
                "Dataset.from_frame(..., items=, item_text=), or leave the reranker out"
            )
        recallers, signals = self.stages_for(data)
        pipeline, report = train(
            recallers, signals, self.reranker, self.fusions, self.newcomers, data, self.settings
        )
        # Through JSON, so that a loaded model's report is equal to this one.
        report = TrainingReport(**json.loads(json.dumps(report.to_json(), default=python_number)))
        retired = np.zeros(data.n_items, dtype=bool)
        self._hold(Model(pipeline, data, retired, self.settings, report))
        return self

    def stages_for(self, data: Dataset) -> tuple[list[Recaller], list[Signal]]:
        """The recallers and signals that :meth:`fit` would train for ``data``, copies of them."""
        recallers, signals = self.recallers, self.signals
        if self._beside_default is not None:
            recallers, more = default_stages(self.settings.seed, data)
            signals = [*more, *self._beside_default]
            checked_stages(recallers, signals, self.reranker, self.fusions)
            checked_newcomers(self.newcomers, recallers, signals)
        return [copy.copy(stage) for stage in recallers], [copy.copy(stage) for stage in signals]

    def _hold(self, model: Model) -> None:
        """Take over ``model``; readers see all of it or nothing, as ``_model`` is set once."""
        pipeline = model.pipeline
        self.recallers, self.signals = pipeline.blend.recallers, pipeline.blend.scorers
        self.reranker = pipeline.reranker
        self.fusion = pipeline.fusion
        self.newcomers = pipeline.newcomers
        self._model = model

    @property
    def _fitted(self) -> Model:
        model = self._model
        if model is None:
            raise NotFittedError(
                "this recommender is not fitted: call fit(data), or hybridrec.load"
            )
        return model

    @property
    def report(self) -> TrainingReport:
        """What happened in ``fit``; empty before it."""
        return TrainingReport() if self._model is None else self._model.report

    @property
    def pipeline(self) -> Pipeline:
        """The fitted stages.

        Raises:
            NotFittedError: before ``fit`` or ``load``.
        """
        return self._fitted.pipeline

    @property
    def data(self) -> Dataset:
        """The catalogue, with the users and histories the model was fitted on or saved with.

        Raises:
            NotFittedError: before ``fit`` or ``load``.
        """
        return self._fitted.data

    @property
    def user_ids(self) -> Literal["int", "str"]:
        """The type of the users' ids; "str" where neither users nor a manifest tell.

        Raises:
            NotFittedError: before ``fit`` or ``load``.
        """
        return "int" if self._fitted.user_ids == "int" else "str"

    @property
    def retired(self) -> Mask:
        """(I,) bool, the items that are never recommended.

        Raises:
            NotFittedError: before ``fit`` or ``load``.
        """
        return self._fitted.retired

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
        context: Mapping[str, Any] | None = None,
        budget_ms: float | None = None,
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
            context: what the reranker's template names of the request, by column: one value for
                all, or one a user or history, e.g. ``{"device": "phone"}``.
            budget_ms: milliseconds from now in which to answer: reranking, which takes nearly all
                of the time, begins at the best candidates and ends when it has to. What it read
                stands first. None sets no limit.
            frame: "pandas", "polars" or "pyarrow"; default the kind the data came in,
                "pyarrow" where that was neither (duckdb, a file).

        Returns:
            A tidy frame: user, rank (from 1), item, score; with ``budget_ms`` also reranked, False
            for an item that there was no time to rerank.

        Raises:
            UnknownIdError: an id that is not known; names it.
            InputTypeError: something that is no list of ids where one is wanted.
        """
        deadline = None
        if budget_ms is not None:
            deadline = Deadline(real_number("budget_ms", budget_ms, above=0))
        k = whole_number("k", k, least=1)
        one_of("unknown", unknown, ("raise", "popular"))
        if depth is not None:
            depth = whole_number("depth", depth, least=1)
        if (users is None) == (histories is None):
            raise InputError(
                "give either users= (ids the model knows) or histories= (lists of item ids), "
                f"got {'both' if users is not None else 'neither'}"
            )
        model = self._fitted
        data = model.data
        mask = requests.allowed(data, model.retired, allow, block)
        if users is not None:
            names, queries = requests.of_users(
                data, users, exclude_seen=exclude_seen, unknown=unknown, context=context
            )
        else:
            names, queries = requests.of_histories(
                data, histories, exclude_seen=exclude_seen, context=context
            )
        queries = replace(queries, allow=mask)
        depth = min(max(k, depth or self.settings.depth), data.n_items)
        answer = _answer(model, names, queries, k, depth, deadline)
        return as_frame(answer.columns(), answer_kind(data.frame) if frame is None else frame)

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
        model = self._fitted
        data = model.data
        if isinstance(items, (str, int, np.integer)):
            items = [items]
        codes = data.items.codes(items, name="items")
        allow = requests.allowed(data, model.retired, None, None)
        answer = model.pipeline.neighbours.nearest(codes, k, allow)
        rows, ranks = np.nonzero(answer.valid)
        columns = {
            "item": data.items.ids_of(codes)[rows],
            "rank": (ranks + 1).astype(np.int32),
            "similar_item": data.items.ids_of(answer.items[answer.valid]),
            "score": answer.scores[answer.valid],
        }
        return as_frame(columns, answer_kind(data.frame) if frame is None else frame)

    def stage_lists(self, queries: Queries, k: int) -> Iterator[StageList]:
        """What every stage would answer to ``queries`` (codes of the fitted data).

        Raises:
            InputError: the queries are about another catalogue.
        """
        model = self._fitted
        if queries.n_items != model.data.n_items:
            raise InputError(
                f"queries is about {queries.n_items} items and this model knows "
                f"{model.data.n_items}: pass split.for_catalogue(engine.data.items)"
            )
        allow = requests.allowed(model.data, model.retired, None, None)
        if allow is not None:
            queries = replace(
                queries, allow=allow if queries.allow is None else allow & queries.allow
            )
        return stage_lists(model.pipeline, queries, k)

    # -- the catalogue ----------------------------------------------------------------------

    def add_items(self, items: Any) -> int:
        """Add new, cold items from a frame (or path) like the one the data set was built with.

        They can be recommended at once, by their text: where newcomers have places of their own,
        there. The next ``fit`` learns more of them.

        Returns:
            How many were added.

        Raises:
            InputError: an id is already in the catalogue. Whatever is raised, nothing is added.
        """
        model = self._fitted
        new = model.data.read_items(items)
        data = model.data.with_items(new)
        pipeline, n = model.pipeline, len(new.ids)
        recallers = [copy.copy(recaller) for recaller in pipeline.blend.recallers]
        signals = [copy.copy(signal) for signal in pipeline.blend.scorers]
        parts = {
            name: copy.copy(getattr(pipeline, name))
            for name in ("popularity", "reranker", "newcomers")
        }
        for stage in [*recallers, *signals, *parts.values()]:
            if stage is not None:
                stage.add_items(new.texts, n)
        blend = Blend(recallers, pipeline.blend.weights, signals)
        pipeline = replace(pipeline, blend=blend, **parts)
        retired = np.append(model.retired, np.zeros(n, dtype=bool))
        self._hold(replace(model, pipeline=pipeline, data=data, retired=retired))
        return n

    def retire_items(self, items: Sequence[Any] | NDArray[Any]) -> None:
        """Never recommend ``items`` again; they stay in histories, where they still tell of taste.

        Raises:
            UnknownIdError: an id is not in the catalogue; nothing is retired then.
        """
        model = self._fitted
        retired = model.retired.copy()
        retired[model.data.items.codes(items, name="items")] = True
        self._model = replace(model, retired=retired)

    # -- storage ----------------------------------------------------------------------------

    def save(self, path: str | Path, *, histories: bool = False) -> str:
        """Write a new version of the model into the folder ``path`` and make it the current one.

        Args:
            path: a model folder, made if it is not there; the newest two versions stay.
            histories: also write the users' histories, beside the sealed version; without them the
                model holds no user data and answers to ``histories=`` only, and those that an
                earlier save left are erased.

        Returns:
            The version's id.
        """
        model, root = self._fitted, Path(path)
        beside = None
        if histories:

            def write_beside(folder: Path, version: str) -> dict[str, Any]:
                return {**write_histories(model.data, folder), "version": version}

            beside = SIDECAR, write_beside
        version = storage.save_version(
            root, lambda folder: write_model(model, folder), beside=beside
        )
        if not histories:
            storage.remove_sidecar(root, SIDECAR)
        return version

    @classmethod
    def _loaded(cls, model: Model) -> Self:
        pipeline, settings = model.pipeline, model.settings
        engine = cls(
            pipeline.blend.recallers,
            pipeline.reranker,
            pipeline.fusion,
            signals=pipeline.blend.scorers,
            newcomers=pipeline.newcomers,
            depth=settings.depth,
            rerank_depth=settings.rerank_depth,
            reranker_examples=settings.reranker_examples,
            fusion_examples=settings.fusion_examples,
            reranked_examples=settings.reranked_examples,
            seed=settings.seed,
            calibrated=settings.calibrated and pipeline.fusion is not None,
        )
        engine._hold(model)
        return engine


def _answer(
    model: Model,
    names: NDArray[Any],
    queries: Queries,
    k: int,
    depth: int,
    deadline: Deadline | None,
) -> Recommendations:
    """The best ``k`` of ``depth`` candidates for each query, in the ids of the model."""
    parts, read = [], []
    for _, part in queries.batches(_BATCH):
        ranking = model.pipeline.ranking(part, depth, deadline=deadline, k=k)
        parts.append(ranking.answer.head(k))
        read.append(ranking.reranked[:, :k][parts[-1].valid])
    valid = [part.valid for part in parts]
    rows, ranks = np.nonzero(np.concatenate(valid)) if parts else (np.zeros(0, int),) * 2
    codes = [part.items[mask] for part, mask in zip(parts, valid, strict=True)]
    scores = [
        part.signals.get(PROBABILITY, part.scores)[mask]
        for part, mask in zip(parts, valid, strict=True)
    ]
    return Recommendations(
        users=names[rows],
        ranks=(ranks + 1).astype(np.int32),
        items=model.data.items.ids_of(np.concatenate(codes) if codes else np.zeros(0, np.int32)),
        scores=np.concatenate(scores) if scores else np.zeros(0, np.float32),
        reranked=None if deadline is None else np.concatenate(read or [np.zeros(0, bool)]),
    )


def _limit(name: str, value: int | None) -> int | None:
    return None if value is None else whole_number(name, value, least=1)
