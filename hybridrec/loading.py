"""A saved recommender, read back."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec import storage
from hybridrec.engine import HybridRecommender
from hybridrec.persistence import SIDECAR, known_kinds, read_model, with_histories

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.persistence import Model

_log = logging.getLogger("hybridrec")


def load(
    path: str | Path,
    *,
    kinds: Mapping[str, type] | None = None,
    version: str | None = None,
    histories: bool = True,
) -> HybridRecommender:
    """A model in the folder ``path``: the current version, or one by its id.

    Args:
        path: a folder that :meth:`~hybridrec.engine.HybridRecommender.save` wrote.
        kinds: stage classes of your own by name, where the model has some.
        version: what ``save`` returned; None for the current one.
        histories: False leaves out what the users did, and keeps who they are: a service has
            histories of its own, newer ones.

    Raises:
        StorageError: there is none, or a file of it is missing, changed or newer than this version.
    """
    root = Path(path)
    if version is None:
        folder, manifest = storage.open_current(root)
    else:
        folder, manifest = storage.open_version(root, version)
    model = read_model(folder, manifest, {**known_kinds(), **(kinds or {})})
    users = storage.from_sidecar(
        root,
        SIDECAR,
        lambda beside, manifest: (
            with_histories(model.data, beside) if _fits(model, folder.name, manifest) else None
        ),
    )
    if users is not None:
        model = replace(model, data=users)
    if not histories:
        model = replace(model, data=model.data.without_events())
    return HybridRecommender._loaded(model)


def histories_version(path: str | Path) -> str | None:
    """The version that the histories beside the model in ``path`` were saved with, if it is told.

    After ``hybridrec rollback`` it is another one than the current.

    Raises:
        StorageError: the histories are damaged.
    """
    return storage.from_sidecar(Path(path), SIDECAR, lambda _, beside: beside.get("version"))


def _fits(model: Model, version: str, beside: Mapping[str, Any]) -> bool:
    """Whether the users of the sidecar have the codes that ``model`` learnt them by.

    Their histories suit any version of the same catalogue; a vector by a user's code does not.
    """
    blend = model.pipeline.blend
    stages = (*blend.recallers, *blend.scorers)
    by_code = any(getattr(stage, "reads_users", False) for stage in stages)
    if not by_code or beside.get("version", version) == version:
        return True
    _log.warning(
        "the histories beside version %s were saved with version %s, and this model knows users "
        "by their place there: they are left out",
        version,
        beside["version"],
    )
    return False
