"""Templates, context columns, words for yes and no, and models that cannot be packed."""

import importlib.util
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from model_zoo import (
    BERT,
    CAUSAL,
    ITEMS,
    ROBERTA,
    TEXTS,
    agree,
    checkpoint,
    differ,
    queries,
    reranker,
    tokenizer,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MPNetConfig,
    T5Config,
)

import hybridrec as hr
from hybridrec.candidates import Queries
from hybridrec.checks import InputError, InputTypeError, MissingExtraError, StorageError
from hybridrec.ragged import Ragged
from hybridrec.rerank.template import Template

ASKED = "At {hour} on {device}:\n{history}Then:\n{item}\nGood:"
CONTEXT = {"hour": [3, 14, 14, 3], "device": ["phone", None, "tv [SEP] </s>", "\U0001f4f1"]}


def read(model, ids):
    return model._network()._tokenizer.decode(np.asarray(ids), skip_special_tokens=False)


def prompt_text(model, given, row=0):
    return read(model, model._reading(given).prompts.select(np.array([row])).items)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints, each made once."""
    made = {}

    def folder(name, kind=AutoModelForSequenceClassification, **more):
        key = (name, kind, repr(more))
        if key not in made:
            made[key] = checkpoint(tmp_path_factory.mktemp("model"), name, kind, **more)
        return made[key]

    return folder


def test_a_template_is_cut_at_its_fields():
    found = Template.parsed("{{a}} {hour}, {history}then {device}: {item}!")
    assert found.before == (("{a} ", "hour"), (", ", None))
    assert found.between == (("then ", "device"), (": ", None))
    assert found.after == "!"
    assert found.history
    assert found.context == ("hour", "device")
    assert Template.parsed("{query}{item}").history is False


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{history}", r"wanted \{item\} once and last"),
        ("{item}{history}", "once and last"),
        ("{history}{item}{item}", "once and last"),
        ("{history}{history}{item}", "at most once"),
        ("{history}{item}{hour}", "context columns before"),
        ("{item}", "nothing but the item"),
        ("{history.x}{item}", "bare column name"),
        ("{history[0]}{item}", "bare column name"),
        ("{history}{item", "cannot be read"),
        ("words", "names no column"),
    ],
)
def test_a_template_that_cannot_be_is_refused_when_made(template, words):
    with pytest.raises(InputError, match=words):
        hr.CrossEncoder("some/model", template=template)
    with pytest.raises(InputTypeError, match="template is 3"):
        hr.CrossEncoder("some/model", template=3)


def test_a_causal_prompt_reads_as_its_template(folders):
    model = reranker(folders("llama"), template=ASKED, max_item_tokens=60).prepare(TEXTS)
    given = queries(**CONTEXT)
    assert prompt_text(model, given, 3) == (
        "<bos>At 3 on \U0001f4f1:\nnew film\n[SEP] </s> <bos> <|end|> dog\n"
        "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd\nThen:\n"
    )
    assert prompt_text(model, given, 1) == "<bos>At 14 on :\n(nothing)\nThen:\n"
    candidate = model._table.rows.select(np.array([0])).items
    assert read(model, candidate) == "red cat\nGood:"


@pytest.mark.parametrize(("name", "kind"), [("bert", BERT), ("roberta", ROBERTA)])
def test_an_encoder_reads_words_and_columns_as_texts_of_their_own(folders, name, kind):
    model = reranker(folders(name), template=ASKED).prepare(["red cat", "blue dog"])
    given = Queries(
        Ragged.from_rows([[0, 1], []]), 2, context={"hour": [3, 4], "device": ["tv"] * 2}
    )
    cls, sep = tokenizer(kind).cls_token, tokenizer(kind).sep_token
    assert prompt_text(model, given) == (f"{cls}At3ontv:{sep}blue dog{sep}red cat{sep}Then:{sep}")
    assert prompt_text(model, given, 1) == f"{cls}At4ontv:{sep}Then:{sep}"
    assert read(model, model._table.rows.select(np.array([0])).items) == f"{cls}red catGood:{sep}"


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gemma2", "qwen3"])
@pytest.mark.parametrize("template", [ASKED, "{hour}{device}{item}\nGood:"])
def test_context_counts_and_packs(folders, name, template):
    model = reranker(folders(name), template=template, mask="one_way").prepare(TEXTS)
    scores = model.score(queries(**CONTEXT), ITEMS)
    agree(scores, model.score_pairs(queries(**CONTEXT), ITEMS), spread=0.01)
    other = {**CONTEXT, "device": ["radio"] * 4}
    assert differ(model.score(queries(**other), ITEMS), scores)


def test_a_context_column_that_is_missing_or_too_long(folders, caplog):
    model = reranker(folders("llama"), template=ASKED).prepare(TEXTS)
    with pytest.raises(InputError, match=r"context lacks 'device', which the template.*\['hour'\]"):
        model.score(queries(hour=[1, 2, 3, 4]), ITEMS)
    with pytest.raises(InputError, match="context lacks 'hour'"):
        model.score_texts("red cat", ["blue dog"])
    long = {**CONTEXT, "device": ["cat " * 300] * 4}
    assert np.isfinite(model.score(queries(**long), ITEMS)[ITEMS >= 0]).all()
    assert "4 of 4 values of context 'device' cut to 12 tokens" in caplog.text
    scores = model.score_texts("red cat", ["blue dog", ""], context={"hour": 3, "device": "tv"})
    given = Queries(Ragged.from_rows([[0]]), 8, context={"hour": [3], "device": ["tv"]})
    model.prepare([*TEXTS[:1], "blue dog", "", *TEXTS[3:]])
    np.testing.assert_allclose(scores, model.score(given, np.array([[1, 2]]))[0], rtol=1e-4)


def test_a_prompt_without_history_takes_no_text_for_one(folders):
    model = reranker(folders("bert"), template="{hour}{item}")
    with pytest.raises(InputError, match=r"has no \{history\}"):
        model.score_texts("red cat", ["blue dog"])


def test_a_template_that_leaves_no_room_is_refused(folders):
    with pytest.raises(InputError, match="lower max_item_tokens"):
        reranker(folders("bert"), template="cat " * 600 + "{history}{item}").prepare(TEXTS)


def test_a_causal_template_goes_on_behind_the_item(folders):
    with pytest.raises(InputError, match="wanted words behind it"):
        reranker(folders("llama"), template="{history}{item}").prepare(TEXTS)


CHAT = (
    "{% for m in messages %}{{ '<bos>' if loop.first }}<{{ m['role'] }}>{{ m['content'] | trim }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT
)


@pytest.mark.parametrize("chat", [CHAT, NO_SYSTEM, None])
def test_yes_no_asks_in_the_chat_template(folders, tmp_path, chat):
    folder = tmp_path / "chat"
    shutil.copytree(folders("llama", AutoModelForCausalLM), folder)
    words = tokenizer(CAUSAL)
    words.chat_template = chat
    words.save_pretrained(folder)
    model = reranker(str(folder), head="yes_no").prepare(TEXTS)
    prompt = prompt_text(model, queries(), 2)
    candidate = read(model, model._table.rows.select(np.array([0])).items)
    assert prompt.count("<bos>") == 1
    assert prompt.startswith("<bos>")
    assert 'the answer can only be "yes" or "no"' in prompt
    assert ("<system>" in prompt) == (chat == CHAT)
    assert prompt.endswith("<Document>: ")
    assert candidate == ("red cat\nAnswer: " if chat is None else "red cat<|end|><assistant>")
    agree(model.score(queries(), ITEMS), model.score_pairs(queries(), ITEMS), spread=0.01)
    own = reranker(str(folder), head="yes_no", template="<bos>{history}?{item}!").prepare(TEXTS)
    assert prompt_text(own, queries(), 1) == "<bos>(nothing)\n?"


def test_words_that_are_not_one_token_are_refused(folders):
    folder = folders("llama", AutoModelForCausalLM)
    with pytest.raises(InputError, match=r"yes is 'perhaps', which .* cuts into \d+ tokens"):
        reranker(folder, head="yes_no", yes="perhaps").prepare(TEXTS)
    with pytest.raises(InputError, match="the same token"):
        reranker(folder, head="yes_no", no="yes").prepare(TEXTS)
    with pytest.raises(InputError, match="wanted a causal language model"):
        reranker(folders("bert"), head="yes_no").prepare(TEXTS)


def test_masks_that_a_model_cannot_have_are_refused(folders):
    with pytest.raises(InputError, match="causal language model, whose prompts see no candidate"):
        reranker(folders("llama"), mask="full").prepare(TEXTS)
    with pytest.raises(InputError, match=r"'is_decoder' set in its config.json"):
        reranker(folders("bert", is_decoder=True)).prepare(TEXTS)
    moving = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(InputError, match="its positions are of kind 'dynamic'"):
        reranker(folders("llama", AutoModel, rope_parameters=moving)).prepare(TEXTS)


def test_one_way_asked_for_before_fine_tuning_warns(folders, caplog):
    model = reranker(folders("roberta"), mask="one_way").prepare(TEXTS)
    model.score(queries(), ITEMS)
    assert caplog.text.count("was never fine-tuned with mask='one_way'") == 1


@pytest.fixture(scope="module")
def unpackable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpnet")
    settings = MPNetConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=130, initializer_range=0.3, num_labels=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
    tokenizer(ROBERTA).save_pretrained(folder)
    return str(folder)


def test_attention_that_cannot_be_packed_is_refused_by_name(unpackable, tmp_path):
    with pytest.raises(InputError, match=r"architecture is 'mpnet'.*unpackable='pairs'"):
        reranker(unpackable).prepare(TEXTS)
    with pytest.raises(InputError, match="cannot be packed; wanted 'auto' or 'full'"):
        reranker(unpackable, unpackable="pairs", mask="one_way").prepare(TEXTS)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="architecture is 't5'; it has a decoder"):
        reranker(str(tmp_path), unpackable="pairs").prepare(TEXTS)


def test_attention_that_cannot_be_packed_is_scored_pair_by_pair(unpackable, tmp_path, caplog):
    model = reranker(unpackable, unpackable="pairs", max_item_tokens=40)
    texts = [text for text in TEXTS if len(text) < 50]
    found = model.score_texts("old green bird", texts)
    assert "('mpnet') cannot be packed; it is scored pair by pair" in caplog.text
    plain = AutoModelForSequenceClassification.from_pretrained(unpackable)
    pairs = tokenizer(ROBERTA)(
        ["old green bird"] * len(texts), texts, padding=True, return_tensors="pt",
        split_special_tokens=True,
    )  # fmt: skip
    with torch.no_grad():
        agree(found, plain(**pairs).logits[:, 0].numpy())
    model.prepare(TEXTS).save_files(tmp_path / "saved")
    loaded = hr.CrossEncoder.load_files(tmp_path / "saved")
    scores = model.score(queries(), ITEMS)
    np.testing.assert_allclose(loaded.score(queries(), ITEMS), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_file_is_refused(folders, tmp_path, lost):
    model = reranker(folders("llama"), template=ASKED).prepare(TEXTS)
    model.save_files(tmp_path / "saved")
    (tmp_path / "saved" / lost).unlink()
    with pytest.raises(StorageError, match=f"has no {lost}"):
        hr.CrossEncoder.load_files(tmp_path / "saved")


def test_a_body_with_weights_missing_is_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders("llama"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for 'model.layers.1.mlp.up_proj.weight'"):
        reranker(str(tmp_path / "model")).prepare(TEXTS)


def test_the_context_of_a_request_reaches_the_prompt(folders):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user": np.repeat(np.arange(40), 12),
            "item": np.concatenate([rng.permutation(20)[:12] for _ in range(40)]),
            "time": np.tile(np.arange(12), 40),
            "device": rng.choice(["phone", "tv"], 480),
        }
    )
    items = pd.DataFrame({"item": np.arange(20), "title": [f"film {i}" for i in range(20)]})
    data = hr.Dataset.from_frame(
        rows, user="user", item="item", time="time", items=items, item_text="{title}",
        context=["device"],
    )  # fmt: skip
    model = reranker(
        folders("bert", AutoModel), template="{device}{history}{item}", finetuning={"epochs": 1}
    )
    engine = hr.HybridRecommender([hr.Popularity()], model, depth=10, reranker_examples=8)
    engine.fit(data)

    def scores(**request):
        return engine.recommend(k=5, exclude_seen=False, frame="pandas", **request)["score"]

    phone = scores(users=[1, 2], context={"device": "phone"})
    both = scores(users=[1, 2], context={"device": ["phone", "tv"]})
    np.testing.assert_array_equal(phone[:5], both[:5])
    assert np.abs(phone[5:].to_numpy() - both[5:].to_numpy()).max() > 0
    new = scores(histories=[[3, 4]], context={"device": np.array(["tv"])})
    assert len(new) == 5
    for request in ({"users": [1]}, {"histories": [[3]]}):
        with pytest.raises(InputError, match="context lacks 'device'"):
            scores(**request)
        with pytest.raises(InputError, match=r"context\['device'\] has 3 values; wanted one"):
            scores(**request, context={"device": ["tv"] * 3})
        with pytest.raises(InputTypeError, match="context is 'tv'; wanted a mapping"):
            scores(**request, context="tv")
        with pytest.raises(InputTypeError, match="is a set"):
            scores(**request, context={"device": {"tv"}})


def test_a_folder_of_gguf_files_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match="holds 2 GGUF files; wanted one"):
        reranker(str(tmp_path)).prepare(TEXTS)
    (tmp_path / "b.gguf").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(MissingExtraError, match="run: pip install gguf"):
            reranker(str(tmp_path)).prepare(TEXTS)
    pytest.importorskip("gguf")
    with pytest.raises(InputError, match="cannot load the model"):
        reranker(str(tmp_path)).prepare(TEXTS)
