"""TextRecall against the mean of the encoder's states, one text at a time."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from hybridrec import InputError, InputTypeError, MissingExtraError, Queries, Ragged, TextRecall
from hybridrec.recall import text as text_module
from hybridrec.recall.text_encoder import encode_texts

pytest.importorskip("transformers")

TEXTS = ["heat. crime", "fargo", "", "alien and brazil. horror", "heat. crime", "  ", "jaws 2!"]


@dataclass
class Data:
    texts: list[str] | None
    histories: Ragged = Ragged.from_rows([[0, 1]])  # noqa: RUF009
    ordered: bool = True

    @property
    def n_items(self):
        return len(self.texts)


@pytest.fixture(scope="module")
def model(tiny_encoder):
    return TextRecall(tiny_encoder).fit(Data(TEXTS))


@pytest.fixture
def encoded(monkeypatch):
    """Every text that goes through the encoder from here on."""
    seen = []

    def counted(texts, *args, **kwargs):
        seen.extend(texts)
        return encode_texts(texts, *args, **kwargs)

    monkeypatch.setattr(text_module, "encode_texts", counted)
    return seen


def slow_vector(encoder, text):
    """The mean of the last hidden states of one text, of unit length; no batch, no padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    inner = tokenizer.tokenize(text)
    ids = [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(inner), tokenizer.sep_token_id]
    with torch.inference_mode():
        states = AutoModel.from_pretrained(encoder).eval()(torch.tensor([ids])).last_hidden_state
    vector = states[0].numpy().mean(axis=0)
    return vector / np.linalg.norm(vector)


def test_vectors_are_the_mean_of_the_states(model, tiny_encoder):
    for text, vector in zip(TEXTS, model.item_vectors, strict=True):
        if text.strip():
            np.testing.assert_allclose(vector, slow_vector(tiny_encoder, text), atol=1e-5)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        else:
            assert not vector.any()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_padding_does_not_count(tiny_encoder, model, batch_size):
    texts = [text for text in TEXTS if text.strip()]
    got = encode_texts(texts, tiny_encoder, batch_size=batch_size)
    wanted = [model.item_vectors[TEXTS.index(text)] for text in texts]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_special_token_in_a_title_is_plain_text(tiny_encoder):
    special, spaced, bare = encode_texts(
        ["heat [SEP] crime", "heat [ sep ] crime", "heat crime"], tiny_encoder
    )
    np.testing.assert_allclose(special, spaced, atol=1e-5)
    assert np.abs(special - bare).max() > 1e-3


def test_a_text_of_ten_thousand_characters_is_cut(tiny_encoder):
    short, long = encode_texts(["heat " * 14, "heat " * 2000], tiny_encoder, max_tokens=16)
    np.testing.assert_allclose(short, long, atol=1e-5)


