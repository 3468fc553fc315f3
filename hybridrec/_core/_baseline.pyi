"""What every build of csrc/bindings.cpp offers. Arrays must be C-contiguous and of the dtype said.

A wrong dtype raises TypeError; a wrong shape, a bad ``indptr`` or a code out of range ValueError,
before anything is read. The GIL is released while the kernels run.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

class NotPositiveDefiniteError(ArithmeticError): ...

def cpu_builds() -> tuple[str, ...]:
    """The builds that were compiled and that this machine can run, best first."""

def gram(factors: NDArray[np.float32], *, threads: int) -> NDArray[np.float32]:
    """``factors' factors``: (n, F) -> (F, F)."""

def rotate(factors: NDArray[np.float32], axes: NDArray[np.float32], *, threads: int) -> None:
    """``factors @ axes``, in place: (n, F) and (F, F)."""

def transpose(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    weights: NDArray[np.float32] | None,
    n_items: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32] | None]:
    """indptr, rows and weights of each item: who holds it, in order of the rows."""

def solve_exact(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    weights: NDArray[np.float32] | None,
    other: NDArray[np.float32],
    shared: NDArray[np.float32],
    ridge: NDArray[np.float32],
    *,
    alpha: float,
    target: float,
    out: NDArray[np.float32],
    threads: int,
) -> None:
    """Every row's factor, exactly, into ``out`` (rows, F); a row with no events gets zeros.

    Row u solves (diag(shared + ridge[u]) + Σ c·y·yᵀ) x = Σ c·target·y over its events, with
    c = alpha·weight and y = other[item]. A row of n events costs O(m·n·F + m³), m = min(n, F).

    Raises:
        NotPositiveDefiniteError: names the first such row.
    """

def solve_cg(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    weights: NDArray[np.float32] | None,
    other: NDArray[np.float32],
    shared: NDArray[np.float32],
    ridge: NDArray[np.float32],
    *,
    alpha: float,
    target: float,
    x: NDArray[np.float32],
    steps: int,
    relaxation: float,
    threads: int,
) -> None:
    """``steps`` conjugate-gradient steps on the same system from ``x`` (rows, F), in place.

    Preconditioned by diag(shared + ridge[u]). A row ends up ``relaxation`` times as far from its
    start as the steps lead, but for one that starts from zeros. O((nnz + rows)·F) a step.
    """

class Catalogue:
    """Items made ready to be searched; immutable. ``len()`` counts them."""

    def __init__(self, items: NDArray[np.float32], *, threads: int) -> None:
        """``items`` is (I, d). O(I·d) time and memory."""

    def __len__(self) -> int: ...
    @property
    def width(self) -> int:
        """Factors of an item, d."""

    def vectors(self) -> NDArray[np.float32]:
        """(I, d) a copy of the items."""

def top_k(
    queries: NDArray[np.float32],
    catalogue: Catalogue,
    k: int,
    exclude_indptr: NDArray[np.int64] | None,
    exclude_items: NDArray[np.int32] | None,
    allow: NDArray[np.bool_] | None,
    *,
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(B, k) best inner products of (B, d) queries with the items of ``catalogue``.

    Score descending, then item ascending; -1 / -inf behind the last. 1 <= k <= I. A product
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

has_linear8: bool
"""Whether this build and CPU multiply 8-bit integers."""

has_linear16: bool
"""Whether this build and CPU multiply bfloat16."""

has_linear32: bool
"""Whether this build has :class:`Linear32`."""

class Linear8:
    """A linear layer in 8-bit integers, weights rounded once and inputs row by row."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
        """``weight`` is (N, K), ``bias`` (N,); both finite. ValueError without VNNI."""

    def apply(
        self, x: NDArray[np.float32], *, out: NDArray[np.float32], gelu: bool, threads: int
    ) -> None:
        """``out`` (T, N) = ``x`` (T, K) times the weights, plus the bias; then GELU if asked."""

    def apply_norm(
        self,
        x: NDArray[np.float32],
        residual: NDArray[np.float32],
        gain: NDArray[np.float32],
        shift: NDArray[np.float32],
        *,
        epsilon: float,
        out: NDArray[np.float32],
        threads: int,
    ) -> None:
        """``out`` (T, N) = layer norm of (``x`` times the weights, plus bias and ``residual``).

        ``residual`` is (T, N), ``gain`` and ``shift`` of the norm (N,), ``epsilon`` above 0.
        """

class Linear16:
    """The same in bfloat16 with float32 sums; weights and inputs are rounded to nearest."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
        """See :class:`Linear8`. ValueError without AVX-512 BF16."""

    def apply(
        self, x: NDArray[np.float32], *, out: NDArray[np.float32], gelu: bool, threads: int
    ) -> None:
        """See :meth:`Linear8.apply`."""

    def apply_norm(
        self,
        x: NDArray[np.float32],
        residual: NDArray[np.float32],
        gain: NDArray[np.float32],
        shift: NDArray[np.float32],
        *,
        epsilon: float,
        out: NDArray[np.float32],
        threads: int,
    ) -> None:
        """See :meth:`Linear8.apply_norm`."""

class Linear32:
    """The same in float32."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
        """See :class:`Linear8`. ValueError without AVX-512."""

    def apply(
        self, x: NDArray[np.float32], *, out: NDArray[np.float32], gelu: bool, threads: int
    ) -> None:
        """See :meth:`Linear8.apply`."""

    def apply_norm(
        self,
        x: NDArray[np.float32],
        residual: NDArray[np.float32],
        gain: NDArray[np.float32],
        shift: NDArray[np.float32],
        *,
        epsilon: float,
        out: NDArray[np.float32],
        threads: int,
    ) -> None:
        """See :meth:`Linear8.apply_norm`."""

Linear = TypeVar("Linear", Linear8, Linear16, Linear32)

def feed_forward(
    first: Linear,
    second: Linear,
    x: NDArray[np.float32],
    gain: NDArray[np.float32],
    shift: NDArray[np.float32],
    *,
    epsilon: float,
    out: NDArray[np.float32],
    threads: int,
) -> None:
    """``out`` (T, N) = layer norm of (``x`` + second(GELU(first(``x``)))), ``x`` (T, N)."""

def attend(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    kept_k: NDArray[np.float32],
    kept_v: NDArray[np.float32],
    asks: NDArray[np.int64],
    own: NDArray[np.int64],
    seen: NDArray[np.int64],
    *,
    heads: int,
    key_heads: int,
    scale: float,
    causal: bool,
    window: int,
    out: NDArray[np.float32],
    threads: int,
) -> None:
    """Softmax attention of S texts, each over its own keys and those of a prefix.

    ``q`` and ``out`` are (T, heads * D), ``k`` and ``v`` (J, key_heads * D), what was kept of an
    earlier call (P, key_heads * D) and counts as the first P keys. Text s asks with rows
    ``asks[s]:asks[s + 1]`` and looks at the key rows of ``seen[s]``, then ``own[s]`` (start, stop);
    the last of its rows stands at the last of these. Causally, a row does not look behind itself;
    with a ``window``, only at places less than that away (0: no window).
    """
