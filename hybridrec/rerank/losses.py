"""What a fine-tuning makes small: losses of lists of scores against shares of a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LOSSES"]


def listwise(scores: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of a list's softmax and its labels, the mean over lists.

    Args:
        scores: (b, n) float32, -inf on padding.
        labels: (b, n) float32, each row sums to 1, 0 on padding.
    """
    # A padded score is -inf and its label 0: their product is left out, not NaN.
    log_shares = scores.log_softmax(dim=1).masked_fill(torch.isneginf(scores), 0.0)
    return -(labels * log_shares).sum(dim=1).mean()


def pairwise(scores: Tensor, labels: Tensor) -> Tensor:
    """The logistic loss of each pair that should be in an order, the mean over lists.

    A pair counts as much as its labels differ (RankNet, with the weights of a label's shares); a
    list without such a pair counts nothing. For arguments see :func:`listwise`.
    """
    real = ~torch.isneginf(scores)
    shown = scores.masked_fill(~real, 0.0)
    weights = (labels[:, :, None] - labels[:, None, :]).clamp(min=0.0)
    weights = weights * (real[:, :, None] & real[:, None, :])
    behind = F.softplus(shown[:, None, :] - shown[:, :, None])
    of_lists = (weights * behind).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1e-9)
    return of_lists.mean()


def pointwise(scores: Tensor, labels: Tensor) -> Tensor:
    """Each candidate's binary cross-entropy, the mean over a list's candidates, then over lists.

    The largest label of a list stands for certainty, the others for their share of it. For
    arguments see :func:`listwise`.
    """
    real = ~torch.isneginf(scores)
    shown = scores.masked_fill(~real, 0.0)
    wanted = labels / labels.amax(dim=1, keepdim=True)
    of_each = F.binary_cross_entropy_with_logits(shown, wanted, reduction="none") * real
    return (of_each.sum(dim=1) / real.sum(dim=1)).mean()


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "listwise": listwise,
    "pairwise": pairwise,
    "pointwise": pointwise,
}
