"""Which tokens share a forward pass, and where each stands in it; integers only, no torch.

A pack is one flat row of tokens without padding. Each query in it is a block: its prefix, then its
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hybridrec.ragged import Ragged
    from hybridrec.rerank.prompt import TokenTable

CHUNK_TOKENS = 128
"""Candidate tokens whose attention is one call; measured best at a prompt of about as many."""


class Piece(NamedTuple):
    """Candidates ``start:stop`` (places in the flat list of candidates) of one query."""

    query: int
    start: int
    stop: int


class Block(NamedTuple):
    """One query in a pack: ``prefix`` tokens of prompt, then candidates in ``chunks`` of tokens.

    A chunk is neighbouring candidates whose attention is computed together: whoever computes it
    hides them from each other, so small chunks waste little and large ones cost few calls.

    ``kept`` says that the prompt's tokens are not in the pack: what a model made of them is known.
    """

    prefix: int
    chunks: tuple[int, ...]
    kept: bool

    @property
    def tokens(self) -> int:
        """How many of the pack's tokens are this block's."""
        return sum(self.chunks) + (0 if self.kept else self.prefix)


@dataclass(frozen=True, eq=False)
class Pack:
    """What one forward pass reads.

    Texts are the prompts and candidates in the order of the tokens; a kept prompt is an empty one.
    Keys are what tokens look at: those of the kept prompts in the order of the blocks, then one a
    token; before the keys of each prompt, kept or not, are those of ``learnt`` states.

    Attributes:
        tokens: (T,) int64 token ids.
        positions: (T,) int64; those of a candidate go on where its prefix ends.
        types: (T,) int64, 0 on a prefix and 1 on a candidate.
        owners: (T,) int64, the candidate that a token belongs to, as an index of ``heads``; -1 on
            a prompt.
        blocks: one a piece, in the order of the tokens.
        heads: (n,) int64, where each candidate's first token stands; in the caller's order.
        ends: (n,) int64, where its last token stands.
        asks: (S + 1,) int64, text s has the tokens ``asks[s]:asks[s + 1]``.
        own: (S, 2) int64, the keys of its own tokens, from and to.
        seen: (S, 2) int64, the keys of the prompt that a candidate sees; an empty range on prompts.
        learnt: states that are no token's and that all tokens see: counted to the prompt's keys.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    types: NDArray[np.int64]
    owners: NDArray[np.int64]
    blocks: tuple[Block, ...]
    heads: NDArray[np.int64]
    ends: NDArray[np.int64]
    asks: NDArray[np.int64]
    own: NDArray[np.int64]
    seen: NDArray[np.int64]
    learnt: int = 0


def plan(
    prefix_lengths: NDArray[np.int64],
    indptr: NDArray[np.int64],
    lengths: NDArray[np.int64],
    budget: int | None,
) -> list[list[Piece]]:
    """Part the work into packs of at most ``budget`` tokens.

    A query whose candidates do not fit into one pack is cut into pieces, each with the prefix anew;
    a piece has at least one candidate, however long. Queries without candidates are left out.

    Args:
        prefix_lengths: (B,) tokens of each prefix.
        indptr: (B + 1,) query b has candidates ``indptr[b]:indptr[b + 1]``.
        lengths: (n,) tokens of each candidate.
        budget: tokens a pack; None puts everything into one.
    """
    packs: list[list[Piece]] = []
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if budget is None:
        budget = int(prefix_lengths.sum() + ends[-1])
    left = 0
    for query, prefix in enumerate(prefix_lengths):
        start, last = int(indptr[query]), int(indptr[query + 1])
        while start < last:
            cost = int(prefix + ends[last] - ends[start])
            if cost <= left:
                stop = last
            else:
                packs.append([])
                left = budget
                limit = ends[start] + max(budget - prefix, 0)
                stop = min(last, max(start + 1, int(np.searchsorted(ends, limit, "right")) - 1))
                cost = int(prefix + ends[stop] - ends[start])
            packs[-1].append(Piece(query, start, stop))
            left -= cost
            start = stop
    return packs


