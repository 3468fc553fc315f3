"""The losses against slow, obvious ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.rerank.sampling import soft_labels


def softplus(x):
    return float(np.logaddexp(0.0, x))


def slow(name, scores, labels):
    of_lists = []
    for row, shares in zip(scores.astype(float), labels.astype(float), strict=True):
        real = [i for i in range(len(row)) if np.isfinite(row[i])]
        if name == "listwise":
            total = np.log(sum(np.exp(row[i]) for i in real))
            of_lists.append(-sum(shares[i] * (row[i] - total) for i in real))
        elif name == "pairwise":
            pairs = [(i, j) for i in real for j in real if shares[i] > shares[j]]
            counts = [shares[i] - shares[j] for i, j in pairs]
            losses = [softplus(row[j] - row[i]) for i, j in pairs]
            of_lists.append(np.dot(counts, losses) / sum(counts) if pairs else 0.0)
        else:
            wanted = shares / shares.max()
            losses = [
                wanted[i] * softplus(-row[i]) + (1 - wanted[i]) * softplus(row[i]) for i in real
            ]
            of_lists.append(np.mean(losses))
    return np.mean(of_lists)


@st.composite
def work(draw):
    n = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=n), min_size=1))
    scores = np.full((len(rows), n), -np.inf, np.float32)
    places = np.full((len(rows), n), -1)
    for row, values in enumerate(rows):
        scores[row, : len(values)] = values
        places[row, : len(values)] = np.random.default_rng(row).permutation(9)[: len(values)]
    return scores, soft_labels(places, draw(st.sampled_from([0.0, 0.5, 1.0])))


@pytest.mark.parametrize("name", ["listwise", "pairwise", "pointwise"])
@settings(deadline=None)
@given(work())
def test_losses_and_finite_gradients(name, made):
    import torch

    from hybridrec.rerank.losses import LOSSES

    scores, labels = made
    given_scores = torch.from_numpy(scores).requires_grad_()
    loss = LOSSES[name](given_scores, torch.from_numpy(labels))
    assert float(loss.detach()) == pytest.approx(slow(name, scores, labels), rel=1e-4, abs=1e-5)
    loss.backward()
    assert torch.isfinite(given_scores.grad).all()
    assert (given_scores.grad[torch.from_numpy(~np.isfinite(scores))] == 0).all()
