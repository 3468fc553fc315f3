"""Recall by order: a transformer reads the history and says what comes next."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import (
    FitError,
    InputError,
    frozen,
    one_of,
    require_extra,
    thread_count,
    whole_number,
)
from hybridrec.recall.faiss_index import FaissIndex, make_index
from hybridrec.recall.promises import (
    check_queries,
    fitted,
    recall_vectors,
    score_vectors,
)
from hybridrec.recall.sequence_config import SequenceConfig
from hybridrec.recall.text import TextRecall
from hybridrec.recall.text_encoder import unit_rows
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import FitData, VectorIndex
    from hybridrec.ragged import Items, Mask, Scores

__all__ = ["SequenceRecall"]

_ORDER = (
    "it learns what comes next: give the interactions a time column (time=...), or leave "
    "SequenceRecall out of the recallers"
)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What is known after fitting.

    Attributes:
        config: the settings.
        weights: of the network, its item embeddings "ids" (I, D) among them; 0 without events.
        met: (I,) items that have been in a history.
        vectors: (I, D) float32, of length 1; 0 where nothing is known of an item.
        inputs: (I, D) float32, the same before they were scaled: what the network reads.
        index: of ``vectors``.
    """

    config: SequenceConfig
    weights: Mapping[str, Scores]
    met: Mask
    inputs: Scores
    vectors: Scores
    index: VectorIndex

    @cached_property
    def reader(self) -> tuple[Any, Any]:
        """The network and its items, ready to answer; made on first use."""
        ready: tuple[Any, Any] = _torch("sequence_network").ready(
            self.weights, self.inputs, self.config
        )
        return ready


