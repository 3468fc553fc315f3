"""Finding items by what their titles hold, and by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.serve.versions.loaded import Loaded


def search(loaded: Loaded, text: str, limit: int) -> list[int]:
    """The codes of at most ``limit`` items that suit ``text``.

    First the one of that id, then titles that begin so, then those that hold every word of it; no
    text at all finds the first items there are. It reads every title, some milliseconds for 100,000
    of them: never on the event loop.
    """
    found = dict.fromkeys(int(code) for code in loaded.item_codes([text]) if code >= 0)
    for code in _by_title(loaded, text.casefold().strip()):
        if len(found) >= limit:
            break
        found[code] = None
    return list(found)[:limit]


def _by_title(loaded: Loaded, text: str) -> Iterator[int]:
    words = text.split()
    behind = []
    for code, title in enumerate(loaded.folded_titles):
        if title.startswith(text):
            yield code
        elif all(word in title for word in words):
            behind.append(code)
    yield from behind
