"""Vectors beside texts: nothing at first, learnt later, and the same however pairs are read."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from colours import TEXTS as COLOURS
from colours import colour_work, encoder
from model_zoo import ITEMS, NAMES, ROBERTA, TEXTS, agree, checkpoint, queries, reranker, tokenizer

import hybridrec as hr
from hybridrec.candidates import Queries
from hybridrec.checks import InputError, InputTypeError, NotFittedError, StorageError
from hybridrec.protocols import ReadsVectors, VectorSource
from hybridrec.ragged import Ragged
from hybridrec.rerank import soft_tokens
from hybridrec.rerank.cross_encoder import CrossEncoder
from hybridrec.rerank.finetune_config import FineTuning
from hybridrec.rerank.vectors import source_for

WIDTH = 6
MASKS = dict.fromkeys(("bert", "roberta", "modernbert-mean"), ("one_way", "full"))


class Source:
    """A user is the sum of the vectors of the history."""

    name = "als"

    def __init__(self, n_items, *, seed=0, width=WIDTH, cold=()):
        self.vectors = np.random.default_rng(seed).normal(size=(n_items, width))
        self.vectors = self.vectors.astype(np.float32)
        self.vectors[list(cold)] = 0.0

    @property
    def item_vectors(self):
        return self.vectors

    def user_vectors(self, queries):
        rows = queries.histories
        taken = [rows.items[a:b] for a, b in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)]
        return np.array([self.vectors[row].sum(axis=0) for row in taken], dtype=np.float32)


def apart(scores, others):
    return np.abs(scores[ITEMS >= 0] - others[ITEMS >= 0]).max()


def opened(model, gate=1.5):
    """With gates and a [COLD] as if they had been learnt."""
    soft = model._network().model.soft_tokens
    with torch.no_grad():
        soft.user_gate.fill_(gate)
        soft.item_gate.fill_(gate)
        soft.cold.copy_(torch.linspace(-1.0, 1.0, len(soft.cold)))
    model._network().weights_changed()
    return model


def als():
    """Fitted to histories of one colour each: what it knows is what the target follows from."""
    work, _, targets = colour_work(400, 7)
    events = {
        "u": np.repeat(np.arange(400), 2),
        "i": np.stack([work.histories.items, targets], axis=1).ravel(),
        "t": np.tile([0, 1], 400),
    }
    import pyarrow as pa

    items = pa.table({"i": np.arange(9), "text": COLOURS})
    data = hr.Dataset.from_frame(
        pa.table(events), user="u", item="i", time="t", items=items, item_text="{text}"
    )
    assert data.items.ids.tolist() == list(range(9))
    return hr.ALS(factors=WIDTH, epochs=5).fit(data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = checkpoint(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_family_reads_them_packed_as_pair_by_pair(folders, name):
    source = Source(len(TEXTS), cold=[2])
    for mask in MASKS.get(name, ("auto",)):
        plain = reranker(folders(name), mask=mask).prepare(TEXTS)
        model = reranker(folders(name), mask=mask, soft_tokens="als").prepare(TEXTS)
        model.use_vectors(source)
        wanted = plain.score(queries(), ITEMS)
        np.testing.assert_array_equal(model.score(queries(), ITEMS), wanted)
        np.testing.assert_array_equal(
            model.score_pairs(queries(), ITEMS), plain.score_pairs(queries(), ITEMS)
        )
        opened(model)
        found = model.score(queries(), ITEMS)
        agree(found, model.score_pairs(queries(), ITEMS), spread=0.01)
        assert apart(found, wanted) > 1e-2
        np.testing.assert_allclose(model.score(queries(), ITEMS), found, rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_packed_reads_them_too(tmp_path):
    from transformers import AutoModelForSequenceClassification, MPNetConfig

    settings = MPNetConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=130, initializer_range=0.3, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(tmp_path)
    tokenizer(ROBERTA).save_pretrained(tmp_path)
    own = {"unpackable": "pairs"}
    wanted = reranker(str(tmp_path), **own).prepare(TEXTS).score(queries(), ITEMS)
    model = reranker(str(tmp_path), soft_tokens="als", **own).prepare(TEXTS)
    model.use_vectors(Source(len(TEXTS)))
    np.testing.assert_array_equal(model.score(queries(), ITEMS), wanted)
    assert apart(opened(model).score(queries(), ITEMS), wanted) > 1e-2


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_user_and_item_each_move_the_scores_that_are_theirs(folders, name):
    def scores(source, asked=None, **settings):
        model = reranker(folders(name), mask="one_way", soft_tokens="als", **settings)
        model.prepare(TEXTS).use_vectors(source)
        return opened(model).score(asked or queries(), ITEMS)

    source = Source(len(TEXTS))
    before = scores(source)
    source.vectors[1] *= -1.0  # in the history of the first query, a candidate of it and the third
    moved = ~np.isclose(scores(source), before, rtol=0, atol=1e-5)
    assert moved[0].all()
    np.testing.assert_array_equal(moved[1:], (ITEMS == 1)[1:])
    assert moved[2, 1]


def test_an_unknown_item_gets_cold_and_an_unknown_user_nothing(tiny_model):
    given = Queries(Ragged.from_rows([[0, 1], [0, 1], []]), len(COLOURS))
    items = np.array([[2, 3, 4]] * 3, dtype=np.int32)
    source = Source(len(COLOURS), cold=[3, 4])
    model = cross(tiny_model, source)
    before = model.score(given, items)
    cold = opened(model)._network().model.soft_tokens.cold
    first = model.score(given, items)
    with torch.no_grad():
        cold.mul_(-1.0)
    model._network().weights_changed()
    second = model.score(given, items)
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert (np.abs(first - second)[:, 1:] > 1e-6).all()
    with torch.no_grad():
        cold.zero_()
    model._network().weights_changed()
    third = model.score(given, items)
    np.testing.assert_array_equal(third[2, 1:], before[2, 1:])  # neither user nor items are known
    assert (third[0] != before[0]).all()


def cross(folder, source=None, **settings):
    made = encoder(folder, **settings)
    model = CrossEncoder(
        folder, device="cpu", precision=settings.get("precision", "fp32"), soft_tokens="als",
        finetuning=made.config.finetuning, mask=made.config.mask, seed=made.config.seed,
    ).prepare(COLOURS)  # fmt: skip
    return model if source is None else model.use_vectors(source)


@pytest.mark.parametrize("tune", ["full", "head", "last:1", "lora", "adalora", "adapter", "prefix"])
def test_they_learn_under_every_tune_and_come_back(tiny_model, tmp_path, tune):
    source = als()
    model = cross(tiny_model, source, tune=tune, rank=4, epochs=2, learning_rate=1e-2)
    soft = model._network().model.soft_tokens if model._network().vector_width else None
    assert soft is not None
    before = {name: value.clone() for name, value in soft.state_dict().items()}
    model.finetune(*colour_work(48, 0))
    assert model._network().model.soft_tokens is soft
    after = soft.state_dict()
    assert {name for name in after if after[name].equal(before[name])} == {"length"}
    assert not soft.training
    asked, candidates, _ = colour_work(20, 1)
    scores = model.score(asked, candidates.items)

    model.save_files(tmp_path)
    weights = tmp_path / soft_tokens.FILE
    from safetensors.torch import load_file

    assert set(load_file(weights)) == set(after)
    assert not any("soft" in name for name in load_file(tmp_path / "model.safetensors"))
    assert all(v.size < 500 for v in map(np.load, tmp_path.glob("*.npy")))  # no vectors
    loaded = CrossEncoder.load_files(tmp_path)
    with pytest.raises(NotFittedError, match=r"soft_tokens is 'als'.*call use_vectors"):
        loaded.score(asked, candidates.items)
    loaded.use_vectors(source)
    np.testing.assert_allclose(loaded.score(asked, candidates.items), scores, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="4 wide and the model was made for vectors of 6"):
        loaded.use_vectors(Source(9, width=4))
    weights.unlink()
    with pytest.raises(StorageError, match="lacks their file soft_tokens"):
        CrossEncoder.load_files(tmp_path)


def test_what_only_the_vectors_tell_is_learnt(tiny_model):
    """All texts are the same, so that there is nothing else to learn from."""
    model = cross(tiny_model, als(), epochs=10, dropout=0.0).prepare(["cat"] * len(COLOURS))
    log = model.finetune(*colour_work(160, 0), held_out=colour_work(60, 1))
    assert max(log.held_out) > log.held_out[0] + 0.2
    soft = model._network().model.soft_tokens
    assert min(float(gate.detach().abs()) for gate in (soft.user_gate, soft.item_gate)) > 0.05


def test_gates_have_gradients_and_learn_as_fast_as_the_head(tiny_model):
    from hybridrec.rerank.tuning import Tuning

    model = cross(tiny_model, als())
    network = model._network()
    asked, candidates, _ = colour_work(4, 0)
    network.model.train()
    scores = network.trainable_scores(
        model._reading(asked).prompts, candidates.items, model._table, model._vectors(asked)
    )
    (scores * torch.randn(scores.shape)).sum().backward()
    soft = network.model.soft_tokens
    network.model.eval()
    for gate in (soft.user_gate, soft.item_gate):
        assert gate.grad.abs() > 0
    tuning = Tuning(network.model, FineTuning(tune="head"), network.head, 10)
    mine = {id(p) for p in soft.parameters()}
    assert mine <= {id(parameter) for parameter in tuning.head()}
    tuning.finish()


def test_known_items_are_taken_for_cold_now_and_then_in_training_only():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        soft = soft_tokens.SoftTokens(4, 8)
        with torch.no_grad():
            soft.item_gate.fill_(1.0)
            soft.cold.fill_(7.0)
        users, items = torch.zeros(0, 4), torch.randn(4000, 4)
        cold = (soft.train()(users, items) == 7.0).all(dim=1)
        assert 0.22 < float(cold.float().mean()) < 0.28
        assert not (soft.eval()(users, items) == 7.0).any()


def test_a_vector_counts_by_its_direction_in_words():
    soft = soft_tokens.SoftTokens(4, 8, length=0.5).eval()
    with torch.no_grad():
        soft.user_gate.fill_(2.0)
        soft.item_gate.fill_(2.0)
        users, items = torch.randn(3, 4), torch.randn(5, 4)
        found = soft(users, items)
        torch.testing.assert_close(found, soft(1e-3 * users, 1e3 * items), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.square().mean(dim=1), torch.ones(8))


def test_a_prompt_that_is_kept_belongs_to_its_vector(tiny_model):
    source = Source(len(COLOURS))
    model = opened(cross(tiny_model, source).use_vectors(source))
    asked, candidates, _ = colour_work(6, 0)
    first = model.score(asked, candidates.items)
    np.testing.assert_allclose(model.score(asked, candidates.items), first, rtol=1e-5, atol=1e-6)
    kept = len(model._network()._cache)
    other = Source(len(COLOURS), seed=1)
    model.use_vectors(other)
    found = model.score(asked, candidates.items)
    assert len(model._network()._cache) == 2 * kept
    assert np.abs(found - first).max() > 1e-3
    np.testing.assert_allclose(
        found, model.score_pairs(asked, candidates.items), rtol=1e-4, atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_read_them(tmp_path, precision):
    from hybridrec import _core

    if precision == "int8" and not _core.has_linear8:
        pytest.skip("no 8-bit products here")
    folder = checkpoint(tmp_path, "bert", hidden_size=64, initializer_range=0.1)
    scores = {}
    for kind in ("fp32", precision):
        model = hr.CrossEncoder(
            folder, device="cpu", precision=kind, soft_tokens="als", mask="one_way"
        ).prepare(TEXTS)  # fmt: skip
        model.use_vectors(Source(len(TEXTS)))
        scores[kind, 0] = model.score(queries(), ITEMS)
        scores[kind, 1] = opened(model).score(queries(), ITEMS)
    effect = apart(scores["fp32", 1], scores["fp32", 0])
    assert 0 < apart(scores[precision, 1], scores["fp32", 1]) < 0.2 * effect


def test_texts_are_scored_as_unknown_to_all(tiny_model):
    model = cross(tiny_model)
    plain = encoder(tiny_model).score_texts("red cat", ["red dog", "blue dog"])
    np.testing.assert_array_equal(model.score_texts("red cat", ["red dog", "blue dog"]), plain)
    opened(model.use_vectors(Source(len(COLOURS))))
    found = model.score_texts("red cat", ["red dog", "blue dog"])
    assert np.abs(found - plain).max() > 1e-3
    unknown = model.use_vectors(Source(len(COLOURS), cold=range(len(COLOURS))))
    asked = Queries(Ragged.from_rows([[0]]), len(COLOURS))
    np.testing.assert_allclose(
        unknown.score(asked, np.array([[1, 7]], np.int32))[0], found, rtol=1e-4, atol=1e-5
    )


def test_what_was_left_out_of_a_checkpoint_is_said(tiny_model, tmp_path, caplog):
    model = cross(tiny_model, Source(len(COLOURS)), epochs=1)
    model.finetune(*colour_work(8, 0))
    model.save_files(tmp_path / "with")
    other = hr.CrossEncoder(str(tmp_path / "with"), device="cpu").prepare(COLOURS)
    assert "was fine-tuned with soft tokens, which are left out" in caplog.text
    other.save_files(tmp_path / "without")
    assert CrossEncoder.load_files(tmp_path / "without")._network().vector_width is None
    same = hr.CrossEncoder(str(tmp_path / "with"), device="cpu", soft_tokens="als")
    assert same._network().vector_width == WIDTH


def test_what_is_missing_or_wrong_is_named(tiny_model):
    asked, candidates, targets = colour_work(4, 0)
    model = cross(tiny_model)
    for call in (
        lambda: model.score(asked, candidates.items),
        lambda: model.finetune(asked, candidates, targets),
    ):
        with pytest.raises(NotFittedError, match=r"no vectors to read: call use_vectors\(recaller"):
            call()
    with pytest.raises(InputError, match="soft_tokens is '', so no vectors are read"):
        encoder(tiny_model).use_vectors(Source(9))
    with pytest.raises(InputError, match=r"knows 8 items and the queries are about 9: fit it"):
        model.use_vectors(Source(8)).score(asked, candidates.items)
    with pytest.raises(InputTypeError, match="soft_tokens is True; wanted a string"):
        hr.CrossEncoder(tiny_model, soft_tokens=True)
    wrong = Source(9)
    wrong.user_vectors = lambda queries: np.zeros((len(queries), 3), np.float32)
    with pytest.raises(InputError, match=r"user_vectors have shape \(4, 3\); wanted \(4, 6\)"):
        cross(tiny_model, wrong).score(asked, candidates.items)


def test_a_new_one_over_the_old_weights_reads_the_same_source(tiny_model):
    source = Source(len(COLOURS))
    model = cross(tiny_model, source)
    asked, candidates, _ = colour_work(4, 0)
    scores = model.score(asked, candidates.items)
    np.testing.assert_array_equal(opened(model).untuned().score(asked, candidates.items), scores)
    assert isinstance(model, ReadsVectors)
    assert isinstance(source, VectorSource)
    assert isinstance(als(), VectorSource)


def test_recommenders_find_the_source_by_name(tiny_model):
    als_, transitions = hr.ALS(), hr.ItemTransitions()
    asks = hr.CrossEncoder(tiny_model, soft_tokens="als")
    assert source_for(asks, [transitions, als_]) is als_
    assert source_for(hr.CrossEncoder(tiny_model), [als_]) is None
    assert source_for(None, [als_]) is None
    with pytest.raises(InputError, match=r"'als', a recaller that is not among \['cf', 'item"):
        hr.HybridRecommender([hr.ALS(name="cf"), transitions], asks)
    other = hr.CrossEncoder(tiny_model, soft_tokens=transitions.name)
    with pytest.raises(InputError, match=r"transitions', a recaller that has no vectors.*'als'"):
        hr.HybridRecommender([transitions, als_], other)
    with pytest.raises(InputError, match=r"add hybridrec.ALS\(\)"):
        hr.HybridRecommender([transitions], asks)


class Spy(hr.CrossEncoder):
    """Writes down what vectors it reads whenever it trains or scores."""

    seen: ClassVar[list] = []

    def _vectors(self, queries):
        found = super()._vectors(queries)
        type(self).seen.append((found.items.copy(), found.users.copy(), queries))
        return found


def test_a_recommender_trains_on_fit_a_and_serves_with_fit_d(dataset, tiny_encoder, tmp_path):
    from hybridrec.data.learning import LearningPlan

    Spy.seen = []
    engine = hr.HybridRecommender(
        [hr.ALS(factors=8, epochs=5), hr.ItemTransitions()],
        Spy(
            tiny_encoder, history=4, max_item_tokens=12, soft_tokens="als",
            finetuning={"negatives": 4, "learning_rate": 3e-3},
        ),
        hr.LinearFusion(),
        depth=20, rerank_depth=10,
    ).fit(dataset)  # fmt: skip
    base = dataset.keep_events(LearningPlan.of(dataset, 0).base)
    fit_a = hr.ALS(factors=8, epochs=5).fit(base)
    assert len(Spy.seen) > 2  # fine-tuning, held-out lists, fusion
    for items, users, asked in Spy.seen:
        np.testing.assert_array_equal(items, fit_a.item_vectors)
        fit_a.half_life = engine.recallers[0].half_life
        np.testing.assert_array_equal(users, fit_a.user_vectors(asked))
    soft = opened(engine.reranker)._network().model.soft_tokens

    Spy.seen = []
    served = engine.recommend(["u1", "u7"], k=8, frame="pandas")
    items, users, asked = Spy.seen[0]
    fit_d = engine.recallers[0]
    assert not np.array_equal(fit_d.item_vectors, fit_a.item_vectors)
    np.testing.assert_array_equal(items, fit_d.item_vectors)
    np.testing.assert_array_equal(users, fit_d.user_vectors(asked))
    # The axes are those that the projector has learnt: what it makes of an item is much the same.
    rows = [torch.from_numpy(fit.item_vectors.copy()) for fit in (fit_a, fit_d)]
    with torch.no_grad():
        before, after = (soft(torch.zeros(0, 8), row) for row in rows)
        shuffled = soft(torch.zeros(0, 8), rows[1].flip(1))
    near = torch.nn.functional.cosine_similarity
    assert near(before, after).mean() > 0.9 > near(before, shuffled).mean()

    engine.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model", kinds={"Spy": Spy})
    again = loaded.recommend(["u1", "u7"], k=8, frame="pandas")
    assert again.item.tolist() == served.item.tolist()
    np.testing.assert_allclose(again.score, served.score, rtol=1e-4, atol=1e-5)
    import pyarrow as pa

    new = {"item_id": ["new"], "title": ["dune 99"], "genres": ["crime"]}
    loaded.add_items(pa.table(new))
    loaded.recommend(["u1"], k=8)
    assert not Spy.seen[-1][0][-1].any()
    assert len(Spy.seen[-1][0]) == dataset.n_items + 1
    loaded.fit(dataset)
    assert loaded.recommend(["u1"], k=8).num_rows == 8
