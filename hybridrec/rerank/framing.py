"""From a template and a tokeniser to the token ids that stand around texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError
from hybridrec.data.text import template_parts
from hybridrec.rerank.prompt import Frame
from hybridrec.rerank.template import DEFAULTS, SYSTEM, Template

if TYPE_CHECKING:
    from hybridrec.rerank.config import CrossEncoderConfig
    from hybridrec.rerank.prompt import Ids, Segment
    from hybridrec.rerank.template import Parts

__all__ = ["frame_of", "word_ids"]

NOTHING = "(nothing)\n"
"""A causal model's empty history: a prompt that names a history and shows none would mislead."""


def frame_of(tokenizer: Any, config: CrossEncoderConfig, *, causal: bool) -> Frame:
    """The frame of a model by its template.

    Raises:
        InputError: the template does not suit the model, or the tokeniser lacks a token it needs.
    """
    kind = "causal" if causal else "encoder"
    text = config.template or DEFAULTS["yes_no" if config.head == "yes_no" else kind]
    if not causal:
        return _encoder_frame(tokenizer, Template.parsed(text), config.model)
    parts = template_parts(text, "template")
    if config.head == "yes_no":
        parts = _as_chat(tokenizer, parts, text, SYSTEM.format(yes=config.yes, no=config.no))
    return _causal_frame(tokenizer, Template.of_parts(parts, text), text)


def word_ids(tokenizer: Any, config: CrossEncoderConfig) -> list[int]:
    """The tokens of the words for yes and no.

    Raises:
        InputError: a word that is not one token, or both are the same.
    """
    found: list[int] = []
    for name, word in (("yes", config.yes), ("no", config.no)):
        ids = _ids(tokenizer, word)
        if len(ids) != 1:
            raise InputError(
                f"{name} is {word!r}, which the tokenizer of {config.model!r} cuts into {len(ids)} "
                "tokens; wanted a word that is one: pass another"
            )
        found += ids
    if found[0] == found[1]:
        raise InputError(f"yes and no are the same token, {found[0]}; wanted two words")
    return found


def _encoder_frame(tokenizer: Any, template: Template, model: str) -> Frame:
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls is None or sep is None:
        raise InputError(f"the tokenizer of {model!r} has no [CLS] or no [SEP] token")
    before = _segment(tokenizer, template.before, sep)
    between = _segment(tokenizer, template.between, sep)
    return Frame(
        before=((cls,), *before),
        separator=(sep,),
        nothing=() if before or between else (sep,),
        between=between,
        first=(cls,),
        last=(*_ids(tokenizer, template.after.strip()), sep),
        joint=_joint(tokenizer, cls, sep),
        history=template.history,
    )


def _segment(tokenizer: Any, parts: Parts, sep: int) -> Segment:
    """Words and context columns as one text with its own [SEP]; nothing where there are none."""
    pieces: list[Ids | str] = []
    for literal, name in parts:
        pieces += [_ids(tokenizer, literal.strip())] if literal.strip() else []
        pieces += [name] if name is not None else []
    return (*pieces, (sep,)) if pieces else ()


def _joint(tokenizer: Any, cls: int, sep: int) -> Ids:
    """What the tokeniser puts between two texts of one input behind the first one's [SEP].

    Nothing for BERT, another ``</s>`` for RoBERTa.
    """
    one = _ids(tokenizer, "a")
    pair = tuple(tokenizer("a", "a")["input_ids"])
    middle = pair[1 + len(one) : len(pair) - len(one) - 1]
    if pair != (cls, *one, *middle, *one, sep) or middle[:1] != (sep,):
        return ()
    return middle[1:]


def _causal_frame(tokenizer: Any, template: Template, text: str) -> Frame:
    last = _ids(tokenizer, template.after)
    if not last:
        raise InputError(
            f"template {text!r} ends with {{item}}; wanted words behind it, such as '\\nAnswer:', "
            "as a causal model's score is read at the last of them"
        )
    before = _pieces(tokenizer, template.before)
    start = _start(tokenizer)
    written = before[0] if before else ()
    # A chat template may have written the token that opens a text.
    if isinstance(written, str) or written[: len(start)] != start:
        before = (start, *before)
    return Frame(
        before=before,
        separator=_ids(tokenizer, "\n"),
        nothing=_ids(tokenizer, NOTHING),
        between=_pieces(tokenizer, template.between),
        first=(),
        last=last,
        history=template.history,
    )


def _pieces(tokenizer: Any, parts: Parts) -> Segment:
    pieces: list[Ids | str] = []
    for literal, name in parts:
        pieces += [_ids(tokenizer, literal)] if literal else []
        pieces += [name] if name is not None else []
    return tuple(pieces)


def _start(tokenizer: Any) -> Ids:
    """What the tokeniser puts in front of every text, such as <bos>."""
    one, whole = _ids(tokenizer, "a"), tuple(tokenizer("a")["input_ids"])
    starts = range(len(whole) - len(one) + 1)
    return next((whole[:at] for at in starts if whole[at : at + len(one)] == one), ())


def _ids(tokenizer: Any, text: str) -> Ids:
    """Token ids of a part of a template, where special tokens are meant as such."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _as_chat(
    tokenizer: Any, parts: list[tuple[str, str | None]], text: str, system: str
) -> list[tuple[str, str | None]]:
    """The parts of a user's message in the tokeniser's chat template, up to where it answers.

    A template that writes special tokens itself is taken as it is, as is every template where the
    tokeniser brings none for chats.
    """
    if any(token in text for token in tokenizer.all_special_tokens):
        return parts
    if not tokenizer.chat_template:
        return [(f"{system}\n\n{parts[0][0]}", parts[0][1]), *_answered(parts[1:])]
    # Fields travel as characters of the private use area, which no template has a meaning for.
    names = [name for _, name in parts if name is not None]
    content = "".join(
        literal + ("" if name is None else f"\ue000{names.index(name)}\ue001")
        for literal, name in parts
    )
    chat = _render(tokenizer, system, content)
    pieces = re.split("\ue000([0-9]+)\ue001", chat)
    fields = [names[int(place)] for place in pieces[1::2]]
    return list(zip(pieces[::2], [*fields, None], strict=True))


def _answered(parts: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """``parts`` with a place for the answer behind the last field, where there are no words."""
    return parts if parts and parts[-1][1] is None else [*parts, ("\nAnswer: ", None)]


def _render(tokenizer: Any, system: str, content: str) -> str:
    from jinja2 import TemplateError

    def chat(*messages: tuple[str, str]) -> str:
        said = [{"role": role, "content": text} for role, text in messages]
        # A model that can think is asked not to: the answer is its next token.
        rendered: str = tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return rendered

    try:
        return chat(("system", system), ("user", content))
    except TemplateError:  # Gemma's has no system role, and says so this way
        return chat(("user", f"{system}\n\n{content}"))
