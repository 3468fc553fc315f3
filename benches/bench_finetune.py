"""Fine-tuning of the cross-encoder against sentence-transformers' CrossEncoderTrainer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import scaled, timed
from rerank_peers import fastest, sentence_transformer
from rerank_scene import Scene, cross_encoder, scene

import hybridrec as hr

NEGATIVES, BATCH = 15, 8
LISTS = scaled(smoke=2, default=16, full=32)
PAIRS = scaled(smoke=1, default=3, full=5)
PARTS = scaled(smoke=(8,), default=(8, 32), full=(8, 16, 32, 128))
"""Pairs of one forward pass of the peer's loss: a setting of its own, the gradient is the same."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("short")
    return scene(folder, history=13, words=10, candidates=1 + NEGATIVES, own_words=10)


def trainer(peer: Any, data: Any, folder: Path, *, bf16: bool, part: int) -> Any:
    """One epoch of ListNet, the listwise softmax, with the settings of our own fine-tuning."""
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    settings = CrossEncoderTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-4,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    loss = losses.ListNetLoss(peer, mini_batch_size=part)
    return CrossEncoderTrainer(model=peer, args=settings, train_dataset=data, loss=loss)


def peer_lists(scene: Scene, lists: int) -> Any:
    """The same lists as texts; each has its positive at another place, as ours."""
    datasets = pytest.importorskip("datasets", reason="pip install -r benches/requirements.txt")
    labels = [[float(place == row % len(scene.texts)) for place in range(len(scene.texts))]
              for row in range(lists)]  # fmt: skip
    rows = {"query": [scene.prompt] * lists, "docs": [scene.texts] * lists, "labels": labels}
    return datasets.Dataset.from_dict(rows)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fine_tuning(duel: Any, short: Scene, tmp_path: Path, precision: str) -> None:
    tuning = {"epochs": 1, "batch_size": BATCH, "negatives": NEGATIVES, "recall_share": 0.0}
    learner = cross_encoder(short.folder, short.settings, precision=precision, finetuning=tuning)
    learner.prepare(short.catalogue)
    queries = short.queries.select(np.zeros(LISTS, int))
    items = np.repeat(short.items, LISTS, axis=0)
    falling = np.broadcast_to(-np.arange(items.shape[1], dtype=np.float32), items.shape)
    candidates = hr.Candidates(items, falling)
    targets = items[np.arange(LISTS), np.arange(LISTS) % items.shape[1]]
    peer, bf16 = sentence_transformer(short.folder), precision == "bf16"

    def train(lists: int, part: int) -> Any:
        data = peer_lists(short, lists)
        return trainer(peer, data, tmp_path, bf16=bf16, part=part).train()

    part, _ = fastest(partial(train, min(BATCH, LISTS)), PARTS)

    def check(mine: Any, other: Any) -> str:
        steps = math.ceil(LISTS / BATCH)
        assert (mine.examples, mine.steps, other.global_step) == (LISTS, steps, steps)
        losses = (*mine.losses, other.training_loss)
        assert np.isfinite(losses).all()
        # Softmax over 16 that hardly differ: both start near log 16, or one does something else.
        assert all(0 < loss < 2 * math.log(1 + NEGATIVES) for loss in losses), losses
        return f"{steps} steps each, mean losses {losses[0]:.3f} and {losses[-1]:.3f}"

    duel(
        "fine-tuning",
        ("CrossEncoder.finetune", timed(lambda: learner.finetune(queries, candidates, targets))),
        ("CrossEncoderTrainer, ListNetLoss", timed(partial(train, LISTS, part))),
        check=check,
        data=f"{LISTS} lists of 1 + {NEGATIVES}: {short.size}",
        parameters=f"MiniLM-L6 384, same weights, {precision} of both, fused AdamW, listwise "
        f"softmax, batches of {BATCH} lists, one-way mask against full attention, the peer's "
        f"forward passes of {part} pairs",
        unit="list",
        per=LISTS,
        pairs=PAIRS,
    )