def pack(
    pieces: list[Piece],
    prefixes: Ragged,
    codes: NDArray[np.int32],
    table: TokenTable,
    kept: NDArray[np.bool_] | None = None,
    learnt: int = 0,
) -> Pack:
    """Lay out the tokens of ``pieces``.

    Args:
        pieces: what goes into this pack, at least one.
        prefixes: B rows of token ids.
        codes: (n,) item code of each candidate of the flat list.
        table: the token ids of the catalogue.
        kept: (pieces,) whether a piece's prompt is left out; None leaves out none.
        learnt: see :class:`Pack`.
    """
    prompts = prefixes.select(np.array([piece.query for piece in pieces]))
    whole = prompts.lengths
    if kept is None:
        kept = np.zeros(len(pieces), dtype=bool)
    slots = np.concatenate([np.arange(start, stop) for _, start, stop in pieces])
    texts = table.rows.select(codes[slots])
    # Texts in the order of the pack: a prompt, its candidates, the next prompt, ...
    counts = np.array([stop - start for _, start, stop in pieces])
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = np.arange(len(slots)) + np.repeat(np.arange(1, len(pieces) + 1), counts)
    lengths = np.empty(len(slots) + len(pieces), dtype=np.int64)
    lengths[places] = texts.lengths
    is_prompt = np.ones(len(lengths), dtype=bool)
    is_prompt[places] = False
    lengths[is_prompt] = np.where(kept, 0, whole)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    in_prompt = np.repeat(is_prompt, lengths)
    tokens = np.empty(starts[-1], dtype=np.int64)
    tokens[in_prompt] = prompts.items[np.repeat(~kept, whole)]
    tokens[~in_prompt] = texts.items
    offsets = np.zeros(len(lengths), dtype=np.int64)
    offsets[places] = np.repeat(whole, counts)
    owners = np.full(len(lengths), -1, dtype=np.int64)
    owners[places] = np.arange(len(slots))
    before = np.cumsum(np.where(kept, learnt + whole, 0))
    keys = lengths.copy()
    keys[is_prompt] += np.where(kept, 0, learnt)
    own = np.stack([np.cumsum(keys) - keys, np.cumsum(keys)], axis=1) + before[-1]
    sight = own[is_prompt]
    sight[kept] = np.stack([before - whole - learnt, before], axis=1)[kept]
    seen = np.zeros_like(own)
    seen[places] = np.repeat(sight, counts, axis=0)
    return Pack(
        tokens=tokens,
        positions=np.arange(starts[-1]) + np.repeat(offsets - starts[:-1], lengths),
        types=(~in_prompt).astype(np.int64),
        owners=np.repeat(owners, lengths),
        blocks=tuple(
            Block(int(prompt), _chunks(texts.lengths[start : start + count]), bool(absent))
            for prompt, start, count, absent in zip(whole, first, counts, kept, strict=True)
        ),
        heads=starts[places],
        ends=starts[places + 1] - 1,
        asks=starts,
        own=own,
        seen=seen,
        learnt=learnt,
    )


def pack_pairs(pairs: Pairs, learnt: int = 0) -> Pack:
    """The same pairs end to end without padding: each is one text behind an empty, kept prompt."""
    place = np.arange(pairs.tokens.shape[1])
    real = place < pairs.lengths[:, None]
    asks = np.concatenate([[0], np.cumsum(pairs.lengths)])
    own = np.stack([asks[:-1], asks[1:]], axis=1)
    return Pack(
        tokens=pairs.tokens[real],
        positions=np.broadcast_to(place, real.shape)[real],
        types=pairs.types[real],
        owners=pairs.owners[real],
        blocks=(Block(0, _chunks(pairs.lengths), kept=True),),
        heads=asks[:-1] + pairs.heads,
        ends=asks[1:] - 1,
        asks=asks,
        own=own + learnt,
        seen=np.tile(np.array([0, learnt]), (len(own), 1)),
        learnt=learnt,
    )


