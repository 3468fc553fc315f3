"""What a model made of prompts it has read: kept for the next request of the same user."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hybridrec.rerank.layout import States

MEGABYTE = 1 << 20


class _Entry(NamedTuple):
    states: States
    size: int
    users: set[int]


class PrefixCache:
    """Prefix states by the prompt's token ids, the longest unused dropped first; thread-safe.

    One belongs to one set of weights at one precision.

    Args:
        megabytes: what the states may take; 0 keeps nothing.
    """

    def __init__(self, megabytes: int) -> None:
        self._room = megabytes * MEGABYTE
        self._size = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._guard = threading.Lock()
        self._found = self._missed = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keeps(self) -> bool:
        """Whether there is any room."""
        return self._room > 0

    @property
    def size(self) -> int:
        """Bytes that the kept states take."""
        return self._size

    def get(self, prompt: bytes, user: int = -1) -> States | None:
        """The states of a prompt, noted as ``user``'s too (-1: somebody's); None if not kept."""
        with self._guard:
            entry = self._entries.get(prompt)
            if entry is None:
                self._missed += self.keeps
                return None
            self._found += 1
            self._entries.move_to_end(prompt)
            entry.users.add(user)
            return entry.states

    def take_counts(self) -> tuple[int, int]:
        """How often a prompt was kept, and how often not, since the last time this was asked."""
        with self._guard:
            counts = self._found, self._missed
            self._found = self._missed = 0
            return counts

    def put(self, prompt: bytes, states: States, user: int = -1) -> None:
        """Keep the states of a prompt of ``user`` (-1: somebody's), unless they do not fit."""
        size = sum(tensor.numel() * tensor.element_size() for pair in states for tensor in pair)
        with self._guard:
            if size > self._room:
                return
            known = self._entries.pop(prompt, None)
            users = set() if known is None else known.users
            self._size -= 0 if known is None else known.size
            self._entries[prompt] = _Entry(states, size, users | {user})
            self._size += size
            while self._size > self._room:
                self._size -= self._entries.popitem(last=False)[1].size

    def forget(self, user: int) -> int:
        """Drop what was kept for ``user``, and how many prompts that were.

        -1 is everybody whom the model does not know.
        """
        with self._guard:
            gone = [prompt for prompt, entry in self._entries.items() if user in entry.users]
            for prompt in gone:
                self._size -= self._entries.pop(prompt).size
            return len(gone)

    def clear(self) -> None:
        """Drop everything: the weights have changed."""
        with self._guard:
            self._entries.clear()
            self._size = 0
