"""Where the texts of a pack stand, and what their tokens look at in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.rerank.learnt_states import LearntStates
    from hybridrec.rerank.packing import Pack

__all__ = ["Layout", "States"]

States = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of a prefix in every layer, each (P, key heads, width) float32."""


class Layout:
    """Where the texts of a pack stand, and the states of prefixes that were kept.

    Serves the layers of one forward pass in their order.

    Args:
        pack: the pack.
        device: of the model.
        causal: whether a token looks at none behind it.
        kept: a prefix's states for each block, None where the pack has its tokens; none at all
            stands for None everywhere.
        keep: whether :attr:`taken` is wanted.
    """

    def __init__(
        self,
        pack: Pack,
        device: torch.device,
        causal: bool,
        *,
        kept: Sequence[States | None] = (),
        keep: bool = False,
    ) -> None:
        self.pack = pack
        self.causal = causal
        self.device = device
        self.farthest = int(pack.positions.max(initial=0))
        self._kept = [states for states in kept if states is not None]
        self._keep = keep
        self._taken: list[list[tuple[Tensor, Tensor]]] = [[] for _ in pack.blocks]
        self._layer = 0
        self._masks: dict[int, list[Tensor | None]] = {}

    @property
    def taken(self) -> list[States | None]:
        """The states of the prefix of each block that the pack has tokens of, after the pass."""
        return [tuple(layers) or None for layers in self._taken]

    def seen(
        self, key: Tensor, value: Tensor, learnt: LearntStates | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that the tokens look at in the next layer, as the pack counts its keys.

        Args:
            key: (T, key heads, width) of the pack's own tokens, and so ``value``.
            value: see ``key``.
            learnt: the layer's, as many as the pack has room for before each prefix.

        Returns:
            Keys and values that go with the tokens, (J, key heads, width), and those of the kept
            prefixes, (P, key heads, width).
        """
        if self._keep:
            start = 0
            for block, layers in zip(self.pack.blocks, self._taken, strict=True):
                if not block.kept:
                    stop = start + block.prefix
                    layers.append((key[start:stop].clone(), value[start:stop].clone()))
                start += block.tokens
        layer = [states[self._layer] for states in self._kept] or [(key[:0], value[:0])]
        self._layer += 1
        more = (None, None) if learnt is None else (learnt.keys, learnt.values)
        states = zip((key, value), zip(*layer, strict=True), more, strict=True)
        (k, kept_k), (v, kept_v) = (self._led(*of) for of in states)
        return k, v, kept_k, kept_v

    def masks(self, window: int) -> list[Tensor | None]:
        """What each part of the pack sees: an additive mask (n, L), None where it sees all.

        The parts are each block's prefix, unless it was kept, and then its chunks. Of what they
        look at, learnt states come first.
        """
        if window not in self._masks:
            asks = self.pack.asks
            texts = np.repeat(np.arange(len(asks) - 1), np.diff(asks))
            owners = torch.from_numpy(texts).to(self.device)
            places = torch.from_numpy(self.pack.positions).to(self.device)
            found, start = [], 0
            for block in self.pack.blocks:
                prefix = torch.arange(block.prefix, device=self.device)
                if not block.kept:
                    found.append(self._hidden(prefix, prefix, None, window))
                    start += block.prefix
                for size in block.chunks:
                    own, at = owners[start : start + size], places[start : start + size]
                    open_ = torch.zeros(size, block.prefix, dtype=torch.bool, device=self.device)
                    others = torch.cat([open_, own[:, None] != own], dim=1)
                    found.append(self._hidden(at, torch.cat([prefix, at]), others, window))
                    start += size
            self._masks[window] = found
        return self._masks[window]

    def _led(
        self, states: Tensor, kept: Sequence[Tensor], learnt: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Those of the pack's tokens and of kept prefixes, ``learnt`` before each prefix."""
        if learnt is not None:
            blocks = self.pack.blocks
            parts = torch.split(states, [block.tokens for block in blocks])
            led = [
                [part] if b.kept else [learnt, part] for b, part in zip(blocks, parts, strict=True)
            ]
            states = torch.cat([part for parts in led for part in parts])
            if any(block.kept for block in blocks):
                kept = [part for own in kept for part in (learnt, own)]
        return states, kept[0] if len(kept) == 1 else torch.cat([*kept])

    def _hidden(
        self, asking: Tensor, places: Tensor, others: Tensor | None, window: int
    ) -> Tensor | None:
        """-inf where a token at ``asking`` may not look at ``places``; ``others`` already not."""
        hidden = [] if others is None else [others]
        behind = places - asking[:, None]
        if self.causal:
            hidden.append(behind > 0)
        if window:
            hidden.append(behind.abs() >= window)
        if not hidden:
            return None
        mask = torch.zeros(len(asking), len(places), device=asking.device)
        mask.masked_fill_(torch.stack(hidden).any(dim=0), float("-inf"))
        return F.pad(mask, (self.pack.learnt, 0))
