"""Prompts as text with fields, such as ``"At {hour} o'clock. {history} Next: {item} Answer:"``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridrec.checks import InputError
from hybridrec.data.text import template_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DEFAULTS", "Template"]

Parts = tuple[tuple[str, str | None], ...]
"""Literals, each with the name of the context column behind it, or None."""

DEFAULTS = {
    "encoder": "{history}{item}",
    "causal": "Chosen so far, newest first:\n{history}Candidate:\n{item}\nChosen next:",
    "yes_no": (
        "<Instruct>: Given what somebody chose, newest first, judge whether they would choose the "
        "document next\n<Query>: {history}<Document>: {item}"
    ),
}
"""Templates of models that are given none."""

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "{yes}" or "{no}".'
)
"""The system message of a yes/no head (Qwen3-Reranker's: arXiv 2506.05176)."""


@dataclass(frozen=True)
class Template:
    """A prompt cut at its fields.

    Attributes:
        before: what stands before the history, or before the candidate where there is none.
        history: whether there is one.
        between: what stands between history and candidate.
        after: the literal behind the candidate.
    """

    before: Parts
    history: bool
    between: Parts
    after: str

    @property
    def context(self) -> tuple[str, ...]:
        """The context columns that are named, each once."""
        names = (name for _, name in (*self.before, *self.between) if name is not None)
        return tuple(dict.fromkeys(names))

    @classmethod
    def parsed(cls, text: str) -> Template:
        """Cut ``text`` at its fields.

        Raises:
            InputError: a field that is no bare name, not one {item}, two {history}, or a field
                behind {item}: candidates share what stands before them only.
        """
        return cls.of_parts(template_parts(text, "template"), text)

    @classmethod
    def of_parts(cls, parts: Sequence[tuple[str, str | None]], text: str) -> Template:
        """The template of (literal, field) pairs; ``text`` is for messages."""
        names = [name for _, name in parts if name is not None]
        if names.count("item") != 1 or names.count("history") > 1 or names[-1] != "item":
            raise InputError(
                f"template {text!r} has the fields {names}; wanted {{item}} once and last, "
                "{history} at most once, and context columns before {item}"
            )
        if len(names) == 1:
            raise InputError(
                f"template {text!r} holds nothing but the item; wanted {{history}} or a context "
                "column before it"
            )
        at = names.index("item")
        after = parts[at + 1][0] if len(parts) > at + 1 else ""
        if "history" not in names:
            return cls(_until(parts[: at + 1]), history=False, between=(), after=after)
        place = names.index("history")
        before, between = _until(parts[: place + 1]), _until(parts[place + 1 : at + 1])
        return cls(before, history=True, between=between, after=after)


def _until(parts: Sequence[tuple[str, str | None]]) -> Parts:
    """``parts`` without the last field, empty ones left out."""
    kept = [*parts[:-1], (parts[-1][0], None)]
    return tuple((literal, name) for literal, name in kept if literal or name)
