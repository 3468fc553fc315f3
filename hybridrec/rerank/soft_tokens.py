"""Vectors of collaborative filtering inside a language model, added to tokens that are there.

A projected vector is added to the word embedding of one token: the user's in the prompt, an item's
at the head of its candidate. Nothing is inserted, so positions, types and masks are what they were,
and behind a gate of zero the model scores as it did without (the projector of CoLLM, arXiv
2310.19488; a gate that starts at zero as in ReZero, 2003.04887).
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybridrec.checks import InputError, require_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.ragged import Scores
    from hybridrec.rerank.packing import Pack, Pairs, Piece
    from hybridrec.rerank.vectors import Vectors

__all__ = [
    "PREFIX",
    "SoftTokens",
    "Soft",
    "add_soft_tokens",
    "drop_soft_tokens",
    "in_pack",
    "in_pairs",
    "load_soft_tokens",
    "of_soft_tokens",
    "save_soft_tokens",
]

PREFIX = "soft_tokens."
"""What the names of their parameters in a model start with."""

MARK = "hybridrec_soft_tokens"
"""Entry of the checkpoint's config.json: how wide the vectors are that its soft tokens read."""

FILE = "soft_tokens.safetensors"

COLD = 0.25
"""Share of the known items that are taken for unknown in training, so that [COLD] is learnt."""

MEASURED = 4096
"""Words by which the length of a word's embedding is measured."""


