"""The forward pass in which a prompt is read once for all of its candidates.

A prefix attends to itself; a candidate attends to the prefix and to itself; nothing attends to
another candidate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybridrec.rerank.families import Unpackable
from hybridrec.rerank.layout import Layout
from hybridrec.rerank.learnt_states import count_of
from hybridrec.rerank.packing import pack, pack_pairs, pair, plan
from hybridrec.rerank.soft_tokens import in_pack, in_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.ragged import Items, Ragged
    from hybridrec.rerank.families import Family
    from hybridrec.rerank.layout import States
    from hybridrec.rerank.packing import Pairs, Piece
    from hybridrec.rerank.prefix_cache import PrefixCache
    from hybridrec.rerank.prompt import TokenTable
    from hybridrec.rerank.soft_tokens import Soft
    from hybridrec.rerank.vectors import Vectors


def list_scores(
    model: Any,
    prompts: Ragged,
    items: Items,
    table: TokenTable,
    *,
    family: Family,
    one_way: bool,
    packed: bool,
    budget: int | None,
    cache: PrefixCache | None = None,
    users: NDArray[np.int32] | None = None,
    vectors: Vectors | None = None,
) -> Tensor:
    """(B, K) float32 scores on the model's device, -inf where the item is -1; carries gradients.

    Args:
        model: weights that attend by :data:`hybridrec.rerank.attention.ATTENTION`.
        prompts: B rows of token ids.
        items: (B, K) item codes, -1 padded.
        table: the token ids of the catalogue.
        family: how the model is fed and read.
        one_way: the mask; see :class:`hybridrec.rerank.packing.Pairs`.
        packed: lay tokens end to end, with ``one_way`` each prompt once for all its candidates;
            else transformers' own attention over padded pairs, to check by.
        budget: tokens of one forward pass; None takes all at once.
        cache: where states of prompts are looked up and kept; only without gradients.
        users: (B,) whose prompts these are, -1 unknown; for the cache.
        vectors: of the B queries and of the catalogue, for a model with soft tokens.
    """
    rows, columns = np.nonzero(items >= 0)
    chosen = items[rows, columns]
    lengths = table.rows.lengths[chosen]
    if packed and one_way:
        indptr = np.searchsorted(rows, np.arange(len(items) + 1))
        forward = _Packed(model, family, prompts, chosen, table, cache, users, vectors)
        parts = [forward(pieces) for pieces in plan(prompts.lengths, indptr, lengths, budget)]
    else:
        longest = int((prompts.lengths[rows] + lengths).max(initial=1))
        size = len(rows) or 1 if budget is None else max(1, budget // longest)
        paired = _Paired(model, family, prompts, table, one_way, packed and family.packs, vectors)
        parts = [
            paired(rows[i : i + size], chosen[i : i + size]) for i in range(0, len(rows), size)
        ]
    scores = torch.full(items.shape, float("-inf"), device=model.device)
    if not parts:
        return scores
    return scores.masked_scatter(torch.from_numpy(items >= 0).to(model.device), torch.cat(parts))


class _Packed(NamedTuple):
    """Forward passes over packs of one call of :func:`list_scores`; see there."""

    model: Any
    family: Family
    prompts: Ragged
    chosen: NDArray[np.int32]
    table: TokenTable
    cache: PrefixCache | None
    users: NDArray[np.int32] | None
    vectors: Vectors | None

    def __call__(self, pieces: list[Piece]) -> Tensor:
        """(n,) float32 scores of all candidates of ``pieces``, in their order."""
        kept = [self._recalled(piece.query) for piece in pieces]
        known = np.array([states is not None for states in kept])
        pack_ = pack(pieces, self.prompts, self.chosen, self.table, known, count_of(self.model))
        layout = Layout(
            pack_, self.model.device,
            self.family.causal, kept=kept, keep=self.cache is not None and self.cache.keeps,
        )  # fmt: skip
        soft = None
        if self.vectors is not None:
            soft = in_pack(self.vectors, pieces, pack_, self.chosen, causal=self.family.causal)
        scores = _pack_scores(self.model, self.family, layout, soft)
        if self.cache is not None:
            for piece, states in zip(pieces, layout.taken, strict=True):
                if states is not None:
                    self.cache.put(self._read(piece.query), states, self._user(piece.query))
        return scores

    def _recalled(self, query: int) -> States | None:
        if self.cache is None:
            return None
        return self.cache.get(self._read(query), self._user(query))

    def _read(self, query: int) -> bytes:
        """All that the states of a prompt follow from: its tokens, and the vector in it."""
        start, stop = self.prompts.indptr[query : query + 2]
        tokens = self.prompts.items[start:stop].tobytes()
        return tokens if self.vectors is None else tokens + self.vectors.users[query].tobytes()

    def _user(self, query: int) -> int:
        return -1 if self.users is None else int(self.users[query])


class _Paired(NamedTuple):
    """Forward passes over pairs of one call of :func:`list_scores`; see there."""

    model: Any
    family: Family
    prompts: Ragged
    table: TokenTable
    one_way: bool
    packed: bool
    vectors: Vectors | None

    def __call__(self, rows: NDArray[np.int64], codes: NDArray[np.int32]) -> Tensor:
        """(n,) float32 scores of the queries ``rows`` with the items ``codes``."""
        model, family = self.model, self.family
        whole = family.read(model) == "all"
        pairs = pair(self.prompts, rows, codes, self.table, one_way=self.one_way, whole=whole)
        layout, starts = None, np.arange(len(rows)) * pairs.tokens.shape[1]
        if self.packed:
            layout = Layout(pack_pairs(pairs, count_of(model)), model.device, family.causal)
            starts = layout.pack.asks[:-1]
        soft = None
        if self.vectors is not None:
            soft = in_pairs(self.vectors, pairs, starts, rows, codes, causal=family.causal)
        if layout is None:
            return _pair_scores(model, family, pairs, soft)
        return _pack_scores(model, family, layout, soft)


def _pack_scores(model: Any, family: Family, layout: Layout, soft: Soft | None) -> Tensor:
    """(n,) float32 score of every candidate of a pack, in the order of ``heads``."""
    device, laid = model.device, layout.pack
    tokens, positions, types = (
        torch.from_numpy(part)[None].to(device)
        for part in (laid.tokens, laid.positions, laid.types)
    )
    given = family.inputs(model, tokens, positions, types)
    if soft is not None:
        given = soft.into(model, given)
    hidden = family.body(model)(**given, layout=layout).last_hidden_state[0]
    return _read(model, family, hidden, laid.owners, laid.heads, laid.ends)


def _pair_scores(model: Any, family: Family, pairs: Pairs, soft: Soft | None) -> Tensor:
    """(n,) float32 score of every pair by transformers' own forward with its own 4-d mask."""
    device = model.device
    n, longest = pairs.tokens.shape
    place = np.arange(longest)
    tokens, types = (torch.from_numpy(part).to(device) for part in (pairs.tokens, pairs.types))
    if isinstance(family, Unpackable):
        real = torch.from_numpy(place < pairs.lengths[:, None]).to(device)
        return family.pair_scores(model, tokens, types, real, soft)
    seen = pairs.mask & (place <= place[:, None]) if family.causal else pairs.mask.copy()
    positions = torch.arange(longest, device=device).expand(n, -1)
    given = family.inputs(model, tokens, positions, types)
    if soft is not None:
        given = soft.into(model, given)
    hidden = family.body(model)(
        **given,
        attention_mask=family.masks(model, torch.from_numpy(seen).to(device)),
    ).last_hidden_state
    first = np.arange(n) * longest
    heads, ends = first + pairs.heads, first + pairs.lengths - 1
    return _read(model, family, hidden.flatten(0, 1), pairs.owners.ravel(), heads, ends)


def _read(
    model: Any,
    family: Family,
    hidden: Tensor,
    owners: NDArray[np.int64],
    heads: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> Tensor:
    """(n,) float32 scores from the states (T, width) of n candidates.

    Args:
        model: the model.
        family: which states a score is made of, and how.
        hidden: (T, width).
        owners: (T,) the candidate of each token, -1 for none.
        heads: (n,) where "first" is read.
        ends: (n,) where "last" is read.
    """
    read = family.read(model)
    if read in ("mean", "all"):
        states = _means(hidden, torch.from_numpy(owners).to(hidden.device), len(heads))
    else:
        places = torch.from_numpy(heads if read == "first" else ends)
        states = hidden[places.to(hidden.device)]
    return family.scores(model, states)


def _means(hidden: Tensor, owners: Tensor, n: int) -> Tensor:
    """(n, width) float32: the mean state of each candidate's own tokens."""
    mine = owners >= 0
    own = owners[mine]
    sums = torch.zeros(n, hidden.shape[1], device=hidden.device)
    counts = torch.bincount(own, minlength=n).clamp(min=1)
    return sums.index_add(0, own, hidden[mine].float()) / counts[:, None]
