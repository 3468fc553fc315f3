"""Item text from a template with bare field names, such as ``"{title} ({year}). {genres}"``."""

from __future__ import annotations

import math
from string import Formatter
from typing import TYPE_CHECKING

from hybridrec.checks import InputError, InputTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["plain_text", "render_texts", "template_fields", "template_parts"]


def template_fields(template: str) -> list[str]:
    """The field names of ``template``, each once, in order.

    Bare names only: ``str.format`` would follow ``{title.attribute}`` and ``{title[0]}`` into
    whatever object stands there, and a template may come out of a saved model.

    Raises:
        InputTypeError: not a string.
        InputError: unbalanced braces, no field at all, or a field that is not a bare name.
    """
    return list(dict.fromkeys(name for _, name in template_parts(template) if name is not None))


def render_texts(template: str, columns: Mapping[str, Sequence[object]]) -> list[str]:
    """One text a row: missing values are empty, runs of white space become one space.

    Args:
        template: text with fields, e.g. ``"{title} ({year})"``; ``{{`` and ``}}`` are braces.
        columns: field name -> (n,) values. None and NaN count as missing; a whole float such as
            1995.0 (an integer column with gaps) reads "1995"; a list reads "a, b".

    Returns:
        n strings, of any length: a tokenizer truncates later.

    Raises:
        InputError: a field that is not a bare name, or that ``columns`` lacks.
    """
    parts = template_parts(template)
    for name in template_fields(template):
        if name not in columns:
            raise InputError(
                f"item_text uses {{{name}}}, but there is no such column; there are "
                f"{sorted(columns)}"
            )
    fields = [columns[name] for _, name in parts if name is not None]
    literals = [literal for literal, _ in parts]
    texts = []
    for values in zip(*fields, strict=True):
        words = [plain_text(value) for value in values] + [""]
        mixed = "".join(a + b for a, b in zip(literals, words, strict=False))
        texts.append(" ".join(mixed.split()))
    return texts


def template_parts(template: str, what: str = "item_text") -> list[tuple[str, str | None]]:
    """(literal, the field behind it or None) pairs, at most the last one without a field.

    Args:
        template: see :func:`template_fields`, which has the errors too.
        what: the argument's name, for messages.
    """
    if not isinstance(template, str):
        raise InputTypeError(
            f"{what} is {type(template).__name__}; wanted a template such as "
            "'{title} ({year}). {genres}'"
        )
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"{what} {template!r} cannot be read ({error}); write {{{{ and }}}} for braces"
        ) from error
    parts: list[tuple[str, str | None]] = []
    pending = ""
    for literal, name, spec, conversion in parsed:
        pending += literal
        if name is None:  # a doubled brace ends a literal without a field
            continue
        if spec or conversion or not name or name.isdigit() or set(name) & set(".[]"):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise InputError(
                f"{what} has the field {{{shown}}}; wanted a bare column name such as "
                "{title}: prepare anything else as a column of the items table"
            )
        parts.append((pending, name))
        pending = ""
    if not parts:
        raise InputError(
            f"{what} {template!r} names no column; wanted a template such as '{{title}}'"
        )
    if pending:
        parts.append((pending, None))
    return parts


def plain_text(value: object) -> str:
    """A value as a reader would write it; nothing for a missing one."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(plain_text, value)))
    if isinstance(value, bytes):
        raise InputTypeError("a text meets a column of bytes; decode it to strings first")
    return str(value)
