"""What each step of a fine-tuning learns from: lists, labels and histories; numpy only.

Every draw follows from (seed, epoch, row), whatever was drawn before it: a fine-tuning that goes on
after a kill, or is spread over several processes, draws what it would have drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hybridrec.ragged import Items, Scores
    from hybridrec.rerank.finetune_config import FineTuning

__all__ = ["Draws", "check_targets", "mean_ndcg", "sample_places", "shortened", "soft_labels"]


class Draws:
    """The examples of a fine-tuning in the order and the form in which each epoch meets them.

    Args:
        items: (B, K) candidates in the order of the stages before, -1 padded.
        targets: (B,) the item that each list should put first.
        histories: B rows, oldest event first.
        history: newest events of a history that count.
        tuning: negatives, recall share, and what is done to histories.
        seed: of all draws.
        tokens: (rows (b,), lists (b, n)) -> (b,) tokens that a forward pass reads.

    Attributes:
        epoch: from 0; whoever draws sets it.
    """

    def __init__(
        self,
        items: Items,
        targets: Items,
        histories: Ragged,
        *,
        history: int,
        tuning: FineTuning,
        seed: int,
        tokens: Callable[[NDArray[np.int64], Items], NDArray[np.int64]],
    ) -> None:
        self.items = items
        self.targets = targets
        self.histories = histories
        self.epoch = 0
        self._history = history
        self._tuning = tuning
        self._seed = seed
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        """The rows in the order of this epoch: what torch calls a sampler."""
        rng = np.random.default_rng((self._seed, self.epoch))
        return iter(rng.permutation(len(self)).tolist())

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """What one forward pass reads: what torch calls a collator.

        Returns:
            ``rows`` (b,); ``lists`` (b, 1 + negatives) items, the target first, -1 padded;
            ``labels`` of the same shape, float32; ``histories``, b rows, or None where they are
            what they were.
        """
        tuning = self._tuning
        lists, places, histories = [], [], []
        for row in rows:
            rng = np.random.default_rng((self._seed, self.epoch, row))
            items, target = self.items[[row]], self.targets[[row]]
            drawn = sample_places(items, target, tuning.negatives, rng)[0]
            places.append(drawn)
            lists.append(np.where(drawn >= 0, items[0, drawn], -1))
            if tuning.drop or tuning.crop:
                start, stop = self.histories.indptr[row : row + 2]
                newest = self.histories.items[max(start, stop - self._history) : stop]
                histories.append(shortened(newest, tuning.drop, tuning.crop, rng))
        return {
            "rows": np.array(rows, dtype=np.int64),
            "lists": np.array(lists, dtype=np.int32),
            "labels": soft_labels(np.array(places), tuning.recall_share),
            "histories": Ragged.from_rows(histories) if histories else None,
        }

    def parts(self, batch: dict[str, Any], most: int) -> list[dict[str, Any]]:
        """A batch in parts of at most ``most`` tokens, one list at least, in its order.

        Each has a ``share``, that of the batch's lists which it holds.
        """
        tokens = self._tokens(batch["rows"], batch["lists"])
        starts, held = [0], 0
        for i, n in enumerate(tokens.tolist()):
            held += n
            if held > most and i > starts[-1]:
                starts.append(i)
                held = n
        found = []
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            part: dict[str, Any] = {"share": (stop - start) / len(tokens)}
            for name in ("rows", "lists", "labels"):
                part[name] = batch[name][start:stop]
            histories = batch["histories"]
            rows = np.arange(start, stop)
            part["histories"] = None if histories is None else histories.select(rows)
            found.append(part)
        return found


def check_targets(items: Items, targets: NDArray[Any]) -> Items:
    """``targets`` as (B,) int32 where each stands in its row of ``items`` (B, K).

    Raises:
        InputError: another shape, or a list without its target; names the first.
    """
    targets = np.ascontiguousarray(targets, dtype=np.int32)
    if targets.shape != (len(items),):
        raise InputError(f"targets has shape {targets.shape}; wanted ({len(items)},)")
    missed = np.flatnonzero(~((items == targets[:, None]) & (items >= 0)).any(axis=1))
    if missed.size:
        raise InputError(
            f"targets[{missed[0]}] is {targets[missed[0]]}, which its list of candidates lacks, as "
            f"do {missed.size - 1} others: drop these rows before fine-tuning, and count them"
        )
    return targets


def sample_places(
    items: Items, targets: Items, negatives: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(B, 1 + negatives) places in ``items``: each target's, then others without repeats.

    Rows with fewer than ``negatives`` other candidates are padded with -1.
    """
    keys = rng.random(items.shape)
    keys[(items < 0) | (items == targets[:, None])] = np.inf
    width = min(negatives, items.shape[1])
    order = np.argsort(keys, axis=1, kind="stable")[:, :width]
    places = np.full((len(items), 1 + negatives), -1, dtype=np.int64)
    places[:, 0] = (items == targets[:, None]).argmax(axis=1)
    drawn = np.isfinite(np.take_along_axis(keys, order, axis=1))
    places[:, 1 : 1 + width] = np.where(drawn, order, -1)
    return places


def soft_labels(places: NDArray[np.int64], recall_share: float) -> Scores:
    """(B, n) float32 shares that the softmax should have; each row sums to 1, 0 on padding.

    ``1 - recall_share`` goes to the first column, the item that was chosen; the rest follows the
    order of the list, in proportion to 1 / (place + 2). One chosen item a list is a faint signal
    against negatives that recall already thinks alike: on it alone the encoder settles on the same
    score for everything (docs/negative-results.md). The order of the list tells something of every
    candidate (distillation of a ranking: Tang & Wang, KDD 2018).
    """
    shares = np.where(places >= 0, 1.0 / (places + 2.0), 0.0)
    shares *= recall_share / shares.sum(axis=1, keepdims=True)
    shares[:, 0] += 1.0 - recall_share
    return shares.astype(np.float32)


def shortened(events: Items, drop: float, crop: float, rng: np.random.Generator) -> Items:
    """``events`` without some of them, in their order; one stays if there was one.

    Args:
        events: (n,) item codes, oldest first.
        drop: the chance of each event to be left out.
        crop: share of the events that is cut off: a stretch of the others stays, at a place that is
            drawn (the crop of CL4SRec, arXiv 2010.14395).
        rng: where the draws come from; as many numbers whatever the options.
    """
    place, kept = rng.random(), rng.random(len(events)) >= drop
    if not len(events):
        return events
    length = max(1, len(events) - int(crop * len(events)))
    start = int(place * (len(events) - length + 1))
    stretch = slice(start, start + length)
    if not kept[stretch].any():
        kept[start + length - 1] = True  # the newest says most
    return events[stretch][kept[stretch]]


def mean_ndcg(items: Items, scores: Scores, targets: Items, k: int = 10) -> float:
    """Mean NDCG@k of (B, K) lists with one relevant item each; ties go to the smaller item."""
    mine = items == targets[:, None]
    own = np.where(mine, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = (scores > own) | ((scores == own) & (items < targets[:, None]))
    rank = (ahead & (items >= 0)).sum(axis=1)
    gain = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)
    return float(gain.mean()) if len(gain) else 0.0