class SoftTokens(nn.Module):
    """From vectors to what is added to word embeddings; nothing, until the gates have opened.

    A vector is scaled to one length before it is read: what is left is a direction, which the
    alignment of a refit keeps, and not how often an item was taken, which a refit changes. Users
    and items lie in one space and go through one projector, so that who likes what looks alike from
    the start: with one projector each, likeness would have to be learnt first.

    Args:
        width: of the vectors, d.
        outputs: of the word embeddings.
        length: of a word's embedding, in root mean square; a gate counts in words.
    """

    def __init__(self, width: int, outputs: int, length: float = 1.0) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(width, outputs), nn.GELU(), nn.Linear(outputs, outputs)
        )
        self.user_gate = nn.Parameter(torch.zeros(1))
        self.item_gate = nn.Parameter(torch.zeros(1))
        self.cold = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("length", torch.tensor(length))
        self.length: Tensor

    @property
    def width(self) -> int:
        """Of the vectors."""
        return int(self.projector[0].in_features)  # type: ignore[arg-type]

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(p + n, outputs) float32 of (p, d) users and (n, d) items.

        Zeros are a user of whom nothing is known, who adds nothing, or an item that gets [COLD].
        """
        # In float32 under any autocast: a product of a few rows costs nothing.
        with torch.autocast(users.device.type, enabled=False):
            known = (items != 0).any(dim=1)
            if self.training:
                known &= torch.rand(len(items), device=items.device) >= COLD
            told = (users != 0).any(dim=1)
            user = _unit(self.projector(_unit(users))) * told[:, None]
            item = torch.where(known[:, None], _unit(self.projector(_unit(items))), self.cold)
            return self.length * torch.cat([self.user_gate * user, self.item_gate * item])


class Soft(NamedTuple):
    """The vectors of one forward pass, and the tokens that they are added to.

    Attributes:
        prompts: (p,) int64, where each user's token stands in the flat row of all tokens.
        users: (p, d) float32.
        heads: (n,) int64, where each candidate's first token stands.
        items: (n, d) float32.
    """

    prompts: NDArray[np.int64]
    users: Scores
    heads: NDArray[np.int64]
    items: Scores

    def into(self, model: Any, given: dict[str, Any]) -> dict[str, Any]:
        """``given`` with embeddings instead of ``input_ids``.

        Args:
            model: with soft tokens.
            given: keyword arguments of a forward, ``input_ids`` (b, L) among them.
        """
        given = dict(given)
        words = model.get_input_embeddings()(given.pop("input_ids"))
        users, items, places = (
            torch.from_numpy(part).to(words.device)
            for part in (self.users, self.items, np.concatenate([self.prompts, self.heads]))
        )
        added = model.soft_tokens(users, items).to(words.dtype)
        given["inputs_embeds"] = words.flatten(0, 1).index_add(0, places, added).view_as(words)
        return given


def in_pack(
    vectors: Vectors, pieces: list[Piece], laid: Pack, codes: NDArray[np.int32], *, causal: bool
) -> Soft:
    """Where vectors go in a pack; a kept prompt has had its user's.

    Args:
        vectors: of the queries and the catalogue.
        pieces: what the pack was made of.
        laid: the pack.
        codes: (n,) item code of each candidate of the flat list.
        causal: the user goes to the last token of a prompt, else to its first: causal models hardly
            read what the very first token says, it is where attention goes that wants nothing
            (attention sinks, arXiv 2309.17453).
    """
    starts = np.cumsum([0, *(block.tokens for block in laid.blocks)])[:-1]
    lengths = np.array([0 if block.kept else block.prefix for block in laid.blocks])
    here = np.flatnonzero(lengths)
    queries = np.array([piece.query for piece in pieces])[here]
    chosen = np.concatenate([codes[start:stop] for _, start, stop in pieces])
    prompts = starts[here] + (lengths[here] - 1 if causal else 0)
    return Soft(prompts, vectors.users[queries], laid.heads, vectors.items[chosen])


def in_pairs(
    vectors: Vectors,
    pairs: Pairs,
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    codes: NDArray[np.int32],
    *,
    causal: bool,
) -> Soft:
    """Where vectors go in pairs; see :func:`in_pack`.

    Args:
        vectors: of the queries and the catalogue.
        pairs: n of them.
        starts: (n,) where each begins in the flat row of all tokens.
        rows: (n,) the query of each.
        codes: (n,) the item of each.
        causal: as there.
    """
    lengths = pairs.prefix_lengths
    here = np.flatnonzero(lengths)
    prompts = starts[here] + (lengths[here] - 1 if causal else 0)
    return Soft(prompts, vectors.users[rows[here]], starts + lengths, vectors.items[codes])


def add_soft_tokens(model: Any, width: int, seed: int) -> bool:
    """Put soft tokens into ``model``, drawn from ``seed``; false where it has some.

    Raises:
        InputError: those that it has read vectors of another width, or its forward takes no
            embeddings.
    """
    there = getattr(model, "soft_tokens", None)
    if there is not None:
        if there.width != width:
            raise InputError(
                f"the source's vectors are {width} wide and the model was made for vectors of "
                f"{there.width}: use a source of {there.width}, or untuned()"
            )
        return False
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"a model of architecture {model.config.model_type!r} takes no embeddings instead of "
            "words: use soft_tokens=''"
        )
    embeddings = model.get_input_embeddings()
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        words = torch.arange(min(MEASURED, len(embeddings.weight)), device=model.device)
        some = embeddings(words).float()
        made = SoftTokens(width, some.shape[1], float(some.square().mean().sqrt()))
    _put(model, made)
    return True


def load_soft_tokens(model: Any, source: str) -> None:
    """Put the soft tokens that lie in the folder ``source`` into ``model``; none do nothing.

    Raises:
        InputError: they are not of this model.
    """
    width = getattr(model.config, MARK, None)
    if width is None:
        return
    path = Path(source) / FILE
    if not path.is_file():
        raise InputError(f"the model {source!r} has soft tokens and lacks their file {FILE}")
    outputs = model.get_input_embeddings().weight.shape[1]
    made = SoftTokens(width, outputs)
    try:
        made.load_state_dict(require_extra("safetensors.torch", "llm").load_file(path))
    except RuntimeError as error:
        raise InputError(f"cannot use the soft tokens in {path}: {error}") from error
    _put(model, made)


def drop_soft_tokens(model: Any) -> bool:
    """Take the soft tokens out of ``model``, and whether there were any."""
    if not hasattr(model, "soft_tokens"):
        return False
    del model.soft_tokens
    delattr(model.config, MARK)
    return True


def save_soft_tokens(model: Any, folder: Path) -> None:
    """Write the soft tokens' own file, if ``model`` has some; the vectors are not in it."""
    there = getattr(model, "soft_tokens", None)
    if there is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    state = {name: tensor.contiguous() for name, tensor in there.state_dict().items()}
    require_extra("safetensors.torch", "llm").save_file(state, folder / FILE)


def of_soft_tokens(name: str) -> bool:
    """Whether a parameter of this name is the soft tokens' own."""
    return name.startswith(PREFIX)


def _put(model: Any, made: SoftTokens) -> None:
    model.soft_tokens = made.to(model.device).eval()
    setattr(model.config, MARK, made.width)


def _unit(x: Tensor) -> Tensor:
    """Rows of root mean square 1; zeros stay zeros."""
    return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1])
