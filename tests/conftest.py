"""Small real data and a small real encoder, shared by the tests of the whole path."""

import numpy as np
import pyarrow as pa
import pytest

import hybridrec as hr

pytest_plugins = ["postgres_server"]

WORDS = [
    "heat",
    "fargo",
    "alien",
    "brazil",
    "casino",
    "clue",
    "rope",
    "jaws",
    "speed",
    "ghost",
    "big",
    "fame",
    "hook",
    "dune",
    "tron",
]
GENRES = ("crime", "drama", "comedy", "horror")


def make_frames(users: int = 60, items: int = 30, events: int = 16, seed: int = 0):
    """Interactions with an order to learn (i + 1 mostly follows i) and an item table."""
    generator = np.random.default_rng(seed)
    rows = {"user_id": [], "item_id": [], "timestamp": []}
    for user in range(users):
        item, seen = int(generator.integers(items)), set()
        for step in range(events):
            while item in seen:
                item = int(
                    (item + 1) % items if generator.random() < 0.8 else generator.integers(items)
                )
            seen.add(item)
            rows["user_id"].append(f"u{user}")
            rows["item_id"].append(f"i{item}")
            rows["timestamp"].append(1000 * user + step)
    names = [f"i{item}" for item in range(items)]
    table = {
        "item_id": names,
        "title": [f"{WORDS[item % len(WORDS)]} {item}" for item in range(items)],
        "genres": [GENRES[item % len(GENRES)] for item in range(items)],
    }
    return pa.table(rows), pa.table(table)


@pytest.fixture(scope="session")
def frames():
    return make_frames()


@pytest.fixture(scope="session")
def dataset(frames):
    events, items = frames
    return hr.Dataset.from_frame(
        events,
        user="user_id",
        item="item_id",
        time="timestamp",
        items=items,
        item_text="{title}. {genres}",
    )


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A folder with a random two-layer BERT and a word-level tokenizer: real, and fast."""
    pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"##{letter}" for letter in letters), *WORDS, *GENRES]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys([*special, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
        )
        BertModel(config).save_pretrained(folder)
    return str(folder)