class SequenceRecall:
    """A causal transformer over the history, trained with the softmax over the whole catalogue.

    SASRec (Kang & McAuley, arXiv 1808.09781) with the loss that made it competitive (Klenitskiy &
    Vasilev, arXiv 2309.07602). At every event of a history the network says what comes next; its
    output and the items' vectors have length 1, and a score is their product over a temperature.
    Weights of events are not read.

    With an ``encoder`` an item's vector is an embedding of its own plus a learned projection of
    its text's, so that an item nobody has met yet has a place; without, such an item scores 0, as
    everything does for an empty history.

    Args:
        width: D, the length of a vector.
        layers: of the transformer.
        heads: of attention; ``width`` must be a multiple of twice as many.
        max_length: the newest events that are read. A longer history is cut when asked, and
            divided when learnt from.
        dropout: share of states that are left out in training.
        temperature: what products are divided by.
        epochs: times that ``fit`` goes through all events.
        refit_epochs: the same for ``refit``, which starts from the weights that are there.
        learning_rate: the highest of AdamW's rates, which rise and fall again.
        weight_decay: AdamW's.
        batch_size: events a step learns from, about.
        precision: of products in training: ``"bf16"``, ``"fp32"`` or ``"auto"`` for bf16 where
            the device has instructions for it. Queries are answered in float64 on the CPU.
        encoder: what reads item texts, as in :class:`~hybridrec.TextRecall`; None for no texts.
        index: ``"exact"``, ``"auto"`` (see :class:`~hybridrec.FaissIndex`), or a FAISS factory
            string such as ``"HNSW32"``.
        device: where fitting runs: ``"cpu"``, ``"cuda"`` or ``"auto"``. A loaded model refits on
            the CPU.
        threads: None uses every CPU this process may use; another number may give other bits.
        seed: of the weights at the start, the order of steps and the dropout.
        name: the column that the scores fill.
    """

    half_life: float | None = None

    def __init__(
        self,
        width: int = 64,
        *,
        layers: int = 2,
        heads: int = 2,
        max_length: int = 200,
        dropout: float = 0.2,
        temperature: float = 0.05,
        epochs: int = 12,
        refit_epochs: int = 4,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        batch_size: int = 8192,
        precision: str = "auto",
        encoder: str | Path | None = None,
        index: str = "exact",
        device: str = "cpu",
        threads: int | None = None,
        seed: int = 0,
        name: str = "sequence",
    ) -> None:
        config = SequenceConfig(
            width=width,
            layers=layers,
            heads=heads,
            max_length=max_length,
            dropout=dropout,
            temperature=temperature,
            epochs=epochs,
            refit_epochs=refit_epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            precision=precision,
            encoder=None if encoder is None else str(encoder),
            index=index,
            seed=seed,
            name=name,
        )
        self._configure(config, threads, device)

    def _configure(self, config: SequenceConfig, threads: int | None, device: str) -> None:
        self.config = config
        self._device = one_of("device", device, ("cpu", "cuda", "auto"))
        self._threads = thread_count(threads)
        self._texts: TextRecall | None = None
        self._state: _Fitted | None = None

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """Nothing to try: the network has learnt what recency is worth."""
        return ()

    @property
    def index(self) -> VectorIndex:
        """The index of the item vectors."""
        return fitted(self.name, self._state).index

    @property
    def item_vectors(self) -> Scores:
        """(I, D) float32 of length 1, read-only; 0 where nothing is known of an item."""
        return fitted(self.name, self._state).vectors

    def fit(self, data: FitData) -> Self:
        """Train from a random start.

        Raises:
            FitError: the histories of ``data`` carry no order, or training diverged.
            InputError: no history has two events, ``encoder`` is set and the items of ``data``
                carry no text, or ``device`` is not there.
            MissingExtraError: torch is not installed.

        O(N·D·(I + D + max_length)) time an epoch for N events.
        """
        self._learn(data, None, self.config.epochs, self.config.learning_rate)
        return self

    def refit(self, data: FitData) -> Self:
        """Train on from the weights that are there, for ``refit_epochs``, at half the rate.

        Item vectors move little that way: what was trained on the old ones still reads the new.
        """
        old = fitted(self.name, self._state)
        if data.n_items < len(old.met):
            raise InputError(
                f"data has {data.n_items} items; {self.name!r} knows {len(old.met)}: refit on a "
                "catalogue that only grew, or fit anew"
            )
        self._learn(data, old, self.config.refit_epochs, 0.5 * self.config.learning_rate)
        return self

    def user_vectors(self, queries: Queries) -> Scores:
        """(B, D) float32: the state after each history, over the temperature; 0 where it is empty.

        O(nnz·D·(D + max_length)) time.

        Raises:
            InputError: unordered histories, or queries about another catalogue.
        """
        state = self._checked(queries)
        reader = _torch("sequence_network").read
        return np.asarray(reader(*state.reader, queries.histories, self.config))

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The ``k`` items likeliest to come next that a query does not exclude."""
        index = self._checked(queries).index
        return recall_vectors(self.name, self.user_vectors, index, queries, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1."""
        vectors = self._checked(queries).vectors
        return score_vectors(self.user_vectors, vectors, queries, items)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items behind the last code, placed by ``texts``; vectors of 0 without."""
        old = fitted(self.name, self._state)
        n = whole_number("n", n)
        new = np.zeros((n, self.config.width), np.float32)
        met = np.zeros(n, dtype=np.bool_)
        if self._texts is not None:
            read = copy.copy(self._texts)
            read.add_items(texts, n)
            self._texts = read
            new = _inputs(new, read.item_vectors[-n:] if n else read.item_vectors[:0], old.weights)
        # A copy: a shallow copy of this recaller may share the index.
        index = copy.copy(old.index)
        index.add(unit_rows(new))
        self._state = replace(
            old,
            weights={
                **old.weights,
                "ids": np.concatenate([old.weights["ids"], np.zeros_like(new)]),
            },
            met=np.concatenate([old.met, met]),
            inputs=np.concatenate([old.inputs, new]),
            vectors=frozen(np.concatenate([old.vectors, unit_rows(new)])),
            index=index,
        )

    def save_files(self, folder: Path) -> None:
        """Write the settings, the weights, the item vectors and, if it is FAISS', the index."""
        state = fitted(self.name, self._state)
        arrays: dict[str, NDArray[Any]] = {
            **{f"weights_{name}": weight for name, weight in state.weights.items()},
            "met": state.met,
            "inputs": state.inputs,
        }
        if isinstance(state.index, FaissIndex):
            arrays |= state.index.to_arrays()
            del arrays["vectors"]
        write_state(folder, {"config": config_to_json(self.config)}, arrays)
        if self._texts is not None:
            self._texts.save_files(folder / "texts")

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; the encoder is not needed again."""
        settings, arrays = read_state(folder)
        model = cls()
        config = config_from_json(SequenceConfig, settings["config"])
        model._configure(config, None, "cpu")
        if config.encoder is not None:
            model._texts = TextRecall.load_files(folder / "texts")
        weights = {
            name.removeprefix("weights_"): array
            for name, array in arrays.items()
            if name.startswith("weights_")
        }
        model._keep(weights, arrays["met"], arrays["inputs"], arrays)
        return model

    def _checked(self, queries: Queries) -> _Fitted:
        state = fitted(self.name, self._state)
        check_queries(self.name, len(state.met), queries)
        if not queries.ordered:
            raise InputError(f"{self.name!r} was asked with unordered histories; {_ORDER}")
        return state

    def _learn(self, data: FitData, old: _Fitted | None, epochs: int, rate: float) -> None:
        """Train for ``epochs`` from the weights of ``old``, or from a random start."""
        if not data.ordered:
            raise FitError(f"{self.name!r} was given interactions without an order; {_ORDER}")
        if not (data.histories.lengths > 1).any():
            raise InputError(
                f"no history of data has two events: {self.name!r} learns what follows what"
            )
        texts = self._read_texts(data)
        weights = _torch("sequence_training").fitted_weights(
            data.histories,
            None if texts is None else texts.item_vectors,
            self.config,
            None if old is None else (old.weights, old.met),
            n_items=data.n_items,
            epochs=epochs,
            rate=rate,
            device=self._device,
            threads=self._threads,
        )
        met = np.bincount(data.histories.items, minlength=data.n_items) > 0
        if old is not None:
            met[: len(old.met)] |= old.met
        inputs = weights["ids"]
        if texts is not None:
            inputs = _inputs(inputs, texts.item_vectors, weights)
        self._texts = texts
        self._keep(weights, met, inputs)

    def _read_texts(self, data: FitData) -> TextRecall | None:
        """The texts of ``data`` as vectors; those known already are not read again."""
        if self.config.encoder is None:
            return None
        if data.texts is None:
            raise InputError(
                f"{self.name!r} has an encoder and the data has no item texts: make the data set "
                "with items=<the item table> and item_text='{title}', or leave encoder out"
            )
        texts = self._texts or TextRecall(self.config.encoder, name=self.name)
        return copy.copy(texts).fit(data)

    def _keep(
        self,
        weights: Mapping[str, Scores],
        met: Mask,
        inputs: Scores,
        saved: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Hold what was learnt; ``saved`` are arrays of a FAISS index, if there was one."""
        vectors = unit_rows(inputs)
        spec = self.config.index
        if saved is not None and "faiss" in saved:
            arrays = {**saved, "vectors": vectors}
            index: VectorIndex = FaissIndex.from_arrays(arrays, spec, threads=self._threads)
        else:
            index = make_index(vectors, spec, threads=self._threads)
        self._state = _Fitted(self.config, weights, met, inputs, frozen(vectors), index)


def _inputs(ids: Scores, texts: Scores, weights: Mapping[str, Scores]) -> Scores:
    """(n, D): embeddings ``ids`` (n, D) and the projections of ``texts`` (n, E).

    In float64: what an item gets must not depend on how many are placed with it.
    """
    placed = ids + texts.astype(np.float64) @ weights["text__weight"].T.astype(np.float64)
    return placed.astype(np.float32)


def _torch(module: str) -> Any:
    """A module that imports torch."""
    require_extra("torch", "llm")
    return require_extra(f"hybridrec.recall.{module}", "llm")
