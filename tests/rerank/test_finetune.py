import numpy as np
import pytest
from colours import colour_work, encoder
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.checks import FitError, InputError
from hybridrec.rerank.sampling import (
    check_targets,
    mean_ndcg,
    sample_places,
    soft_labels,
)


@st.composite
def lists(draw):
    """(B, K) items of which each row holds its target, -1 padded on the right."""
    rows = draw(
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True), min_size=1)
    )
    items = np.full((len(rows), 8), -1, dtype=np.int32)
    for row, codes in zip(items, rows, strict=True):
        row[: len(codes)] = codes
    targets = [draw(st.sampled_from(codes)) for codes in rows]
    return items, np.array(targets, dtype=np.int32)


@given(lists(), st.integers(1, 12), st.integers(0, 5))
def test_negatives_come_from_the_same_list_without_repeats(given_lists, negatives, seed):
    items, targets = given_lists
    places = sample_places(items, targets, negatives, np.random.default_rng(seed))
    assert places.shape == (len(items), 1 + negatives)
    for row, drawn in enumerate(places):
        assert items[row, drawn[0]] == targets[row]
        real = items[row, drawn[1:][drawn[1:] >= 0]].tolist()
        pool = set(items[row].tolist()) - {-1, targets[row]}
        assert len(real) == len(set(real)) == min(negatives, len(pool))
        assert set(real) <= pool


def test_every_negative_gets_its_turn():
    items = np.arange(8, dtype=np.int32)[None]
    rng = np.random.default_rng(0)
    target = np.array([3], np.int32)
    seen = {int(sample_places(items, target, 1, rng)[0, 1]) for _ in range(200)}
    assert seen == {0, 1, 2, 4, 5, 6, 7}


def test_soft_labels_share_between_the_choice_and_the_order():
    places = np.array([[3, 0, 1, -1]])
    order = np.array([1 / 5, 1 / 2, 1 / 3, 0.0])
    order /= order.sum()
    np.testing.assert_allclose(soft_labels(places, 0.0), [[1, 0, 0, 0]])
    np.testing.assert_allclose(soft_labels(places, 1.0), [order], rtol=1e-6)
    mixed = 0.4 * order + [0.6, 0, 0, 0]
    np.testing.assert_allclose(soft_labels(places, 0.4), [mixed], rtol=1e-6)


@given(lists(), st.data())
def test_ndcg_against_sorting(given_lists, data):
    items, targets = given_lists
    few = st.integers(0, 3).map(float)  # so that ties are common
    scores = np.array(
        [[data.draw(few) if item >= 0 else -np.inf for item in row] for row in items], np.float32
    )
    gains = []
    for row, target in enumerate(targets):
        real = [(-score, item) for score, item in zip(scores[row], items[row], strict=True)]
        order = [item for score, item in sorted(real) if item >= 0]
        rank = order.index(target)
        gains.append(1 / np.log2(rank + 2) if rank < 3 else 0.0)
    assert mean_ndcg(items, scores, targets, k=3) == pytest.approx(np.mean(gains))


def test_a_target_outside_its_list_is_named():
    items = np.array([[1, 2], [3, -1], [4, 5]], dtype=np.int32)
    with pytest.raises(InputError, match=r"targets\[1\] is -1, which its list.*as do 1 others"):
        check_targets(items, np.array([2, -1, 6]))
    with pytest.raises(InputError, match=r"shape \(2,\); wanted \(3,\)"):
        check_targets(items, np.array([2, 3]))


@pytest.mark.parametrize("mask", ["one_way", "full"])
def test_it_learns_a_rule_that_only_the_pair_tells(tiny_model, mask):
    model = encoder(tiny_model, mask=mask)
    queries, candidates, targets = held_out = colour_work(40, 1)
    before = mean_ndcg(candidates.items, model.score(queries, candidates.items), targets)
    assert not model.tuned
    log = model.finetune(*colour_work(160, 0), held_out=held_out)
    after = mean_ndcg(candidates.items, model.score(queries, candidates.items), targets)
    assert model.tuned
    assert log.examples == 160
    assert log.steps == 120
    assert log.losses[-1] < log.losses[0]
    assert log.held_out[0] == pytest.approx(before)
    assert log.held_out[log.kept_epoch] == max(log.held_out) == pytest.approx(after)
    assert after > max(0.85, before + 0.1)


def test_the_same_seed_gives_the_same_weights_and_no_global_seed_moves(tiny_model):
    import torch

    queries, candidates, targets = colour_work(24, 0)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    scores = []
    for seed in (0, 0, 1):
        model = encoder(tiny_model, epochs=1, seed=seed)
        model.finetune(queries, candidates, targets)
        scores.append(model.score(queries, candidates.items))
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-3


def test_the_log_counts_what_was_trained_on(tiny_model):
    log = encoder(tiny_model, epochs=1).finetune(*colour_work(10, 0))
    assert (log.examples, log.steps, log.held_out, log.kept_epoch) == (10, 2, (), 1)


def test_the_best_epoch_is_kept_not_the_last(tiny_model):
    queries, candidates, _ = colour_work(40, 1)
    model = encoder(tiny_model)
    untrained = model.score(queries, candidates.items)
    # What each list puts first now is its target: training can only make it worse.
    first = candidates.reordered(untrained).items[:, 0]
    log = model.finetune(*colour_work(80, 0), held_out=(queries, candidates, first))
    assert log.held_out[0] == 1.0
    assert log.kept_epoch == 0
    np.testing.assert_array_equal(model.score(queries, candidates.items), untrained)


def test_a_loss_that_is_not_finite_stops_with_advice(tiny_model):
    with pytest.raises(FitError, match="lower learning_rate, which is 1e"):
        encoder(tiny_model, learning_rate=1e30).finetune(*colour_work(80, 0))


def test_what_cannot_be_learned_from_is_refused(tiny_model):
    model = encoder(tiny_model)
    queries, candidates, targets = colour_work(3, 0)
    with pytest.raises(InputError, match="drop these rows"):
        model.finetune(queries, candidates, np.array([-1, *targets[1:]]))
    with pytest.raises(InputError, match="drop these rows"):
        model.finetune(
            queries, candidates, targets, held_out=(queries, candidates, np.array([-1, -1, -1]))
        )
    none = np.empty(0, dtype=np.int64)
    with pytest.raises(InputError, match="got no lists"):
        model.finetune(queries.select(none), candidates.select(none), targets[:0])
