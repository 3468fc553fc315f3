"""Texts to vectors: the mean of an encoder's last hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.bars import track
from hybridrec.checks import InputError, require_extra
from hybridrec.data.pretrained import find_pretrained, quietly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.ragged import Scores


def encode_texts(
    texts: Sequence[str], encoder: str, *, max_tokens: int = 64, batch_size: int = 64
) -> Scores:
    """(n, d) float32 unit vectors, one a text, computed in fp32.

    What looks like a special token inside a text is read as plain characters. Texts of like length
    share a batch, so little is computed for padding.

    Args:
        texts: any strings; the part beyond ``max_tokens`` tokens is not read.
        encoder: a local folder, a hub name or an installed package of weights.
        max_tokens: counts the encoder's own special tokens too.
        batch_size: texts a forward pass.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        InputError: the encoder cannot be loaded, or reads fewer tokens than ``max_tokens``.
    """
    torch = require_extra("torch", "llm")
    tokenizer, model = _load(encoder, max_tokens)
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    # Characters stand in for tokens: counting those first would mean tokenising twice.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    starts = range(0, len(texts), batch_size)
    for start in track(starts, "encoding item texts", total=len(starts)):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [texts[row] for row in rows],
            padding=True,
            truncation=True,
            max_length=max_tokens,
            split_special_tokens=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            vectors[rows] = ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy()
    return unit_rows(vectors)


def unit_rows(rows: Scores) -> Scores:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32, copy=False)


def _load(encoder: str, max_tokens: int) -> tuple[Any, Any]:
    """The tokenizer and the model, in fp32 and ready to read ``max_tokens`` tokens."""
    torch = require_extra("torch", "llm")
    transformers = require_extra("transformers", "llm")
    safetensors = require_extra("safetensors", "llm")
    source = find_pretrained(encoder)
    try:
        with quietly(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = transformers.AutoModel.from_pretrained(
                source, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(
            f"cannot load the encoder {encoder!r}: {error}; wanted a folder or hub name with "
            "config.json, model.safetensors and a tokenizer"
        ) from error
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {encoder!r} has no padding token: set its pad_token")
    longest = min(
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", tokenizer.model_max_length),
    )
    if max_tokens > longest:
        raise InputError(f"max_tokens is {max_tokens}; {encoder!r} reads at most {longest}")
    return tokenizer, model.eval()
