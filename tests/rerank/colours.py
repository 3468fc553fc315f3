"""A rule that only the pair of history and candidate tells: the target has the history's colour."""

import numpy as np

from hybridrec.candidates import Candidates, Queries
from hybridrec.ragged import Ragged
from hybridrec.rerank.cross_encoder import CrossEncoder
from hybridrec.rerank.finetune_config import FineTuning

COLOURS, ANIMALS = ["red", "green", "blue"], ["cat", "dog", "bird"]
TEXTS = [f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS]


def colour_work(n, seed):
    """The target is the one candidate of the colour of the history."""
    rng = np.random.default_rng(seed)
    histories, rows, targets = [], [], []
    for _ in range(n):
        colour = rng.integers(3)
        own, other = 3 * colour + rng.permutation(3)[:2]
        wrong = rng.permutation([i for i in range(9) if i // 3 != colour])[:4]
        histories.append([own])
        rows.append(rng.permutation([other, *wrong]))
        targets.append(other)
    items = np.array(rows, dtype=np.int32)
    queries = Queries(Ragged.from_rows(histories), len(TEXTS))
    flat = np.zeros(items.shape, np.float32)
    return queries, Candidates.ranked(items, flat), np.array(targets, dtype=np.int32)


def encoder(tiny_model, **settings):
    outer = {name: settings.pop(name) for name in ("mask", "seed") if name in settings}
    plain = {"negatives": 4, "epochs": 6, "batch_size": 8, "learning_rate": 3e-3}
    finetuning = FineTuning(**(plain | settings))
    return CrossEncoder(
        tiny_model, device="cpu", precision="fp32", finetuning=finetuning, **outer
    ).prepare(TEXTS)
