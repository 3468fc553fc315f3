"""Finding items by what their titles hold, and by their ids."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.serve.versions.loaded import Loaded


class Catalogue:
    """The items of one version of the model, to be searched.

    A search reads every title, some milliseconds for 100,000 of them: never on the event loop.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    @property
    def version(self) -> str:
        """Of the model."""
        return self._loaded.version

    def search(self, text: str, limit: int) -> list[int]:
        """The codes of at most ``limit`` items that suit ``text``.

        First the one of that id, then titles that begin so, then those that hold every word of it;
        no text at all finds the first items there are.
        """
        found = dict.fromkeys(int(code) for code in self._loaded.item_codes([text]) if code >= 0)
        for code in self._by_title(text.casefold().strip()):
            if len(found) >= limit:
                break
            found[code] = None
        return list(found)[:limit]

    def _by_title(self, text: str) -> Iterator[int]:
        words = text.split()
        behind = []
        for code, title in enumerate(self._titles):
            if title.startswith(text):
                yield code
            elif all(word in title for word in words):
                behind.append(code)
        yield from behind

    @cached_property
    def _titles(self) -> list[str]:
        return [title.casefold() for title in self._loaded.titles]
