"""A BERT-type cross-encoder and its tokeniser, from and to a folder of the Hugging Face layout."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError, require_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = logging.getLogger("hybridrec")

MARK = "hybridrec_mask"
"""Entry of config.json: the mask that the weights were fine-tuned with."""


def resolve_device(device: str) -> str:
    """``"auto"`` as ``"cuda"`` or ``"cpu"``; the others as they are, if they are there.

    Raises:
        InputError: "cuda" where there is none.
    """
    torch = require_extra("torch", "llm")
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("cross-encoder: device auto is %s", found)
        return found
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no GPU; wanted 'auto' or 'cpu'")
    return device


def load_model(source: str, *, attention: str, device: str, seed: int) -> Any:
    """A BertForSequenceClassification with one label, in evaluation mode.

    A head that the checkpoint lacks is drawn from ``seed``; torch's own generators stay untouched.

    Args:
        source: a folder or a hub name.
        attention: name of an attention implementation of transformers.
        device: "cpu" or "cuda".
        seed: of the new head.

    Raises:
        InputError: not a BERT encoder, another number of labels, or files that cannot be read.
    """
    torch = require_extra("torch", "llm")
    transformers = require_extra("transformers", "llm")
    with _refusals(source), _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(
            source, num_labels=1, trust_remote_code=False
        )
        if config.model_type != "bert" or config.is_decoder:
            raise InputError(
                f"model {source!r} has the architecture {config.model_type!r}; wanted an encoder "
                "of type 'bert'"
            )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    absent = [k for k in report["missing_keys"] if not k.startswith(("classifier", "bert.pooler"))]
    if absent:
        raise InputError(f"model {source!r} has no weights for {sorted(absent)[0]!r}")
    return model.to(device).eval()


def load_tokenizer(source: str) -> Any:
    """The tokeniser of a checkpoint, for :func:`token_ids`.

    Raises:
        InputError: files that cannot be read, or no [CLS] or [SEP].
    """
    transformers = require_extra("transformers", "llm")
    with _refusals(source), _quiet(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise InputError(f"the tokenizer of {source!r} has no [CLS] or no [SEP] token")
    return tokenizer


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens inside it read as plain text, none added."""
    if not len(texts):
        return []
    ids: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    return ids


def save_checkpoint(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    transformers = require_extra("transformers", "llm")
    with _quiet(transformers):
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


@contextmanager
def _refusals(source: str) -> Iterator[None]:
    """Turn what transformers raises on unreadable files into one error."""
    safetensors = require_extra("safetensors", "llm")
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(
            f"cannot load the model {source!r}: {error}; wanted a folder or hub name with "
            "config.json, model.safetensors, a tokenizer and at most one label"
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Hold back transformers' bars and its report of a head that is new on purpose."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
