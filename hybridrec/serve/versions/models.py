"""The versions of the model in memory: loaded beside the old one, warmed, checked, swapped in."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridrec import storage
from hybridrec.checks import HybridrecError, InputError, StorageError
from hybridrec.serve.versions.checking import CheckError, check, warm
from hybridrec.serve.versions.collecting import keep_what_is_there
from hybridrec.serve.versions.loaded import Loaded, load_model

if TYPE_CHECKING:
    from pathlib import Path

    from hybridrec.serve.answers.asking import Id
    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.store.contract import Store
    from hybridrec.serve.watch.metrics_protocol import Meter

__all__ = ["CheckError", "Loaded", "Models", "NoModelError", "load_model"]

_log = logging.getLogger("hybridrec")

_CLOSING_SECONDS = 5.0
"""How long the watcher is waited for in the end."""


class NoModelError(HybridrecError):
    """No version has been loaded yet."""


@dataclass(frozen=True)
class _Held:
    """What is in memory, swapped as a whole."""

    current: Loaded | None = None
    previous: Loaded | None = None

    def all(self) -> list[Loaded]:
        """Both, as far as they are there."""
        return [each for each in (self.current, self.previous) if each is not None]


class Models:
    """The version that answers, and the one before it to go back to.

    Who was given a :class:`Loaded` keeps it: switching takes nothing from those who are being
    answered. Any thread may ask; loading takes its time and is done by one thread at a time.

    Args:
        root: the model folder.
        store: whose kept queries a new version is checked with.
        config: of these, ``batch``, ``health_overlap`` and ``watch_seconds``.
        metrics: told which version answers.
    """

    def __init__(
        self, root: Path, store: Store, config: ServeConfig, metrics: Meter | None = None
    ) -> None:
        self._root, self._store, self._config, self._metrics = root, store, config, metrics
        self._held = _Held()
        self._loading = threading.Lock()
        self._seen: str | None = None  # what CURRENT said when it was acted upon
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def current(self) -> Loaded:
        """The version that answers.

        Raises:
            NoModelError: none has been loaded.
        """
        current = self._held.current
        if current is None:
            raise NoModelError("no model is loaded yet: ask again in a moment")
        return current

    @property
    def previous(self) -> Loaded | None:
        """The one that did before; None where there was none."""
        return self._held.previous

    def get(self, version: str) -> Loaded:
        """A version in memory by its id.

        Raises:
            InputError: it is not loaded.
        """
        there = {each.version: each for each in self._held.all()}
        if version not in there:
            raise InputError(
                f"model is {version!r}, which is not loaded; there are {list(there)}: load it first"
            )
        return there[version]

    def load(self, version: str | None = None) -> Loaded:
        """Let a version answer once it has proved that it can; the one before stays in memory.

        Args:
            version: its id; None for the one that the folder calls current. The folder is not
                changed: after a restart, and for its other readers, its current version answers.

        Returns:
            The version that answers now.

        Raises:
            StorageError: there is none of that id, or it is damaged.
            CheckError: its answers are not fit to be served. Whatever is raised, the version that
                answered goes on.
        """
        with self._loading:
            wanted = storage.current(self._root)
            if version is None:
                self._seen = version = wanted
            current = self._held.current
            if current is not None and current.version == version:
                return current
            new = self._proved(version)
            self._swap(_Held(new, current))
            # Nobody here may still hold the version that went: it would be kept with what stays.
            keep_what_is_there()
            return new

    def _proved(self, version: str) -> Loaded:
        """A version that may answer, from memory or from the folder.

        Raises:
            StorageError: as :meth:`load`.
            CheckError: likewise.
        """
        held, queries = self._held, self._store.queries()
        if held.previous is not None and held.previous.version == version:
            new = held.previous
        else:
            new = load_model(self._root, version)
            warm(new, queries, self._config.batch)
        try:
            check(new, held.current, queries, self._config)
        finally:
            for each in (new, held.current):
                if each is not None:
                    each.forget(None)  # what kept queries left behind, whosever they were
        return new

    def roll_back(self) -> Loaded:
        """Let the version before answer again, here and after a restart.

        The folder's current version becomes that one, so that other readers of the folder follow.
        It may have been removed there by later saves: it answers all the same, from memory, and a
        warning says that a restart will not find it.

        Returns:
            The version that answers now; the one that did can be rolled back to in turn.

        Raises:
            InputError: there is none before this one.
        """
        with self._loading:
            held = self._held
            if held.current is None or held.previous is None:
                raise InputError("there is no version before this one in memory: load one by id")
            self._swap(_Held(held.previous, held.current))
            version = held.previous.version
            try:
                storage.set_current(self._root, version)
                self._seen = version
            except StorageError as error:
                _log.warning(
                    "version %s answers again, but a restart will load another: %s", version, error
                )
            return held.previous

    def forget(self, user: Id) -> int:
        """Drop what the versions in memory keep of a user, and how many things that were."""
        return sum(each.forget(user) for each in self._held.all())

    def watch(self) -> None:
        """Load what the folder calls current whenever that changes, in a thread of its own."""
        if self._watcher is not None or not self._config.watch_seconds:
            return
        self._watcher = threading.Thread(target=self._watch, name="hybridrec-models", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End watching; what is loaded goes on answering whoever holds it.

        A version that is just being loaded is not waited for: nobody will ask it.
        """
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join(_CLOSING_SECONDS)

    def _watch(self) -> None:
        while not self._closed.wait(self._config.watch_seconds):
            try:
                if storage.current(self._root) != self._seen:
                    self.load()
            except Exception as error:
                if not self._closed.is_set():  # else what it needed was closed meanwhile
                    self._not_served(error)

    def _not_served(self, error: Exception) -> None:
        if isinstance(error, StorageError):
            # It will be no better the next time, unless it was the disk that could not be read:
            # tried again when the folder names another.
            if isinstance(error.__cause__, OSError):
                self._seen = None
            _log.error("the new version is not served: %s", error)
        else:
            _log.error("the new version is not served yet: it is tried again", exc_info=error)
            self._seen = None

    def _swap(self, held: _Held) -> None:
        self._held = held
        current = self.current
        _log.info("version %s answers", current.version)
        if self._metrics is not None:
            self._metrics.set_model(
                current.version,
                items=current.data.n_items,
                cold_users=current.engine.report.cold_share,
            )
