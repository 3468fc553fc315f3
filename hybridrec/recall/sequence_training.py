"""Training of :class:`~hybridrec.recall.sequence_network.SequenceNetwork`: loss, steps, schedule.

Shapes: N events that a step predicts from, V items with events, D width.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hybridrec.bars import track
from hybridrec.checks import FitError, resolved_device
from hybridrec.recall.sequence_network import (
    Dropout,
    as_tensors,
    fresh,
    initialised,
    weights_of,
)
from hybridrec.recall.sequence_windows import grouped, steps, training_windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hybridrec.ragged import Mask, Ragged, Scores
    from hybridrec.recall.sequence_config import SequenceConfig
    from hybridrec.recall.sequence_network import SequenceNetwork

__all__ = ["Trainer", "cross_entropy", "fitted_weights"]

_CELLS = 1 << 20
"""Scores held at once by the loss, which stay in the cache that way."""
_WARMUP = 0.05
"""Share of the steps over which the rate rises."""
_MAX_GRADIENT = 1.0


class _CrossEntropy(torch.autograd.Function):
    """Mean of log sum_v exp(u.w_v) - u.w_target over the rows u of ``users`` (N, D).

    The (N, V) scores are made a few rows at a time and used for the loss and for both gradients
    while they are in cache: three products of N V D, the least there can be, and no memory of the
    size of the scores. ``users`` and ``items`` (V, D) must keep u.w so small that exp is finite.
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor, low: bool) -> Tensor:
        """The loss; both gradients are made here and kept for :meth:`backward`."""
        kind = torch.bfloat16 if low else torch.float32
        w = items.to(kind)
        of_users = torch.empty_like(users)
        of_items = torch.zeros_like(items)
        total = users.new_zeros(())
        size = max(32, _CELLS // len(items))
        for start in range(0, len(users), size):
            rows = slice(start, start + size)
            u = users[rows]
            scores = torch.mm(u.to(kind), w.T).exp_()
            sums = scores.sum(1, keepdim=True, dtype=torch.float32)
            total += sums.log_().sum()
            sums.exp_()
            of_users[rows] = torch.mm(scores, w).float().div_(sums)
            of_items += torch.mm(scores.T, (u / sums).to(kind)).float()
        wanted = items[targets]
        total -= (users * wanted).sum()
        of_users -= wanted
        of_items.index_add_(0, targets, users, alpha=-1.0)
        ctx.save_for_backward(of_users, of_items)
        return total / len(users)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of ``users`` and ``items``."""
        of_users, of_items = ctx.saved_tensors
        scale = gradients[0] / len(of_users)
        return of_users * scale, of_items * scale, None, None


def cross_entropy(users: Tensor, items: Tensor, targets: Tensor, *, low: bool = False) -> Tensor:
    """Mean cross-entropy of the softmax over all ``items`` (V, D) for ``users`` (N, D), a scalar.

    Args:
        users: times the items' vectors they make scores of at most 50 or so: exp must be finite.
        items: the whole catalogue.
        targets: (N,) int64, what followed.
        low: multiply in bfloat16; sums and gradients are float32 all the same.
    """
    found: Tensor = _CrossEntropy.apply(users, items, targets, low)  # type: ignore[no-untyped-call]
    return found


class Trainer:
    """A network in training, epoch by epoch.

    Args:
        network: trained in place.
        texts: (V, E) embeddings of the items' texts, or None.
        histories: codes in [0, V).
        config: rates and sizes.
        epochs: how many there will be, for the schedule.
        rate: the highest learning rate.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        network: SequenceNetwork,
        texts: Scores | None,
        histories: Ragged,
        config: SequenceConfig,
        *,
        epochs: int,
        rate: float,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).train()
        self._texts = None if texts is None else torch.tensor(texts, device=device)
        self._items = histories.items
        self._windows = training_windows(histories, config.max_length)
        self._config, self._device = config, device
        self._epochs, self._rate = epochs, rate
        self.order = np.random.default_rng(config.seed)
        self.noise = torch.Generator(device).manual_seed(config.seed)
        self._drop = Dropout(config.dropout, self.noise)
        self._low = config.precision == "bf16" or (
            config.precision == "auto" and multiplies_bf16(device)
        )
        matrices = [w for w in network.parameters() if w.ndim > 1]
        others = [w for w in network.parameters() if w.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(0.9, 0.98),
        )
        self.done = 0.0

    def epoch(self) -> float:
        """Once through every window; the mean loss."""
        starts, sizes = self._windows
        parts = list(steps(sizes, self._config.batch_size, self.order))
        total, first = 0.0, self.done
        for number, part in enumerate(parts):
            self.done = first + number / len(parts)
            self._set_rate()
            total += self._step(starts[part], sizes[part])
        self.done = first + 1.0
        return total / len(parts)

    def _set_rate(self) -> None:
        """Up over the first steps, then down along a cosine to nothing."""
        done = self.done / self._epochs
        up = min(1.0, (done + 1e-3) / _WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * up * 0.5 * (1.0 + math.cos(math.pi * done))

    def _step(self, starts: Any, sizes: Any) -> float:
        network = self.network
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._low):
            items = network.items(self._texts).float()
            users, targets = [], []
            for group in grouped(self._items, starts, sizes):
                codes, lengths = (part.to(self._device) for part in as_tensors(group))
                states = network.states(items, codes[:, :-1], self._drop)
                there = torch.arange(states.shape[1], device=self._device) < lengths[:, None] - 1
                users.append(states.float()[there])
                targets.append(codes[:, 1:][there].long())
        loss = cross_entropy(
            torch.cat(users) / self._config.temperature,
            normalize(items, dim=-1),
            torch.cat(targets),
            low=self._low,
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
        self.optimizer.step()
        return float(loss.detach())


def fitted_weights(
    histories: Ragged,
    texts: Scores | None,
    config: SequenceConfig,
    known: tuple[Mapping[str, Scores], Mask] | None,
    *,
    n_items: int,
    epochs: int,
    rate: float,
    device: str,
    threads: int,
) -> dict[str, Scores]:
    """The weights after ``epochs`` on ``histories``, as :func:`weights_of` names them.

    Only items with events are told apart from one another: to the softmax an item without would
    be a wrong answer every time, and its place among texts would be learnt to be a bad one.

    Args:
        histories: rows of codes in [0, n_items), some of them longer than 1.
        texts: (n_items, E) embeddings of the items' texts, or None.
        config: the network and how it is trained.
        known: weights to start from, of a catalogue that is not larger, and which of its items
            had events.
        n_items: I.
        epochs: times through all events.
        rate: the highest learning rate.
        device: "cpu", "cuda" or "auto".
        threads: of torch.

    Raises:
        FitError: the loss is not finite.
        InputError: a device that is not there.
    """
    device = resolved_device(config.name, device, cuda=torch.cuda.is_available())
    there = np.bincount(histories.items, minlength=n_items) > 0
    place = np.cumsum(there) - 1
    own = replace(histories, items=place[histories.items].astype(np.int32))
    own_texts = None if texts is None else texts[there]
    network = fresh(int(there.sum()), 0 if texts is None else texts.shape[1], config)
    initialised(network, torch.Generator().manual_seed(config.seed))
    if known is not None:
        _start_from(network, *known, there)
    with _threads(threads):
        trainer = Trainer(network, own_texts, own, config, epochs=epochs, rate=rate, device=device)
        for epoch in track(range(epochs), config.name, epochs):
            loss = trainer.epoch()
            if not math.isfinite(loss):
                raise FitError(
                    f"{config.name!r}: the loss of epoch {epoch + 1} is {loss}; lower "
                    f"learning_rate (now {config.learning_rate:g})"
                )
    weights = weights_of(network)
    ids = np.zeros((n_items, config.width), np.float32)
    if known is not None:
        ids[: len(known[1])] = known[0]["ids"]
    ids[there] = weights["ids"]
    return {**weights, "ids": ids}


def _start_from(
    network: SequenceNetwork, weights: Mapping[str, Scores], met: Mask, there: Mask
) -> None:
    """Give ``network``, whose items are those ``there`` (I,), the weights of an older one.

    Items that the older one has not ``met`` keep the embedding they start with.
    """
    both = np.zeros(len(there), dtype=np.bool_)
    both[: len(met)] = met
    ids = network.ids.detach().numpy().copy()
    ids[both[there]] = weights["ids"][(both & there)[: len(met)]]
    new = {**weights, "ids": ids}
    network.load_state_dict(
        {name.replace("__", "."): torch.tensor(weight) for name, weight in new.items()}
    )


def multiplies_bf16(device: str) -> bool:
    """Whether ``device`` has instructions for bfloat16 products: without them it is slower."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let torch use ``n`` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
