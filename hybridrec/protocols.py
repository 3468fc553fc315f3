"""The promises that each kind of stage makes. Shapes: B queries, K candidates, I items, U users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.ragged import Items, Mask, Ragged, Scores


class FitData(Protocol):
    """What a stage may read of a data set when it is fitted (``Dataset`` is one)."""

    @property
    def histories(self) -> Ragged:
        """U rows, oldest event first."""

    @property
    def n_items(self) -> int:
        """I, cold items included."""

    @property
    def texts(self) -> Sequence[str] | None:
        """(I,) the text of every item, or None where the items carry no text."""

    @property
    def ordered(self) -> bool:
        """False where the interactions had no time column."""


@runtime_checkable
class Scorer(Protocol):
    """Anything that can say how well items fit queries."""

    @property
    def name(self) -> str:
        """The column that its scores fill in ``Candidates.signals``."""

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1, finite elsewhere."""


@runtime_checkable
class Signal(Scorer, Protocol):
    """A scorer that is fitted to interactions: one more column for the fusion to read.

    The engine works on shallow copies and swaps them in when all is well, so ``fit``, ``refit`` and
    ``add_items`` bind new state and never write into the old: others may be reading it.
    """

    def fit(self, data: FitData) -> Self:
        """Learn from ``data``; returns itself."""

    def refit(self, data: FitData) -> Self:
        """Learn anew from more data, keeping every choice and whatever readers rely on.

        What was trained on this recaller's scores or vectors must stay valid: ALS starts from its
        factors and aligns the new ones to them.
        """

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Make room for ``n`` new, cold items behind the last code (``texts`` are theirs)."""

    def save_files(self, folder: Path) -> None:
        """Write the fitted state as plain files."""

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""


@runtime_checkable
class Recaller(Signal, Protocol):
    """A signal that can also search the whole catalogue."""

    half_life: float | None
    """Events after which a history item counts half when asked; None weighs all alike."""

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """The values of ``half_life`` worth trying on validation events; () where it is fixed."""

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The best ``k`` items of the catalogue, those excluded and not allowed left out."""


@runtime_checkable
class ReadsRecaller(Protocol):
    """A signal that asks a recaller beside it."""

    @property
    def reads(self) -> str:
        """The name of that recaller, which may be a signal itself."""

    def use(self, source: Recaller) -> Self:
        """Read ``source`` from now on.

        The blend calls this whenever its recallers are others: before fit A, after loading, and
        when items were added.
        """


@runtime_checkable
class Fusion(Protocol):
    """Orders candidates by the signals on them.

    It reads nothing else: what is to be known of a query or an item is a signal too, the same all
    along a list where it is about the query. What it learns must hold after a refit, which rescales
    signals: so it reads a signal relative to its list, unless the scale itself is kept.
    """

    @property
    def signals(self) -> tuple[str, ...]:
        """The columns it was fitted on, in order; () before ``fit``."""

    def fit(self, candidates: Candidates, targets: Items) -> Self:
        """Learn from n lists, each of which holds the item (n,) that was chosen; returns itself.

        The same lists give the same bits.

        Raises:
            InputError: a list does not hold its target.
            FitError: there is no list, or nothing can be learned from these.
        """

    def score(self, candidates: Candidates) -> Scores:
        """(B, K) float32, larger is better, -inf on padding.

        Raises:
            NotFittedError: before ``fit``.
            InputError: a signal it was fitted on is missing.
        """

    def rank(self, candidates: Candidates) -> Candidates:
        """The candidates in the fused order."""

    def save_files(self, folder: Path) -> None:
        """Write the fitted state as plain files."""

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""


@runtime_checkable
class HasItemVectors(Protocol):
    """A recaller whose items are vectors."""

    @property
    def item_vectors(self) -> Scores:
        """(I, d) float32; zeros for an item that nothing is known of."""


@runtime_checkable
class VectorSource(HasItemVectors, Protocol):
    """A recaller that knows a vector of whoever asks, too."""

    def user_vectors(self, queries: Queries) -> Scores:
        """(B, d) float32 by the histories; zeros where they tell nothing."""


@runtime_checkable
class ReadsVectors(Protocol):
    """A reranker that can read a recaller's vectors beside texts."""

    @property
    def vectors_from(self) -> str:
        """The name of the recaller; empty for none."""

    def use_vectors(self, source: VectorSource) -> Self:
        """Read the vectors of ``source``, which is fitted, from now on.

        The pipeline calls this whenever its recallers are others: with those of fit A before the
        fine-tuning, with those that serve after it, after loading, and when items were added.
        """


@runtime_checkable
class ReadsContext(Protocol):
    """A reranker that reads columns of the request."""

    @property
    def context_columns(self) -> tuple[str, ...]:
        """Those that every request must give a value of."""


@runtime_checkable
class Forgets(Protocol):
    """A stage that keeps something of a user between requests."""

    def forget(self, user: int) -> int:
        """Drop what is kept of a user's code, and how many things that were.

        -1 is everybody whom the model does not know: nothing tells their things apart.
        """


@runtime_checkable
class CountsCache(Protocol):
    """A stage that says how often what it keeps was of use."""

    def take_cache_counts(self) -> tuple[int, int]:
        """How often a thing was at hand and how often not, since this was asked last."""


@runtime_checkable
class VectorIndex(Protocol):
    """Maximum inner-product search over item vectors."""

    @property
    def n_items(self) -> int:
        """Vectors held."""

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        exclude: Ragged | None = None,
        allow: Mask | None = None,
    ) -> tuple[Items, Scores]:
        """(B, k) items and scores for (B, d) queries: ranked, -1 / -inf padding last."""

    def add(self, vectors: Scores) -> None:
        """Append vectors (n, d); their codes follow the last one."""

    def retire(self, codes: NDArray[Any]) -> None:
        """Never answer these codes again; codes are not reused. Repeats do no harm.

        Binds new state, as ``add`` does: a shallow copy retires alone.
        """
