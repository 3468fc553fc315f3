"""A cross-encoder on a device: texts to token ids, token ids to scores."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hybridrec.checks import InputError, InputTypeError, require_extra, resolved_device
from hybridrec.data.pretrained import quietly
from hybridrec.data.text import plain_text
from hybridrec.deadline import Pace
from hybridrec.rerank.checkpoint import MARK, load_checkpoint, save_model
from hybridrec.rerank.framing import frame_of
from hybridrec.rerank.prefix_cache import PrefixCache
from hybridrec.rerank.prompt import TokenTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hybridrec.ragged import Items, Ragged, Scores
    from hybridrec.rerank.config import CrossEncoderConfig
    from hybridrec.rerank.vectors import Vectors

log = logging.getLogger("hybridrec")

LARGE_BLOCK = 30 << 20
"""Bytes; just below the 32 MB up to which glibc learns."""

PACK_TOKENS = 4096
"""Tokens of one forward pass when scoring: activations stay near 100 MB at 1,536 wide layers."""


class Network:
    """Weights and tokeniser of one checkpoint.

    Args:
        source: a folder or a hub name.
        config: settings of the cross-encoder; of them the head, the template, the mask, the device,
            the precision, the seed of a head that the checkpoint lacks, the tokens of an item and
            whether there are soft tokens count here.

    Raises:
        InputError: an architecture, a head or a template that does not suit, files that cannot be
            read, too few positions for one item, or a device that is not there.
        MissingExtraError: torch or transformers is not installed.

    Attributes:
        family: how the model is fed and read.
        model: its weights, a head of one score among them.
        mask: "one_way" or "full".
        frame: what stands around texts.
        precision: of scoring: "fp32", "bf16" or "int8".
        pace: what the first candidates of a query take, its prompt included.
    """

    def __init__(self, source: str, config: CrossEncoderConfig) -> None:
        torch = require_extra("torch", "llm")
        self._config = config
        self._device = torch.device(
            resolved_device("cross-encoder", config.device, cuda=torch.cuda.is_available())
        )
        self._trains_low = config.precision == "bf16" or (
            config.precision in ("auto", "int8") and _multiplies_bf16(torch, self._device)
        )
        self.precision = _scoring_precision(torch, self._device, config.precision)
        self._scoring: Any = None
        self._cache = PrefixCache(config.prefix_cache)
        self.pace = Pace(least=3)  # the first ones of a process compile
        self.family, model, self._tokenizer, self.mask = load_checkpoint(source, config)
        self.model = model.to(self._device)
        self.frame = frame_of(self._tokenizer, config, causal=self.family.causal)
        positions = self.family.positions(self.model.config)
        least = positions - self.room + self.frame.tokens(config.max_item_tokens)
        if positions < least:
            raise InputError(
                f"max_item_tokens is {config.max_item_tokens}, which takes {least} positions; "
                f"model {source!r} has {positions}: lower max_item_tokens"
            )

    @property
    def tuned(self) -> bool:
        """Whether the weights were fine-tuned with the mask in use."""
        return bool(getattr(self.model.config, MARK, None) == self.mask)

    @property
    def new_head(self) -> bool:
        """Whether the checkpoint came without a head, and none was trained."""
        from hybridrec.rerank.family import READ

        settings = self.model.config
        return getattr(settings, READ, None) is not None and getattr(settings, MARK, None) is None

    @property
    def ready(self) -> bool:
        """Whether scores mean something: the head was trained, and with the mask in use."""
        return self.tuned or (not self.new_head and (self.family.causal or self.mask == "full"))

    def mark_tuned(self) -> None:
        """Note in the checkpoint's own configuration which mask it was fine-tuned with."""
        setattr(self.model.config, MARK, self.mask)

    @property
    def room(self) -> int:
        """Tokens that a prompt may have so that the longest candidate still has positions."""
        around = max(len(self.frame.first), len(self.frame.joint)) + len(self.frame.last)
        positions = self.family.positions(self.model.config)
        return positions - self._config.max_item_tokens - around

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; a special token's name inside a text is plain text."""
        if not len(texts):
            return []
        found: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return found

    def tokenised(self, texts: Sequence[str], limit: int) -> TokenTable:
        """The texts as candidates with at most ``limit`` tokens of text each."""
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if isinstance(texts, str) or wrong is not None:
            got = "one string" if wrong is None else f"{texts[wrong]!r} at [{wrong}]"
            raise InputTypeError(f"texts holds {got}; wanted a list of strings, one an item")
        return TokenTable.framed(self.tokens(texts), self.frame, limit)

    def context(self, given: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        """Token ids of the values of each column that the template names, at most an item's each.

        Args:
            given: name -> B values, as ``Queries.context`` holds them.

        Raises:
            InputError: a column that the template names is not given.
        """
        limit, found = self._config.max_item_tokens, {}
        for name in self.frame.context:
            if name not in given:
                raise InputError(
                    f"context lacks {name!r}, which the template of the cross-encoder names; there "
                    f"are {sorted(given)}: pass context={{{name!r}: ...}}, or build the data set "
                    f"with context=[{name!r}]"
                )
            plain = [getattr(value, "item", lambda value=value: value)() for value in given[name]]
            values = self.tokens([" ".join(plain_text(value).split()) for value in plain])
            cut = sum(len(value) > limit for value in values)
            if cut:
                log.warning(
                    "cross-encoder: %d of %d values of context %r cut to %d tokens",
                    cut, len(values), name, limit,
                )  # fmt: skip
            found[name] = [value[:limit] for value in values]
        return found

    def read_vectors(self, width: int) -> None:
        """Make room for vectors of this width, unless there is.

        Raises:
            InputError: the model has read vectors of another width, or can read none.
        """
        from hybridrec.rerank.soft_tokens import add_soft_tokens

        if add_soft_tokens(self.model, width, self._config.seed):
            self.weights_changed()

    @property
    def vector_width(self) -> int | None:
        """Of the vectors that the model reads; None where it reads none."""
        there = getattr(self.model, "soft_tokens", None)
        return None if there is None else int(there.width)

    @property
    def head(self) -> tuple[str, ...]:
        """What the names of parameters start with that are new where the body is not."""
        from hybridrec.rerank.soft_tokens import PREFIX

        return (*self.family.head, PREFIX)

    def trainable_scores(
        self, prompts: Ragged, items: Items, table: TokenTable, vectors: Vectors | None = None
    ) -> Tensor:
        """(b, n) float32 scores with gradients, all lists in one forward pass if packed."""
        import torch

        from hybridrec.rerank.shared_prefix import list_scores

        one_way = self.mask == "one_way"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._trains_low):
            return list_scores(
                self.model, prompts, items, table,
                family=self.family, one_way=one_way, packed=True, budget=None, vectors=vectors,
            )  # fmt: skip

    def scores(
        self,
        prompts: Ragged,
        items: Items,
        table: TokenTable,
        *,
        users: NDArray[np.int32] | None = None,
        cache: PrefixCache | None = None,
        vectors: Vectors | None = None,
        plain: bool = False,
    ) -> Scores:
        """(B, K) float32 scores, -inf where the item is -1.

        Args:
            prompts: B rows of token ids.
            items: (B, K) codes of rows of ``table``, -1 padded.
            table: token ids of the candidates.
            users: (B,) whose prompts these are, -1 unknown; see :meth:`forget`.
            cache: for the prompts, instead of the network's own.
            vectors: of the B queries and of the catalogue; needed after :meth:`read_vectors`.
            plain: score pair by pair in float32, to check by.
        """
        torch = require_extra("torch", "llm")
        from hybridrec.rerank.shared_prefix import list_scores

        one_way = self.mask == "one_way"
        with torch.inference_mode():
            found = list_scores(
                self.model if plain else self._scoring_model(), prompts, items, table,
                family=self.family, one_way=one_way, packed=not plain,
                budget=PACK_TOKENS, cache=self._cache if cache is None else cache, users=users,
                vectors=vectors,
            )  # fmt: skip
        return cast("Scores", found.cpu().numpy())

    def weights_changed(self) -> None:
        """Drop what was made of the weights as they were: the model was trained."""
        self._scoring = None
        self._cache.clear()

    @property
    def keeps_prompts(self) -> bool:
        """Whether prompts are kept between requests."""
        return self._config.prefix_cache > 0

    def forget(self, user: int) -> int:
        """Drop the prefixes kept for a user's code, and how many they were."""
        return self._cache.forget(user)

    def take_cache_counts(self) -> tuple[int, int]:
        """How often a prefix was kept, and how often not, since the last time this was asked."""
        return self._cache.take_counts()

    def _scoring_model(self) -> Any:
        """The model at the precision of scoring; made on first use."""
        if self._scoring is None:
            from hybridrec.rerank.precision import in_8_bits, in_bf16, in_fp32

            make = {"fp32": in_fp32, "bf16": in_bf16, "int8": in_8_bits}
            self._scoring = make[self.precision](self.model)
            _show_a_large_block()
        return self._scoring

    def save(self, folder: Path) -> list[str]:
        """Write config.json, model.safetensors and the tokeniser's files; the names of the last."""
        with quietly(require_extra("transformers", "llm")):
            save_model(self.model, folder)
            written = self._tokenizer.save_pretrained(folder)
        return sorted({Path(file).name for file in written if Path(file).is_file()})


def _show_a_large_block() -> None:
    """Let the allocator see one come and go.

    glibc gives blocks back to the system that are larger than any it has seen freed: a layer's
    states among them, which every layer of every request would then fetch anew (5 % of its time).
    """
    import torch

    torch.empty(LARGE_BLOCK, dtype=torch.uint8)


def _scoring_precision(torch: Any, device: Any, asked: str) -> str:
    """What "auto" stands for on this device, said in the log; what it cannot do is refused."""
    from hybridrec import _core

    if asked == "int8" and (device.type != "cpu" or not _core.has_linear8):
        where = device.type if device.type != "cpu" else "a CPU without AVX-512 VNNI"
        raise InputError(
            f"precision is 'int8' on {where}; wanted a CPU with AVX-512 VNNI: use 'auto'"
        )
    if asked != "auto":
        return asked
    if device.type == "cpu":
        chosen = "int8" if _core.has_linear8 else "fp32"
    else:
        chosen = "bf16" if _multiplies_bf16(torch, device) else "fp32"
    log.info("cross-encoder: precision 'auto' scores in %s on %s", chosen, device.type)
    return chosen


def _multiplies_bf16(torch: Any, device: Any) -> bool:
    """Whether the device has instructions for bfloat16 products: without them it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
