"""Every family against transformers' own forward of the same weights, freshly loaded."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

import hybridrec as hr
from hybridrec.candidates import Candidates, Queries
from hybridrec.ragged import Ragged

WORDS = "red green blue cat dog bird film of the night old new yes no Answer Candidate nothing"
TEXTS = [
    "red cat", "green dog of the old night", "", "blue bird \U0001f426\u200d\u2b1b!", "cat " * 300,
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "[SEP] </s> <bos> <|end|> dog", "new film",
]  # fmt: skip
BERT, ROBERTA, CAUSAL = "bert", "roberta", "causal"
SPECIAL = {
    BERT: ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    ROBERTA: ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    CAUSAL: ["<pad>", "<bos>", "<|end|>"],
}
TOKENS = {f"{name}_token_id": 0 for name in ("pad", "eos", "bos", "cls", "sep")}
ENCODERS = {
    "bert": (BERT, {"type_vocab_size": 2}),
    "electra": (BERT, {"embedding_size": 16}),
    "roberta": (ROBERTA, {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": (ROBERTA, {"pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": (ROBERTA, {"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": (BERT, {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}),
    "modernbert": (BERT, {"local_attention": 8, **TOKENS}),
    "modernbert-mean": (BERT, {"local_attention": 8, "classifier_pooling": "mean", **TOKENS}),
}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
CAUSALS = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "mistral-open": {"sliding_window": None},
    "qwen2": WINDOW,
    "qwen3": WINDOW,
    "gemma": {},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
}
NAMES = [*ENCODERS, *CAUSALS]
QUERIES = [[0, 1, 2, 3], [], [4, 4], [5, 6, 7]]
ITEMS = np.array([[1, 2, 3, 4], [0, 5, 2, -1], [3, 1, 6, -1], [7, -1, -1, -1]], dtype=np.int32)


def tokenizer(kind):
    """Byte-level pairs, so that any text has tokens, framed as the kind's tokenisers do."""
    special = SPECIAL[kind]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([WORDS, *WORDS.split()] * 20, trainer)
    ids = {token: made.token_to_id(token) for token in special}
    if kind == BERT:
        made.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    elif kind == ROBERTA:
        made.post_processor = processors.RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
        )
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    else:
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
        )
        names = {"pad": "<pad>", "bos": "<bos>", "eos": "<|end|>"}
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind == BERT)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=inputs,
        **{f"{name}_token": token for name, token in names.items()},
    )  # fmt: skip


def settings_of(name, **more):
    if name in ENCODERS:
        own = ENCODERS[name][1]
    else:
        own = {
            "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, **CAUSALS[name],
        }  # fmt: skip
    common = {
        "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 512, "initializer_range": 0.3,
    }  # fmt: skip
    model_type = name.split("-mean")[0].split("-open")[0]
    return AutoConfig.for_model(model_type, **{**common, **own, **more})


def checkpoint(folder, name, kind=AutoModelForSequenceClassification, **more):
    """A folder as the hub would have it, with random weights."""
    labels = {"num_labels": 1} if kind is AutoModelForSequenceClassification else {}
    with torch.random.fork_rng():
        torch.manual_seed(NAMES.index(name))
        model = kind.from_config(settings_of(name, **labels, **more))
    model.save_pretrained(folder)
    tokenizer(ENCODERS[name][0] if name in ENCODERS else CAUSAL).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints with heads of their own, each made once."""
    made = {}

    def folder(name, kind=AutoModelForSequenceClassification):
        if (name, kind) not in made:
            made[name, kind] = checkpoint(tmp_path_factory.mktemp(name), name, kind)
        return made[name, kind]

    return folder


def reranker(folder, **settings):
    settings = {"max_item_tokens": 12, "history": 3, **settings}
    return hr.CrossEncoder(folder, device="cpu", precision="fp32", **settings)


def queries(**context):
    return Queries(Ragged.from_rows(QUERIES), len(TEXTS), context=context)


def plain_pairs(model, plain, given):
    """(B, K) scores by ``plain`` of each prompt's ids followed by each candidate's, one by one."""
    prompts, table = model._prompts(given), model._table
    scores = np.full(ITEMS.shape, -np.inf, dtype=np.float32)
    for row, column in np.argwhere(ITEMS >= 0):
        prompt = prompts.select(np.array([row])).items
        text = table.rows.select(ITEMS[row, column][None]).items
        ids = torch.from_numpy(np.concatenate([prompt, text]).astype(np.int64))[None]
        with torch.no_grad():
            scores[row, column] = plain(ids)
    return scores


def agree(found, wanted, *, spread=0.05):
    real = np.isfinite(wanted)
    assert wanted[real].std() > spread  # or 1e-4 would say nothing
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def differ(scores, others):
    return np.abs(scores[ITEMS >= 0] - others[ITEMS >= 0]).max() > 1e-3


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
