"""What a :class:`FaissIndex` searches as plain arrays, and back."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import StorageError, float_matrix, frozen
from hybridrec.recall.exact_index import ExactIndex
from hybridrec.recall.faiss_choice import Settings
from hybridrec.recall.faiss_kinds import Proposer
from hybridrec.recall.faiss_search import Held

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.ragged import Scores


def stored(held: Held, target: float) -> dict[str, NDArray[Any]]:
    """The arrays that :meth:`FaissIndex.to_arrays` describes."""
    settings, proposer = held.settings, held.proposer
    radius = 0.0 if proposer is None else proposer.radius
    chosen = [target, settings.recall, settings.breadth, settings.slack, radius, held.chosen_at]
    return {
        "vectors": held.vectors,
        "faiss": np.empty(0, np.uint8) if proposer is None else proposer.to_bytes(),
        "faiss_kind": np.array("exact" if proposer is None else proposer.kind),
        "faiss_places": held.places,
        "faiss_live": held.live,
        "faiss_tuned": np.array(chosen),
        "faiss_digest": _digest(held.vectors),
    }


def restored(
    arrays: Mapping[str, NDArray[Any]], spec: str, *, threads: int, device: str
) -> tuple[Held, float | None]:
    """What :func:`stored` was given; the target is None where 0.1.0 wrote the arrays.

    It knew neither tombstones nor tuning: its settings have to be chosen yet.

    Raises:
        StorageError: the bytes are no FAISS index, or one of other vectors.
    """
    vectors = frozen(float_matrix("vectors", arrays["vectors"]).copy())
    n, width = vectors.shape
    exact = ExactIndex(vectors, threads=threads)
    if "faiss_tuned" not in arrays:
        proposer = Proposer.from_bytes(arrays["faiss"], spec, shape=(n, width), radius=0.0)
        places, live = np.arange(n, dtype=np.int32), np.ones(n, np.bool_)
        held = Held(vectors, live, exact, proposer.on(device), places, Settings(), threads, n)
        return held, None
    if not np.array_equal(arrays["faiss_digest"], _digest(vectors)):
        raise StorageError(
            f"the saved FAISS index belongs to other vectors than these {n}: fit and save again"
        )
    target, recall, breadth, slack, radius, chosen_at = arrays["faiss_tuned"].tolist()
    places, kind = arrays["faiss_places"], str(arrays["faiss_kind"])
    found = None
    if kind != "exact":
        shape = (len(places), width)
        found = Proposer.from_bytes(arrays["faiss"], kind, shape=shape, radius=radius).on(device)
    settings = Settings(int(breadth), int(slack), recall)
    live = arrays["faiss_live"]
    held = Held(vectors, live, exact, found, places, settings, threads, int(chosen_at))
    return held, target


def _digest(vectors: Scores) -> NDArray[np.uint8]:
    """(16,) what the vectors are recognised by."""
    digest = hashlib.blake2b(np.ascontiguousarray(vectors).data, digest_size=16).digest()
    return np.frombuffer(digest, dtype=np.uint8)
