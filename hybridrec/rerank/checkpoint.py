"""A checkpoint's files: weights with a head of one score, what was added to them, the tokeniser."""

from __future__ import annotations

import copy
import importlib.util
import logging
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hybridrec.checks import InputError, MissingExtraError, require_extra
from hybridrec.data.pretrained import quietly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.rerank.config import CrossEncoderConfig
    from hybridrec.rerank.family import Family

__all__ = ["MARK", "Checkpoint", "load_checkpoint", "save_model"]

_log = logging.getLogger("hybridrec")

MARK = "hybridrec_mask"
"""Entry of the checkpoint's config.json: the mask that its weights were fine-tuned with."""


class Checkpoint(NamedTuple):
    """What a folder or a hub name holds.

    Attributes:
        family: how the model is fed and read.
        model: its weights, on the CPU and in evaluation mode.
        tokenizer: of transformers.
        mask: "one_way" or "full".
    """

    family: Family
    model: Any
    tokenizer: Any
    mask: str


def load_checkpoint(source: str, config: CrossEncoderConfig) -> Checkpoint:
    """Load ``source``; a head that it lacks is drawn from the seed of ``config``.

    Raises:
        InputError: an architecture or a head that does not suit, files that cannot be read, or a
            mask that the model cannot have.
        MissingExtraError: torch or transformers is not installed.
    """
    require_extra("torch", "llm")
    transformers = require_extra("transformers", "llm")
    from hybridrec.rerank.adapters import load_adapters
    from hybridrec.rerank.learnt_states import load_learnt_states
    from hybridrec.rerank.soft_tokens import drop_soft_tokens, load_soft_tokens

    with _refusals(source), quietly(transformers):
        found = _gguf(source)
        settings = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **found)
        family = _family(source, settings, config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, **found
        )
        model = _model(source, settings, family, config, found)
        load_adapters(model, source)
        load_learnt_states(model, source)
        load_soft_tokens(model, source)
    if not config.soft_tokens and drop_soft_tokens(model):
        _log.warning(
            "cross-encoder: %s was fine-tuned with soft tokens, which are left out: pass "
            "soft_tokens='als', or the name of another recaller with vectors", source,
        )  # fmt: skip
    if config.head == "yes_no":
        from hybridrec.rerank.family import YES_NO
        from hybridrec.rerank.framing import word_ids

        setattr(model.config, YES_NO, word_ids(tokenizer, config))
    return Checkpoint(family, model.eval(), tokenizer, _mask(family, model, config))


def save_model(model: Any, folder: Path) -> None:
    """Write config.json, model.safetensors and a file for each kind of thing added to the model."""
    from hybridrec.rerank.adapters import save_with_adapters
    from hybridrec.rerank.learnt_states import save_learnt_states
    from hybridrec.rerank.soft_tokens import save_soft_tokens

    save_with_adapters(model, folder)
    save_learnt_states(model, folder)
    save_soft_tokens(model, folder)


def _family(source: str, settings: Any, config: CrossEncoderConfig) -> Family:
    from hybridrec.rerank.families import family_of

    try:
        family = family_of(settings, config.unpackable)
    except InputError as error:
        raise InputError(f"cannot rerank with the model {source!r}: {error}") from None
    if config.head == "yes_no" and not family.causal:
        raise InputError(
            f"head is 'yes_no' and {source!r} is of architecture {family.model_type!r}; wanted a "
            "causal language model: use head='classification'"
        )
    if not family.packs:
        _log_unpackable(source, family)
    return family


def _log_unpackable(source: str, family: Family) -> None:
    _log.warning(
        "cross-encoder: the attention of %s (%r) cannot be packed; it is scored pair by pair",
        source, family.model_type,
    )  # fmt: skip


def _model(
    source: str, settings: Any, family: Family, config: CrossEncoderConfig, found: dict[str, str]
) -> Any:
    """The weights of ``source`` in float32, new ones drawn from the seed."""
    import torch
    import transformers

    from hybridrec.rerank.attention import ATTENTION

    kind: Any = transformers.AutoModelForSequenceClassification
    if config.head == "yes_no":
        kind = transformers.AutoModelForCausalLM
    else:
        settings.num_labels = 1
    options: dict[str, Any] = {"dtype": torch.float32}
    if family.packs:
        options["attn_implementation"] = ATTENTION
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        model, report = kind.from_pretrained(
            source,
            config=settings,
            use_safetensors=None if found else True,
            trust_remote_code=False,
            output_loading_info=True,
            **found,
            **options,
        )
        _check_head(source, family, model, report["missing_keys"])
        if found:
            model = _unquantised(model, options)
    return model


def _check_head(source: str, family: Family, model: Any, missing: Any) -> None:
    """Note a new head in the configuration; weights of the body that are missing are an error."""
    from hybridrec.rerank.family import READ

    body = f"{model.base_model_prefix}."
    absent = sorted(
        name
        for name in missing
        if not name.startswith((*family.head, *family.spare))
        and (family.packs or name.startswith(body))
    )
    if absent:
        raise InputError(f"model {source!r} has no weights for {absent[0]!r}")
    if any(name.startswith(family.head) for name in missing):
        setattr(model.config, READ, "last" if family.causal else "mean")


def _unquantised(model: Any, options: dict[str, Any]) -> Any:
    """The same weights in a model that can be saved: those of a GGUF file are float32 by now."""
    settings = copy.deepcopy(model.config)
    del settings.quantization_config
    plain = type(model)._from_config(settings, **options)
    plain.load_state_dict(model.state_dict())
    return plain


def _mask(family: Family, model: Any, config: CrossEncoderConfig) -> str:
    """The mask that "auto" stands for, or the one that was asked for, if the model can have it."""
    from hybridrec.rerank.family import READ

    if family.causal and config.mask == "full":
        raise InputError(
            f"mask is 'full' and {config.model!r} is a causal language model, whose prompts see no "
            "candidate anyway; wanted 'auto' or 'one_way'"
        )
    if not family.packs and config.mask == "one_way":
        raise InputError(
            f"mask is 'one_way' and the attention of {config.model!r} "
            f"({family.model_type!r}) cannot be packed; wanted 'auto' or 'full'"
        )
    if config.mask != "auto":
        return config.mask
    if family.causal:
        return "one_way"
    if not family.packs:
        return "full"
    tuned = getattr(model.config, MARK, None)
    if tuned in ("one_way", "full"):
        return str(tuned)
    return "one_way" if getattr(model.config, READ, None) else "full"


def _gguf(source: str) -> dict[str, str]:
    """The argument that names the GGUF file of a folder that holds one and no config.json."""
    folder = Path(source)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return {}
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise InputError(f"the folder {source!r} holds {len(files)} GGUF files; wanted one")
    if not files:
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            f"{files[0].name} in {source!r} is read by the package gguf, which is not installed; "
            "run: pip install gguf"
        )
    return {"gguf_file": files[0].name}


@contextmanager
def _refusals(source: str) -> Iterator[None]:
    """Turn whatever transformers raises on unreadable files into one error."""
    safetensors = require_extra("safetensors", "llm")
    broken = (safetensors.SafetensorError, struct.error)  # the latter from GGUF files
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, *broken) as error:
        raise InputError(
            f"cannot load the model {source!r}: {error}; wanted a folder or hub name with "
            "config.json, model.safetensors of at most one label, and a tokenizer"
        ) from error
