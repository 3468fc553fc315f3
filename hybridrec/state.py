"""A fitted stage as plain files: one JSON of settings, one ``.npy`` an array.

Nothing here can execute code when read: arrays load with ``allow_pickle=False``. Hashes, versions
and the atomic swap are :mod:`hybridrec.storage`'s business; a stage only fills a folder.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

C = TypeVar("C")


def config_from_json(kind: type[C], values: Mapping[str, Any]) -> C:
    """A configuration dataclass from its JSON form; refuses names it does not know."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"{kind.__name__} has no setting {unknown[0]!r}; it has {sorted(known)}")
    return kind(**values)


def config_to_json(config: Any) -> dict[str, Any]:
    """The JSON form of a configuration dataclass."""
    return dataclasses.asdict(config)


def write_state(
    folder: Path, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write ``settings`` to ``state.json`` and each array to ``<name>.npy``; makes the folder.

    Raises:
        StorageError: a name that is not a plain identifier, an array of Python objects, or a
            setting that JSON has no form for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if not name.isidentifier():
            raise StorageError(f"array name {name!r} is not a plain identifier")
        if array.dtype.hasobject:
            raise StorageError(f"array {name!r} holds Python objects; wanted numbers or strings")
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    state = {"settings": dict(settings), "arrays": sorted(arrays)}
    text = json.dumps(state, indent=1, default=python_number)
    (folder / "state.json").write_text(text + "\n", encoding="utf-8")


def python_number(value: object) -> Any:
    """A numpy scalar as the Python one, for ``json.dumps(default=)``.

    Raises:
        StorageError: anything else.
    """
    if isinstance(value, np.generic):
        return value.item()
    raise StorageError(
        f"a setting is {value!r:.100} ({type(value).__name__}); wanted JSON values: numbers, "
        "strings, lists"
    )


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What :func:`write_state` wrote.

    Raises:
        StorageError: a file is missing or cannot be read.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        arrays = {}
        for name in state["arrays"]:
            if not str(name).isidentifier():
                raise StorageError(f"{folder.name}/state.json names an array {name!r}")
            arrays[name] = np.load(folder / f"{name}.npy", allow_pickle=False)
        return state["settings"], arrays
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read the stage in {folder}: {error}") from error
