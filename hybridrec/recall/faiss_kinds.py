"""What differs from one kind of FAISS index to the next, behind one class: :class:`Proposer`.

A *place* is the position of a vector in the FAISS index, its *breadth* how much of the index a
search walks through: efSearch of a graph, nprobe of lists.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import FitError, InputError, InputTypeError, StorageError, require_extra
from hybridrec.recall.faiss_sphere import gains, largest_norm, lift

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.ragged import Mask, Scores

_log = logging.getLogger("hybridrec")

_PER_LIST = 64
"""Vectors a list that k-means is trained on: 256, FAISS' own, take four times as long."""
_WIDEST_GRAPH = 4096
"""Largest efSearch: a graph that needs more is slower than looking at every item."""
_MOST_GPU = 2048
"""Most places that a GPU index answers, and most lists that it looks into: a limit of its selection
kernels."""
_GPU_TURN = Lock()
"""Held while a GPU index is searched: the memory and streams of one serve one thread at a time."""


@dataclass(frozen=True, eq=False)
class Proposer:
    """A FAISS index over vectors, which proposes places for queries.

    Attributes:
        kind: its factory string.
        index: the index on the CPU: it grows, and it is saved.
        searched: the same index, or its copy on a GPU.
        radius: of the sphere that vectors are laid out on (:mod:`hybridrec.recall.faiss_sphere`);
            0 where they are held as they are.
    """

    kind: str
    index: Any
    searched: Any
    radius: float = 0.0

    @classmethod
    def build(cls, vectors: Scores, kind: str, *, threads: int, device: str) -> Self:
        """An index over ``vectors`` (n, d), the same bytes for any number of threads.

        Raises:
            InputError: FAISS does not know the kind, or cannot move it to the device.
            FitError: it has to be trained and cannot be with these vectors.
        """
        radius = largest_norm(vectors) if gains(kind) else 0.0
        index = _new_index(vectors.shape[1], kind, lifted=radius > 0)
        laid_out = lift(vectors, radius)
        with openmp_threads(_building_threads(kind, threads)):
            _train(index, kind, laid_out)
            index.add(laid_out)
        return cls(kind, index, index, radius).on(device)

    @classmethod
    def from_bytes(
        cls, stored: NDArray[np.uint8], kind: str, *, shape: tuple[int, int], radius: float
    ) -> Self:
        """The index of :meth:`to_bytes` over vectors of ``shape`` (n, d), on the CPU.

        Raises:
            StorageError: the bytes are no FAISS index, or one of other vectors.
        """
        faiss = require_extra("faiss", "faiss")
        try:
            index = faiss.deserialize_index(np.ascontiguousarray(stored))
        except RuntimeError as error:
            raise StorageError(f"the saved FAISS index cannot be read: {error}") from error
        if (index.ntotal, index.d - (radius > 0)) != shape:
            raise StorageError(
                f"the saved FAISS index holds {index.ntotal} vectors of width {index.d}; the "
                f"array beside it has shape {shape}"
            )
        return cls(kind, index, index, radius)

    def to_bytes(self) -> NDArray[np.uint8]:
        """The index as FAISS writes it."""
        return np.asarray(require_extra("faiss", "faiss").serialize_index(self.index), np.uint8)

    def on(self, device: str) -> Self:
        """The same index, searched on the CPU or on the first GPU.

        Raises:
            InputError: "cuda" is asked for, and FAISS has none or cannot hold this kind on it.
        """
        if device == "cpu" or (device == "auto" and not has_gpu()):
            return replace(self, searched=self.index)
        if not has_gpu():
            raise InputError(
                "device is 'cuda', and FAISS sees no GPU: install hybridrec[gpu] in place of "
                "[faiss] on a machine with one, or use device='auto'"
            )
        faiss = require_extra("faiss", "faiss")
        try:
            moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self.index)
        except RuntimeError as error:
            if device == "cuda":
                raise InputError(
                    f"device is 'cuda', where FAISS cannot hold {self.kind!r} ({_reason(error)}): "
                    "use 'Flat', 'IVF256,Flat' or 'IVF256,PQ16'"
                ) from error
            moved = self.index
        where = "CPU, for this kind" if moved is self.index else "GPU"
        _log.info("FAISS searches %s on the %s", self.kind, where)
        return replace(self, searched=moved)

    def fits(self, vectors: Scores) -> bool:
        """Whether ``vectors`` (n, d) can be added: a sphere holds none beyond its radius."""
        return self.radius == 0 or largest_norm(vectors) <= self.radius

    def grown(self, vectors: Scores, *, threads: int, device: str) -> Self:
        """A copy with ``vectors`` (n, d) behind its own."""
        index = require_extra("faiss", "faiss").clone_index(self.index)
        with openmp_threads(_building_threads(self.kind, threads)):
            index.add(lift(vectors, self.radius))
        return replace(self, index=index).on(device)

    @property
    def on_gpu(self) -> bool:
        """Whether a copy on a GPU is searched."""
        return self.searched is not self.index

    @property
    def size(self) -> int:
        """Places."""
        return int(self.index.ntotal)

    @property
    def deepest(self) -> int:
        """Most places worth asking for; beyond half of all, looking at every item is wiser."""
        half = self.size // 2
        return min(half, _MOST_GPU) if self.on_gpu else half

    @property
    def widest(self) -> int:
        """The largest breadth; 0 where a search has none."""
        faiss = require_extra("faiss", "faiss")
        lists = faiss.try_extract_index_ivf(self.index)
        if lists is not None:
            return min(int(lists.nlist), _MOST_GPU) if self.on_gpu else int(lists.nlist)
        return (
            min(self.size, _WIDEST_GRAPH) if isinstance(_core(self.index), faiss.IndexHNSW) else 0
        )

    @property
    def growth(self) -> float:
        """The power of the depth that the breadth has to grow with."""
        faiss = require_extra("faiss", "faiss")
        return 0.5 if faiss.try_extract_index_ivf(self.index) is not None else 1.0

    @property
    def compressed(self) -> bool:
        """Whether places are proposed by codes in place of the vectors themselves."""
        faiss = require_extra("faiss", "faiss")
        whole = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat)
        return not isinstance(self.index, whole)

    @property
    def selects(self) -> bool:
        """Whether FAISS can leave places out while it searches."""
        faiss = require_extra("faiss", "faiss")
        able = (faiss.IndexHNSW, faiss.IndexIVF, faiss.IndexFlat, faiss.IndexScalarQuantizer)
        return not self.on_gpu and isinstance(_core(self.index), able)

    def propose(
        self, queries: Scores, fetch: int, breadth: int, selected: Any, *, threads: int
    ) -> NDArray[np.int64]:
        """(B, fetch) places, best first as far as FAISS can tell; -1 where it finds no more.

        ``queries`` is (B, d), ``breadth`` not read where :attr:`widest` is 0, ``selected`` a
        :func:`selector` of the places that may be proposed, or None for all.
        """
        if self.radius > 0:
            queries = np.pad(queries, ((0, 0), (0, 1)))
        # By the index on the CPU: of one on a GPU FAISS does not tell that it has lists. What was
        # tuned on a CPU may be wider than a GPU can.
        settings = _search_settings(self.index, min(breadth, self.widest), selected)
        with _GPU_TURN if self.on_gpu else nullcontext(), openmp_threads(threads):
            _, places = self.searched.search(queries, fetch, params=settings)
        return np.asarray(places, np.int64)


