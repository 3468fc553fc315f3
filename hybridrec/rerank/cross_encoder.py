"""The second stage: a cross-encoder that reads a history once and scores all candidates with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hybridrec.checks import InputError, NotFittedError, StorageError, codes, require_extra
from hybridrec.ragged import Ragged
from hybridrec.rerank.config import CrossEncoderConfig
from hybridrec.rerank.network import Network
from hybridrec.rerank.prompt import TokenTable, prefixes
from hybridrec.rerank.reading import Reading
from hybridrec.rerank.sampling import Draws, check_targets, mean_ndcg
from hybridrec.rerank.vectors import Vectors
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.deadline import Deadline
    from hybridrec.protocols import VectorSource
    from hybridrec.ragged import Items, Scores
    from hybridrec.rerank.finetune import TrainingLog

__all__ = ["CrossEncoder", "CrossEncoderConfig"]

log = logging.getLogger("hybridrec")

_FILES = ("config.json", "model.safetensors", "state.json")


class CrossEncoder:
    """A language model that scores candidates against the text of a query's history.

    An encoder (BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ELECTRA, ModernBERT) or a causal model
    (Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3). The prompt is the text of the newest items, newest
    first, and whatever a template adds. It is read once: candidates attend to it and to themselves,
    so all of a user's share one forward pass. For a causal model that changes nothing; an encoder
    is fine-tuned to it.

    Args:
        model: a folder, a hub name, or the name of a package that carries weights.
        **settings: see :class:`CrossEncoderConfig`.

    Weights are loaded on first use. After :meth:`prepare`, scoring only reads.
    """

    def __init__(self, model: str | Path = CrossEncoderConfig.model, **settings: Any) -> None:
        self.config = config_from_json(CrossEncoderConfig, {"model": str(model), **settings})
        self._loaded: Network | None = None
        self._table: TokenTable | None = None
        self._source: VectorSource | None = None
        self._warned = False

    @property
    def name(self) -> str:
        """The column that the scores fill."""
        return self.config.name

    @property
    def tuned(self) -> bool:
        """Whether the weights were fine-tuned with this mask."""
        return self._network().tuned

    @property
    def n_items(self) -> int:
        """Items whose text is known.

        Raises:
            NotFittedError: before :meth:`prepare`.
        """
        return len(self._catalogue())

    @property
    def context_columns(self) -> tuple[str, ...]:
        """Columns that every request must give a value of: those that the template names."""
        return tuple(self._network().frame.context)

    def untuned(self) -> Self:
        """A new one of the same settings and catalogue, over the weights of ``model`` as they came.

        What a fine-tuned model is compared with, and what the next fine-tuning starts from.
        """
        fresh = type(self)(**config_to_json(self.config))
        fresh._table = self._table
        fresh._source = self._source
        return fresh

    @property
    def vectors_from(self) -> str:
        """The name of the recaller whose vectors are read; empty for none."""
        return self.config.soft_tokens

    def use_vectors(self, source: VectorSource) -> Self:
        """Read what ``source`` knows of users and items beside their texts.

        A projected vector is added to a token of the prompt, the user's, and to the first of each
        candidate, the item's; an item that the source knows nothing of gets a learnt [COLD]. At
        first that changes no score: :meth:`finetune` opens the gates. The vectors stay with their
        source, which a recommender passes on by itself; after :meth:`load_files` call this again.

        Args:
            source: a fitted recaller of the same catalogue, such as :class:`~hybridrec.ALS`. It may
                be fitted to more later on, if that keeps its axes, as ``refit`` does.

        Raises:
            InputError: ``soft_tokens`` is empty, or the vectors are not as wide as those that the
                weights were fine-tuned with.
        """
        if not self.vectors_from:
            raise InputError(
                "soft_tokens is '', so no vectors are read: pass soft_tokens='als', or the name of "
                "whatever recaller has them, when making the cross-encoder"
            )
        if self._loaded is not None:
            self._loaded.read_vectors(source.item_vectors.shape[1])
        self._source = source
        return self

    def prepare(self, texts: Sequence[str]) -> Self:
        """Tokenise the catalogue: text i belongs to item code i.

        Raises:
            InputTypeError: a text that is not a string.
            InputError: the checkpoint cannot be used.
        """
        self._table = self._tokenised(texts, "item texts", self.config.max_item_tokens)
        return self

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Append the texts of ``n`` new items behind the last code.

        Raises:
            InputError: not one text an item.
        """
        got = 0 if texts is None else len(texts)
        if texts is None or got != n:
            raise InputError(f"texts has {got} entries; wanted {n}, one a new item")
        new = self._tokenised(texts, "item texts", self.config.max_item_tokens)
        self._table = self._catalogue().extended(new)

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
            candidates: n lists (n, K) that hold their target; negatives are drawn from them.
            targets: (n,) item codes.
            held_out: lists of other users; the epoch with the best NDCG@10 on them is kept.

        Raises:
            NotFittedError: before :meth:`prepare`.
            InputError: no lists, lengths that differ, or a list without its target.
            FitError: the loss is not finite.
        """
        from hybridrec.rerank.finetune import train

        items = self._checked(queries, candidates.items)
        wanted = check_targets(items, targets)
        if not len(items):
            raise InputError("fine-tuning got no lists; wanted at least one whose target is in it")
        evaluate = None if held_out is None else self._evaluation(*held_out)
        network = self._network()
        context = network.context(queries.context)
        reading = self._reading(queries, context)
        draws = Draws(
            items, wanted, queries.histories, history=self.config.history,
            tuning=self.config.finetuning, seed=self.config.seed, tokens=reading.tokens,
        )  # fmt: skip

        def score_lists(rows: NDArray[np.int64], lists: Items, histories: Ragged | None) -> Tensor:
            if histories is None:
                return reading.trainable_scores(rows, lists)
            given = {name: [values[row] for row in rows] for name, values in context.items()}
            return reading.trainable_scores(rows, lists, self._laid(histories, given)[0])

        read = [
            a for rows in (reading.prompts, reading.table.rows) for a in (rows.indptr, rows.items)
        ]
        outcome = train(
            network.model, score_lists, draws,
            evaluate=evaluate, config=self.config, head=network.head,
            told_by=(*read, *(reading.vectors or ())),
        )  # fmt: skip
        network.weights_changed()
        network.mark_tuned()
        return outcome

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 scores of (B, K) item codes; -inf where the code is -1.

        Raises:
            NotFittedError: before :meth:`prepare`.
            InputError: another number of rows, a code out of range, or another catalogue.
        """
        items = self._checked(queries, items)
        self._warn_untuned()
        return self._reading(queries).scores(items)

    def score_within(self, queries: Queries, items: Items, deadline: Deadline) -> Scores:
        """What :meth:`score` says of the first columns, as many as there is time for.

        Goes through ``items`` from the left, a few columns at a time, and begins no more of them
        than it expects to end in time.

        Returns:
            (B, reached) float32, with 0 <= reached <= K.

        Raises:
            NotFittedError, InputError: as :meth:`score` does.
        """
        items = self._checked(queries, items)
        self._warn_untuned()
        return self._reading(queries).scores_within(items, deadline)

    def forget(self, user: int) -> int:
        """Drop what is kept of the prompts of a user's code, and how many prompts that were.

        -1 stands for everybody whom the model does not know, and for histories without a user.
        """
        return 0 if self._loaded is None else self._loaded.forget(user)

    def take_cache_counts(self) -> tuple[int, int]:
        """How often the states of a prompt were at hand and not, since this was asked last."""
        return (0, 0) if self._loaded is None else self._loaded.take_cache_counts()

    def score_pairs(self, queries: Queries, items: Items) -> Scores:
        """What :meth:`score` says, each pair of prompt and candidate on its own: slow, to check by.

        Runs transformers' own attention in float32 with its own mask, not the packed one.
        """
        items = self._checked(queries, items)
        return self._reading(queries).scores(items, plain=True)

    def score_texts(
        self,
        prompt: str,
        candidates: Sequence[str],
        *,
        context: Mapping[str, Any] | None = None,
    ) -> Scores:
        """(n,) float32 scores of ``candidates`` behind ``prompt``; needs no catalogue.

        A prompt keeps its beginning where the model has too few positions for all of it, and a
        candidate its first ``max_item_tokens`` tokens.

        Args:
            prompt: what stands where the template has the history.
            candidates: n texts.
            context: the value of each context column that the template names.

        Raises:
            InputTypeError: something that is no string.
            InputError: a context column is missing, or the template has no history.
        """
        network = self._network()
        if not network.frame.history:
            raise InputError(
                f"template is {self.config.template!r}, which has no {{history}} that the prompt "
                "could take the place of: call score with context columns"
            )
        given = {name: [value] for name, value in (context or {}).items()}
        values = network.context(given)
        around = network.frame.tokens(0) - len(network.frame.nothing)
        around += sum(len(value[0]) for value in values.values())
        limit = network.room - around - len(network.frame.separator)
        whole = self._tokenised([prompt], "prompts", limit)
        table = self._tokenised(candidates, "candidates", self.config.max_item_tokens)
        self._warn_untuned()
        rows, _ = prefixes(Ragged.from_rows([[0]]), whole, 1, network.room, values)
        items = np.arange(len(table), dtype=np.int32)[None]
        width = network.vector_width
        vectors = None if width is None else Vectors.unknown(1, len(table), width)
        scores: Scores = network.scores(rows, items, table, vectors=vectors)[0]
        return scores

    def save_files(self, folder: Path) -> None:
        """Write the weights in the Hugging Face layout, the settings and the catalogue's tokens.

        Raises:
            NotFittedError: before :meth:`prepare`.
        """
        table = self._catalogue()
        settings = {
            "config": config_to_json(self.config),
            "truncated": table.truncated,
            "tokenizer": self._network().save(folder),
        }
        write_state(folder, settings, {"indptr": table.rows.indptr, "tokens": table.rows.items})

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; runs no code from the folder.

        Raises:
            StorageError: a file is missing or damaged, or not of a model that can rerank.
        """
        _check_files(folder, _FILES)
        settings, arrays = read_state(folder)
        # Where a file of the tokeniser is missing transformers makes up an empty one.
        _check_files(folder, settings.get("tokenizer", ["tokenizer.json"]))
        try:
            loaded = cls(**CrossEncoderConfig.migrated(settings["config"]))
            rows = Ragged(arrays["indptr"], arrays["tokens"])
            network = Network(str(folder), loaded.config)
            codes("tokens", rows.items, network.model.config.vocab_size)
            loaded._table = TokenTable(rows, network.frame, settings["truncated"])
            loaded._loaded = network
        except (KeyError, TypeError, InputError) as error:
            raise StorageError(f"cannot read the cross-encoder in {folder}: {error}") from error
        return loaded

    def _network(self) -> Network:
        """The weights, loaded on first use."""
        if self._loaded is None:
            require_extra("torch", "llm")
            from hybridrec.data.pretrained import find_pretrained

            self._loaded = Network(find_pretrained(self.config.model), self.config)
        return self._loaded

    def _catalogue(self) -> TokenTable:
        if self._table is None:
            raise NotFittedError("the cross-encoder knows no item texts: call prepare(texts) first")
        return self._table

    def _tokenised(self, texts: Sequence[str], what: str, limit: int) -> TokenTable:
        table = self._network().tokenised(texts, limit)
        if table.truncated:
            log.warning(
                "cross-encoder: %d of %d %s cut to %d tokens",
                table.truncated, len(table), what, limit,
            )  # fmt: skip
        return table

    def _reading(
        self, queries: Queries, context: Mapping[str, list[list[int]]] | None = None
    ) -> Reading:
        """The queries as the network reads them; says where prompts were cut."""
        network = self._network()
        if context is None:
            context = network.context(queries.context)
        prompts, cut = self._laid(queries.histories, context)
        if cut:
            log.warning(
                "cross-encoder: %d of %d prompts left old items out to keep within %d tokens",
                cut, len(prompts), network.room,
            )  # fmt: skip
        return Reading(network, self._catalogue(), prompts, queries.users, self._vectors(queries))

    def _vectors(self, queries: Queries) -> Vectors | None:
        if not self.vectors_from:
            return None
        if self._source is None:
            raise NotFittedError(
                f"soft_tokens is {self.vectors_from!r} and the cross-encoder has no vectors to "
                "read: call use_vectors(recaller) with a fitted one, or pass soft_tokens=''"
            )
        vectors = Vectors.of(self._source, queries)
        self._network().read_vectors(vectors.items.shape[1])
        return vectors

    def _laid(
        self, histories: Ragged, context: Mapping[str, list[list[int]]]
    ) -> tuple[Ragged, int]:
        """The prompts of histories, and how many of them had to leave items out."""
        room = self._network().room
        return prefixes(histories, self._catalogue(), self.config.history, room, context)

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
        network = self._network()
        if self._warned or network.ready:
            return
        self._warned = True
        if network.new_head:
            log.warning(
                "cross-encoder: the head of %s is new, so that its scores mean nothing before it "
                "is fine-tuned: call finetune", self.config.model,
            )  # fmt: skip
        else:
            log.warning(
                "cross-encoder: %s was never fine-tuned with mask='one_way'; call finetune, or use "
                "mask='full'", self.config.model,
            )  # fmt: skip

    def _evaluation(
        self, queries: Queries, candidates: Candidates, targets: NDArray[Any]
    ) -> Callable[[], float]:
        """NDCG@10 of lists that are not trained on, by the weights as they are when called."""
        items = self._checked(queries, candidates.items)
        wanted = check_targets(items, targets)

        def ndcg() -> float:
            self._network().weights_changed()
            return mean_ndcg(items, self._reading(queries).scores(items), wanted)

        return ndcg


def _check_files(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise StorageError(f"the cross-encoder in {folder} has no {missing[0]}: save it again")
