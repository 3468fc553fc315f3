"""Tiny checkpoints of every family with random weights, and what their tests share."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

import hybridrec as hr
from hybridrec.candidates import Queries
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


def reranker(folder, **settings):
    settings = {"max_item_tokens": 12, "history": 3, **settings}
    return hr.CrossEncoder(folder, device="cpu", precision="fp32", **settings)


def queries(**context):
    return Queries(Ragged.from_rows(QUERIES), len(TEXTS), context=context)


def plain_pairs(model, plain, given):
    """(B, K) scores by ``plain`` of each prompt's ids followed by each candidate's, one by one."""
    prompts, table = model._reading(given).prompts, model._table
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