def _chunks(lengths: NDArray[np.int64]) -> tuple[int, ...]:
    """Tokens of each chunk: candidates in order, at most :data:`CHUNK_TOKENS` a chunk or one."""
    chunks = [0]
    for length in lengths.tolist():
        if chunks[-1] and chunks[-1] + length > CHUNK_TOKENS:
            chunks.append(0)
        chunks[-1] += length
    return tuple(chunks)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Prompt and candidate side by side, padded: what a plain forward pass reads.

    Attributes:
        tokens: (n, L) int64 token ids, padding at the end.
        types: (n, L) int64, 0 on the prefix and 1 behind it.
        prefix_lengths: (n,) int64 tokens of the prefix.
        lengths: (n,) int64 tokens in all.
        one_way: the prefix may not look at the candidate, whose score is read at its own [CLS];
            otherwise the candidate has no [CLS] and the score is read at the pair's.
        whole: means are taken of all of a pair's tokens, not of the candidate's only.
    """

    tokens: NDArray[np.int64]
    types: NDArray[np.int64]
    prefix_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]
    one_way: bool
    whole: bool = False

    @property
    def heads(self) -> NDArray[np.int64]:
        """(n,) int64, the token at which each score is read."""
        return self.prefix_lengths if self.one_way else np.zeros_like(self.prefix_lengths)

    @property
    def owners(self) -> NDArray[np.int64]:
        """(n, L) int64, the pair on the tokens that a mean is taken of, -1 elsewhere."""
        place = np.arange(self.tokens.shape[1])
        start = np.zeros_like(self.lengths) if self.whole else self.prefix_lengths
        mine = (place >= start[:, None]) & (place < self.lengths[:, None])
        return np.where(mine, np.arange(len(mine))[:, None], -1)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n, L, L) bool, which token (row) may look at which (column)."""
        place = np.arange(self.tokens.shape[1])
        real = place < self.lengths[:, None]
        seen = np.broadcast_to(real[:, None, :], (*self.tokens.shape, self.tokens.shape[1]))
        if not self.one_way:
            return seen
        prefix = place < self.prefix_lengths[:, None]
        return seen & (prefix[:, None, :] | ~prefix[:, :, None])


def pair(
    prefixes: Ragged,
    rows: NDArray[np.int64],
    codes: NDArray[np.int32],
    table: TokenTable,
    *,
    one_way: bool,
    whole: bool = False,
) -> Pairs:
    """Lay out pairs of a prefix ``rows[i]`` and the candidate ``codes[i]``.

    Args:
        prefixes: B rows of token ids.
        rows: (n,) the query of each pair.
        codes: (n,) the item of each pair.
        table: the token ids of the catalogue.
        one_way: see :class:`Pairs`.
        whole: see :class:`Pairs`.
    """
    first, texts = prefixes.select(rows), table.rows.select(codes)
    joint = () if one_way else table.frame.joint
    dropped = 0 if one_way else len(table.frame.first)
    lengths = first.lengths + texts.lengths - dropped + len(joint)
    tokens = np.zeros((len(rows), int(lengths.max(initial=0))), dtype=np.int64)
    types = np.zeros_like(tokens)
    for i, length in enumerate(lengths):
        middle = int(first.lengths[i])
        tokens[i, :middle] = first.items[first.indptr[i] : first.indptr[i + 1]]
        start = middle + len(joint)
        tokens[i, middle:start] = joint
        tokens[i, start:length] = texts.items[texts.indptr[i] + dropped : texts.indptr[i + 1]]
        types[i, middle:length] = 1
    return Pairs(tokens, types, first.lengths, lengths, one_way, whole and not one_way)