def selector(mask: Mask) -> Any:
    """What :meth:`Proposer.propose` takes for a mask (n,) over places. O(n)."""
    bits = np.packbits(mask, bitorder="little")
    return require_extra("faiss", "faiss").IDSelectorBitmap(bits)


@contextmanager
def openmp_threads(threads: int) -> Iterator[None]:
    """FAISS on ``threads`` threads; the setting is shared with the caller, so it is put back."""
    faiss = require_extra("faiss", "faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _building_threads(kind: str, threads: int) -> int:
    """One for a graph: links made by several depend on who comes first; nothing else does."""
    return 1 if "HNSW" in kind or "NSG" in kind else threads


def _new_index(width: int, kind: str, *, lifted: bool) -> Any:
    """An empty FAISS index for inner products, or for L2 distances on a sphere."""
    faiss = require_extra("faiss", "faiss")
    if not isinstance(kind, str):
        raise InputTypeError(
            f"spec is {kind!r}; wanted 'auto' or a FAISS factory string such as 'HNSW32'"
        )
    try:
        if lifted:
            return faiss.index_factory(width + 1, kind, faiss.METRIC_L2)
        return faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"spec is {kind!r}, which FAISS refuses for vectors of width {width} "
            f"({_reason(error)}); wanted 'auto' or a factory string such as 'HNSW32' or "
            "'IVF256,Flat'"
        ) from error


def _train(index: Any, kind: str, vectors: Scores) -> None:
    if index.is_trained:
        return
    lists = require_extra("faiss", "faiss").try_extract_index_ivf(index)
    if lists is not None:
        lists.cp.max_points_per_centroid = _PER_LIST
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise FitError(
            f"FAISS cannot train {kind!r} on {len(vectors)} vectors ({_reason(error)}): use "
            "'HNSW32', which needs no training, or fewer lists"
        ) from error


def _reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its source."""
    return str(error).rsplit(": ", 1)[-1].strip()


def has_gpu() -> bool:
    """Whether this build of FAISS sees a GPU; the CPU build never does."""
    return bool(getattr(require_extra("faiss", "faiss"), "get_num_gpus", lambda: 0)())


def _core(index: Any) -> Any:
    """The index inside of transforms and refinements."""
    faiss = require_extra("faiss", "faiss")
    while True:
        if isinstance(index, faiss.IndexPreTransform):
            index = faiss.downcast_index(index.index)
        elif isinstance(index, faiss.IndexRefine):
            index = faiss.downcast_index(index.base_index)
        else:
            return index


def _search_settings(index: Any, breadth: int, selected: Any) -> Any:
    """FAISS' own object for a breadth and a selector; None where the kind takes neither."""
    faiss = require_extra("faiss", "faiss")
    if isinstance(index, faiss.IndexPreTransform):
        inner = _search_settings(faiss.downcast_index(index.index), breadth, selected)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _search_settings(faiss.downcast_index(index.base_index), breadth, selected)
        return inner and faiss.IndexRefineSearchParameters(k_factor=1, base_index_params=inner)
    sel = {} if selected is None else {"sel": selected}
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=breadth, **sel)
    if faiss.try_extract_index_ivf(index) is not None:
        return faiss.SearchParametersIVF(nprobe=breadth, **sel)
    return faiss.SearchParameters(**sel) if sel else None
