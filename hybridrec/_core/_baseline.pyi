"""What every build of csrc/bindings.cpp offers. Arrays must be C-contiguous and of the dtype said.

A wrong dtype raises TypeError; a wrong shape, a bad ``indptr`` or a code out of range ValueError,
before anything is read. The GIL is released while the kernels run.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

panel: Final[int]
"""Items a panel of ``packed`` holds (the last one is filled up with zeros)."""

class NotPositiveDefiniteError(ArithmeticError): ...

def cpu_builds() -> tuple[str, ...]:
    """The builds that were compiled and that this machine can run, best first."""

def gram(factors: NDArray[np.float32], *, threads: int) -> NDArray[np.float32]:
    """``factors' factors``: (n, F) -> (F, F)."""

def solve_cholesky(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    weights: NDArray[np.float32] | None,
    other: NDArray[np.float32],
    gram: NDArray[np.float32],
    ridge: NDArray[np.float32],
    *,
    alpha: float,
    target: float,
    threads: int,
) -> NDArray[np.float32]:
    """Every row's factor, exactly: (rows, F); a row with no events gets zeros.

    Row u solves (gram + Σ c·y·yᵀ + ridge[u]·I) x = Σ c·target·y over its events, with
    c = alpha·weight and y = other[item]. O(nnz·F² + rows·F³).

    Raises:
        NotPositiveDefiniteError: names the first such row.
    """

def solve_cg(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    weights: NDArray[np.float32] | None,
    other: NDArray[np.float32],
    gram: NDArray[np.float32],
    ridge: NDArray[np.float32],
    *,
    alpha: float,
    target: float,
    start: NDArray[np.float32],
    steps: int,
    threads: int,
) -> NDArray[np.float32]:
    """The same system after ``steps`` conjugate-gradient steps from ``start`` (rows, F)."""

def top_k(
    queries: NDArray[np.float32],
    packed: NDArray[np.float32],
    n_items: int,
    k: int,
    exclude_indptr: NDArray[np.int64] | None,
    exclude_items: NDArray[np.int32] | None,
    allow: NDArray[np.bool_] | None,
    *,
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(B, k) best inner products of (B, d) queries with ``packed`` (panels, d, panel) items.

    Score descending, then item ascending; -1 / -inf behind the last. 1 <= k <= n_items. A product
    beyond float32 counts as the largest finite float32 of its sign, one that overflows both ways
    as either.
    """

def select_top_k(
    scores: NDArray[np.float32],
    k: int,
    exclude_indptr: NDArray[np.int64] | None,
    exclude_items: NDArray[np.int32] | None,
    allow: NDArray[np.bool_] | None,
    *,
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The same selection over ready scores (B, I); -inf leaves an item out.

    Raises:
        ValueError: a score that could be answered is NaN or +inf.
    """
