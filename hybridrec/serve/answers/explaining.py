"""Why an item is in an answer: what every stage said of it, and which events speak for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.candidates import Candidates
from hybridrec.ragged import Ragged
from hybridrec.serve.answers.asked import queries
from hybridrec.serve.answers.asking import Reasons

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.ragged import Items, Scores
    from hybridrec.ranking import Ranking
    from hybridrec.serve.answers.asked import Asked
    from hybridrec.serve.answers.asking import Degradation, Id
    from hybridrec.serve.versions.loaded import Loaded

FUSED = "fused"
"""The name of the score of the order before the reranker, among the signals."""
_EVENTS = 20
"""The newest events that are left out in turn."""
_SHOWN = 5
"""Events shown for an item at most."""


class Explaining:
    """The reasons for one row of a ranking.

    Args:
        loaded: the model that ranked.
        one: who asked for the row.
        ranking: what the stages made of it and its neighbours.
        row: which.
        degraded: what it lacks for want of time.
    """

    def __init__(
        self,
        loaded: Loaded,
        one: Asked,
        ranking: Ranking,
        row: int,
        degraded: Degradation | None,
    ) -> None:
        self._loaded, self._one, self._degraded = loaded, one, degraded
        self._told = bool(ranking.told[row])
        self._reranked, self._newcomers = ranking.reranked[row], ranking.newcomers[row]
        self._served = ranking.answer.items[row]
        place = np.array([int(ranking.told[:row].sum())])
        self._recalled, self._ordered, self._head = (
            None if lists is None or not self._told else lists.select(place)
            for lists in (ranking.recalled, ranking.ordered, ranking.head)
        )

    def reasons(self, codes: Items) -> list[Reasons]:
        """Why each of ``codes`` (k,), which are the first of the answer, is in its place."""
        if self._ordered is None or self._recalled is None:
            return self._of_popular(codes)
        ranks = self._ranks(self._recalled, self._ordered)
        signals = self._signals(self._ordered) | self._of_newcomers()
        speaking = self._speaking(self._ordered)
        found, others = [], 0
        for place, code in enumerate(codes.tolist()):
            others += not self._newcomers[place]
            found.append(
                Reasons(
                    signals=signals.get(code, {}),
                    ranks={**ranks.get(code, {}), "answer": place + 1},
                    because=speaking.get(code, ()),
                    moved_by=self._moved(place, others, ranks.get(code, {})),
                )
            )
        return found

    def _of_popular(self, codes: Items) -> list[Reasons]:
        """The reasons where nobody's history was gone by."""
        popularity = self._loaded.pipeline.popularity
        asked = queries(self._loaded, [self._one], told=False)
        scores = popularity.score(asked, codes[None])[0]
        moved = ("popularity",) if self._degraded is None else ("popularity", "degraded")
        return [
            Reasons({popularity.name: score}, {"answer": place + 1}, (), moved)
            for place, score in enumerate(scores.tolist())
        ]

    def _ranks(self, recalled: Candidates, ordered: Candidates) -> dict[int, dict[str, int]]:
        """The place that each stage gave each item."""
        stages = {"recall": recalled}
        if self._one.ask.fuse and self._loaded.pipeline.fusion is not None:
            stages["fused"] = ordered
        if self._head is not None:
            stages["reranked"] = self._loaded.pipeline.reranked_alone(self._head)
        found: dict[int, dict[str, int]] = {}
        for name, lists in stages.items():
            for place, code in enumerate(lists.items[0][lists.valid[0]].tolist()):
                found.setdefault(code, {})[name] = place + 1
        return found

    def _signals(self, ordered: Candidates) -> dict[int, dict[str, float]]:
        """What every scorer said of each candidate."""
        pipeline = self._loaded.pipeline
        columns = dict(ordered.signals)
        if self._one.ask.fuse and pipeline.fusion is not None:
            columns[FUSED] = ordered.scores
        found = _by_item(ordered, columns)
        if self._head is not None and pipeline.reranker is not None:
            name = pipeline.reranker.name
            for code, said in _by_item(self._head, {name: self._head.signals[name]}).items():
                found[code] |= said
        return found

    def _newcomer_codes(self) -> Items:
        """Those of the answer that nobody has met, at their places."""
        codes: Items = self._served[self._newcomers & (self._served >= 0)]
        return codes

    def _of_newcomers(self) -> dict[int, dict[str, float]]:
        newcomers, codes = self._loaded.pipeline.newcomers, self._newcomer_codes()
        if newcomers is None or not len(codes):
            return {}
        said = newcomers.score(queries(self._loaded, [self._one]), codes[None])
        return _by_item(said, {**said.signals, FUSED: said.scores})

    def _speaking(self, ordered: Candidates) -> dict[int, tuple[tuple[Id, float], ...]]:
        """For each item the events without which it would score less, and their shares of that.

        The score is that of the order before the reranker, of the same candidates: reading them
        again without each event would take the language model as many times as there are events.
        """
        history = self._one.history
        left_out = np.arange(len(history) - 1, max(-1, len(history) - 1 - _EVENTS), -1)
        asked = queries(self._loaded, [self._one] * (len(left_out) + 1))
        rows = [history, *(np.delete(history, event) for event in left_out)]
        asked = replace(asked, histories=Ragged.from_rows(rows))
        found: dict[int, tuple[tuple[Id, float], ...]] = {}
        lists = [(ordered.items[0][ordered.valid[0]], self._orders)]
        if len(self._newcomer_codes()):
            lists.append((self._newcomer_codes(), self._orders_newcomers))
        for codes, scored in lists:
            scores = scored(asked, np.tile(codes, (len(rows), 1))).astype(np.float64)
            losses = np.maximum(scores[0] - scores[1:], 0.0)  # (events, K)
            for column, code in enumerate(codes.tolist()):
                found[code] = self._shares(history[left_out], losses[:, column])
        return found

    def _shares(self, events: Items, losses: NDArray[np.float64]) -> tuple[tuple[Id, float], ...]:
        """The items of ``events`` by their share of the losses; one met twice counts once."""
        total = float(losses.sum())
        if total <= 0:
            return ()
        shares: dict[int, float] = {}
        for code, loss in zip(events.tolist(), losses.tolist(), strict=True):
            shares[code] = shares.get(code, 0.0) + loss / total
        most = sorted(shares.items(), key=lambda pair: -pair[1])[:_SHOWN]
        return tuple((self._loaded.item_id(code), share) for code, share in most if share > 0)

    def _orders(self, asked: Queries, items: Items) -> Scores:
        """What orders candidates before the reranker does; without a fusion the recallers' sum."""
        pipeline = self._loaded.pipeline
        signals = pipeline.blend.signals(asked, items)
        total = sum(signals[recaller.name] for recaller in pipeline.blend.recallers)
        candidates = Candidates(items, np.asarray(total, dtype=np.float32), signals)
        if pipeline.fusion is None or not self._one.ask.fuse:
            return candidates.scores
        return pipeline.fusion.score(candidates)

    def _orders_newcomers(self, asked: Queries, items: Items) -> Scores:
        newcomers = self._loaded.pipeline.newcomers
        if newcomers is None:
            raise ValueError("this pipeline has no newcomers")
        return newcomers.score(asked, items).scores

    def _moved(self, place: int, others: int, ranks: Mapping[str, int]) -> tuple[str, ...]:
        """The rules that put an item at ``place``, the ``others``-th that is no newcomer."""
        if self._newcomers[place]:
            return ("newcomers",)
        before = ranks.get("fused", ranks.get("recall", others))
        moved = []
        if self._head is not None and before != others:
            moved.append("reranker")
        wanted = before <= self._loaded.pipeline.rerank_depth
        if self._degraded is not None and wanted and not self._reranked[place]:
            moved.append("degraded")
        return tuple(moved)


def _by_item(lists: Candidates, columns: Mapping[str, Scores]) -> dict[int, dict[str, float]]:
    """The values of ``columns`` for each item of the one list in ``lists``."""
    valid = lists.valid[0]
    values = {name: column[0][valid].tolist() for name, column in columns.items()}
    return {
        code: {name: said[place] for name, said in values.items()}
        for place, code in enumerate(lists.items[0][valid].tolist())
    }