@pytest.mark.parametrize("half_life", [None, 2.0])
def test_a_user_is_the_recency_weighted_mean(model, half_life):
    model.half_life = half_life
    weights = np.array([1, 2, 1, 3, 1], np.float32)
    history = Ragged(np.array([0, 4, 4, 5]), np.array([0, 1, 2, 3, 2]), weights)
    users = model.user_vectors(Queries(history, len(TEXTS)))
    decay = np.ones(4) if half_life is None else 0.5 ** (np.arange(3, -1, -1) / half_life)
    mean = (weights[:4] * decay) @ model.item_vectors[:4]
    np.testing.assert_allclose(users[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert not users[1:].any()  # an empty history, and one item without text


def test_no_text_scores_nothing(model):
    scores = model.score(Queries(Ragged.from_rows([[0]]), len(TEXTS)), np.array([[2, 5, 4]]))
    np.testing.assert_allclose(scores, [[0, 0, 1]], atol=1e-6)


def test_fitting_again_encodes_only_what_is_new(tiny_encoder, encoded):
    model = TextRecall(tiny_encoder).fit(Data(TEXTS))
    assert sorted(encoded) == sorted({text for text in TEXTS if text.strip()})
    vectors, encoded[:] = model.item_vectors, []
    model.refit(Data(list(TEXTS)))
    assert model.item_vectors is vectors
    model.refit(Data([*TEXTS, "big", "fargo", "big"]))
    assert encoded == ["big"]
    np.testing.assert_array_equal(model.item_vectors[: len(TEXTS)], vectors)
    np.testing.assert_array_equal(model.item_vectors[-2], vectors[1])
    np.testing.assert_array_equal(model.item_vectors[-1], model.item_vectors[-3])
    assert model.index.n_items == len(TEXTS) + 3
    model.fit(Data(["jaws 2!", "fargo"]))
    assert encoded == ["big"]
    np.testing.assert_array_equal(model.item_vectors, vectors[[6, 1]])


def test_only_empty_texts_are_allowed(tiny_encoder):
    model = TextRecall(tiny_encoder).fit(Data(["", " "]))
    found = model.recall(Queries(Ragged.from_rows([[0]]), 2), 3)
    np.testing.assert_array_equal(found.items, [[0, 1, -1]])
    assert not found.scores[:, :2].any()


def test_added_items_stand_near_what_they_say(tiny_encoder, encoded):
    model = TextRecall(tiny_encoder).fit(Data(TEXTS))
    encoded.clear()
    model.add_items(["fargo", "tron. drama"], 2)
    assert encoded == ["tron. drama"]
    n = len(TEXTS)
    found = model.recall(Queries(Ragged.from_rows([[1]]), n + 2), 2)
    np.testing.assert_array_equal(found.items, [[1, n]])
    model.add_items(None, 1)
    assert encoded == ["tron. drama"]
    assert not model.item_vectors[-1].any()
    with pytest.raises(InputError, match="texts has 1 entries; wanted 2"):
        model.add_items(["one"], 2)


@pytest.mark.parametrize("index", ["exact", "HNSW16"])
def test_loading_and_asking_need_no_torch(model, tiny_encoder, index, tmp_path):
    TextRecall(tiny_encoder, index=index).fit(Data(TEXTS)).save_files(tmp_path / "stage")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hybridrec import Queries, Ragged, TextRecall\n"
        "model = TextRecall.load_files(Path(sys.argv[1]))\n"
        f"found = model.recall(Queries(Ragged.from_rows([[0]]), {len(TEXTS)}), 2)\n"
        "model.add_items(None, 1)\n"
        "print(found.items.tolist(), {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "stage")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[[0, 4]] set()"


def test_no_texts_no_text_recall(tiny_encoder):
    data = Data(TEXTS)
    data.texts = None
    with pytest.raises(InputError, match=r"'text' needs item texts.*item_text="):
        TextRecall(tiny_encoder).fit(data)


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path, tiny_encoder):
    with pytest.raises(InputError, match="cannot load the encoder"):
        TextRecall(tmp_path).fit(Data(TEXTS))
    with pytest.raises(InputError, match="not a folder"):
        TextRecall(tmp_path / "nothing").fit(Data(TEXTS))
    with pytest.raises(InputError, match=r"max_tokens is 5000; .* reads at most 256"):
        TextRecall(tiny_encoder, max_tokens=5000).fit(Data(TEXTS))


def test_without_torch_the_extra_is_named(tiny_encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"hybridrec\[llm\]"):
        TextRecall(tiny_encoder).fit(Data(TEXTS))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"max_tokens": 2}, InputError),
        ({"batch_size": 0}, InputError),
        ({"half_life": -1.0}, InputError),
        ({"index": 32}, InputTypeError),
        ({"encoder": ""}, InputTypeError),
        ({"name": None}, InputTypeError),
    ],
)
def test_nonsense_is_refused_when_made(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        TextRecall(**setting)


def test_half_life_is_tried_only_where_it_was_left_open():
    assert TextRecall().half_life in TextRecall().half_lives
    assert TextRecall(half_life=None).half_lives == ()
