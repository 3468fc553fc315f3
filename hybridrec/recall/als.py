"""Implicit alternating least squares, fitted by the compiled core; a user is a history.

Only the item side is kept: a user's vector is solved from the history whenever it is asked for.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hybridrec import _core
from hybridrec.checks import (
    FitError,
    InputError,
    float_matrix,
    frozen,
    one_of,
    real_number,
    require_extra,
    thread_count,
    whole_number,
)
from hybridrec.recall.als_solver import ALSConfig, FixedSide, aligned, factorise, loss
from hybridrec.recall.faiss_index import FaissIndex, make_index
from hybridrec.recall.implicit_model import item_factors
from hybridrec.recall.promises import check_queries, fitted, recall_vectors, score_vectors
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import FitData, VectorIndex
    from hybridrec.ragged import Items, Ragged, Scores

__all__ = ["ALS", "ALSConfig"]

_HALF_LIVES = (None, 40.0, 20.0, 10.0, 5.0, 3.0, 2.0)
_TUNED_TO = 1024
"""Users whose vectors a FAISS index is tuned to, at most."""


class ALS:
    """Matrix factorisation of implicit feedback (Hu, Koren & Volinsky, ICDM 2008).

    Minimises, with the frequency-scaled regularisation of Rendle et al. (RecSys 2022),

    Σ_observed c(t - x·y)^2 + a Σ_all (x·y)^2
    + λ [Σ_u (n_u + aI)^p |x_u|^2 + Σ_i (n_i + aU)^p |y_i|^2],

    with c = alpha · weight and t = 1; n counts events, and an item met twice adds up its weights.

    Args:
        factors: F, the length of a vector.
        alpha: what one unit of weight counts.
        unobserved_weight: a, what every pair counts, observed or not; None takes 5 times the share
            of pairs that is observed, 0.3 at most.
        regularization: λ.
        regularization_power: p; 0 regularises all rows alike, 1 by their number of events.
        epochs: sweeps over both sides. O(nnz·F + (U + I)·F²) each with ``"cg"``.
        solver: ``"cg"`` takes preconditioned conjugate-gradient steps from the last epoch's
            factors and over-relaxes them; ``"cholesky"`` solves every row exactly, at most
            O(nnz·F² + (U + I)·F³) an epoch: a row of n < F events costs O(n²·F).
        user_steps: steps of ``"cg"`` for a user.
        item_steps: steps of ``"cg"`` for an item. Its many events are not in cache, and a step
            goes through them twice: better spent on another epoch.
        relaxation: ω; ``"cg"`` moves a row ω times as far as its steps lead. On the row's own
            objective, which is quadratic, that keeps 1 - (1 - ω)² of what the steps gain, and the
            other side, still to be moved, is met halfway: with 1.4 about half as many epochs reach
            an objective as with 1 (successive over-relaxation; Young, 1954).
        half_life: recency of a history when asked (fitting weighs events plainly): events after
            which an item counts half, None for never, ``"auto"`` to let validation choose.
        index: ``"exact"``, ``"auto"`` for what suits the catalogue (see
            :class:`~hybridrec.FaissIndex`), or a FAISS factory string such as ``"HNSW32"``.
        device: where fitting runs: ``"cpu"`` is the compiled core, ``"cuda"`` a GPU through torch,
            ``"auto"`` the GPU where torch sees one. Histories are folded in on the CPU. A loaded
            model refits on the CPU.
        threads: None uses every CPU this process may use; the factors have the same bits for any.
        seed: of the initial item factors.
        name: the column that its scores fill.
    """

    def __init__(
        self,
        factors: int = 64,
        *,
        alpha: float = 1.0,
        unobserved_weight: float | None = None,
        regularization: float = 0.01,
        regularization_power: float = 1.0,
        epochs: int = 15,
        solver: str = "cg",
        user_steps: int = 3,
        item_steps: int = 1,
        relaxation: float = 1.4,
        half_life: float | str | None = "auto",
        index: str = "exact",
        device: str = "cpu",
        threads: int | None = None,
        seed: int = 0,
        name: str = "als",
    ) -> None:
        config = ALSConfig(
            factors=factors,
            alpha=alpha,
            unobserved_weight=unobserved_weight,
            regularization=regularization,
            regularization_power=regularization_power,
            epochs=epochs,
            solver=solver,
            user_steps=user_steps,
            item_steps=item_steps,
            relaxation=relaxation,
            half_life=half_life,
            index=index,
            seed=seed,
            name=name,
        )
        self._configure(config, threads, device)

    @classmethod
    def like_implicit(
        cls, *, alpha: float, regularization: float, factors: int, **settings: Any
    ) -> Self:
        """The objective of the ``implicit`` library, in its own terms (unit weights).

        There an observed pair costs alpha·(1 - x·y)^2, any other (x·y)^2. Up to a constant that
        is c = alpha - 1, t = alpha / (alpha - 1), a = 1, p = 0 here; so alpha must be above 1.
        ``settings`` are the other arguments of :class:`ALS`: epochs, solver, threads, ...
        """
        alpha = real_number("alpha", alpha, above=1.0)
        model = cls(
            factors,
            alpha=alpha - 1.0,
            unobserved_weight=1.0,
            regularization=regularization,
            regularization_power=0.0,
            **settings,
        )
        config = replace(model.config, target=alpha / (alpha - 1.0))
        model._configure(config, model._threads, model._device)
        return model

    @classmethod
    def from_implicit(cls, model: Any, **settings: Any) -> Self:
        """The item factors of a fitted ``implicit`` ALS, under its objective (unit weights).

        Histories are folded in as its ``recalculate_user`` does. ``settings`` are the arguments of
        :class:`ALS` that implicit has no word for: half_life, index, threads, ...

        Raises:
            InputTypeError: another model.
            InputError: its alpha is not above 1 (see :meth:`like_implicit`): wrap such a model in
                :class:`~hybridrec.ImplicitModel`.
        """
        items = item_factors(model)
        if not model.alpha > 1:
            raise InputError(
                f"model.alpha is {model.alpha}; wanted above 1, for its objective to be ours: wrap "
                "the model in hybridrec.ImplicitModel"
            )
        settings = {"epochs": model.iterations, **settings}
        als = cls.like_implicit(
            alpha=model.alpha,
            regularization=model.regularization,
            factors=items.shape[1],
            **settings,
        )
        als._keep(items, len(items))
        return als

    def _configure(self, config: ALSConfig, threads: int | None, device: str) -> None:
        self.config = config
        self._settled = config  # with what was left to the data, once there are some
        self._device = one_of("device", device, ("cpu", "cuda", "auto"))
        chosen = config.half_life
        self.half_life: float | None = None if isinstance(chosen, str) else chosen
        self._threads = thread_count(threads)
        self._items: Scores | None = None  # (I, F)
        # Items added later are zero rows: counting them would move every user for nothing.
        self._fitted_items = 0
        self._fixed: FixedSide | None = None  # the items, for histories to be folded in
        self._index: VectorIndex | None = None

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """The half-lives worth trying; none where one was given."""
        return _HALF_LIVES if self.config.half_life == "auto" else ()

    @property
    def item_factors(self) -> Scores:
        """(I, F) float32, read-only; a zero row for an item nobody took."""
        return fitted(self.name, self._items)

    @property
    def item_vectors(self) -> Scores:
        """The item factors, as every recaller of vectors calls them."""
        return self.item_factors

    def fit(self, data: FitData) -> Self:
        """Factorise from a random start.

        Raises:
            InputError: there is not one event.
            FitError: a row cannot be solved; names it.
        """
        self._settled = self.config.settled(data.histories, data.n_items)
        rng = np.random.default_rng(self.config.seed)
        shape = (data.n_items, self.config.factors)
        start = rng.standard_normal(shape, dtype=np.float32) * (0.1 / np.sqrt(shape[1]))
        items = self._factorise(data, start.astype(np.float32))
        self._keep(items, data.n_items, histories=data.histories)
        return self

    def refit(self, data: FitData) -> Self:
        """Factorise from the current item factors, and turn the result to lie on them.

        Inner products do not change when both sides are rotated, so the new factors are rotated
        (orthogonal Procrustes over the items that both know) to where the old ones lay: what was
        trained on the old vectors still reads the new ones. Items added since start from zero.
        """
        old = self.item_factors
        if data.n_items < len(old):
            raise InputError(
                f"data has {data.n_items} items; {self.name!r} knows {len(old)}: refit on a "
                "catalogue that only grew, or fit anew"
            )
        start = np.zeros((data.n_items, old.shape[1]), np.float32)
        start[: len(old)] = old
        new = self._factorise(data, start)
        self._keep(aligned(new, old), data.n_items, histories=data.histories)
        return self

    def user_vectors(self, queries: Queries) -> Scores:
        """(B, F) float32: each history folded in, by the exact solve, weighed by recency.

        An empty history gives a zero vector. O(nnz·F² + B·F³).
        """
        check_queries(self.name, len(self.item_factors), queries)
        histories = replace(queries.histories, weights=queries.recency_weights(self.half_life))
        return self._fold_in("query", histories)

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The ``k`` items with the largest x·y that a query does not exclude."""
        index = fitted(self.name, self._index)
        return recall_vectors(self.name, self.user_vectors, index, queries, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32, x·y; -inf where the code is -1."""
        factors = self.item_factors
        check_queries(self.name, len(factors), queries)
        return score_vectors(self.user_vectors, factors, queries, items)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items that nobody has taken yet: zero vectors, score 0."""
        old = self.item_factors
        new = np.zeros((whole_number("n", n), old.shape[1]), np.float32)
        # A copy: a shallow copy of this recaller may share the index.
        index = copy.copy(fitted(self.name, self._index))
        index.add(new)
        self._index, self._items = index, frozen(np.concatenate([old, new]))
        self._fixed = fitted(self.name, self._fixed).widened(n)

    def objective(self, data: FitData) -> float:
        """The loss of these item factors on ``data``, its users solved exactly."""
        items = self.item_factors
        users = self._fold_in("user", data.histories)
        return loss(data.histories, users, items, self._settled)

    def save_files(self, folder: Path) -> None:
        """Write the settings, the item factors and, where it is FAISS', the index."""
        arrays = {"item_factors": self.item_factors}
        if isinstance(self._index, FaissIndex):
            # An index that items were added to is not the one that a new build would give.
            arrays |= self._index.to_arrays()
            del arrays["vectors"]
        settings = {
            "config": config_to_json(self.config),
            "half_life": self.half_life,
            "unobserved_weight": self._settled.everywhere,
            "fitted_items": self._fitted_items,
        }
        write_state(folder, settings, arrays)

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        settings, arrays = read_state(folder)
        model = cls()
        config = config_from_json(ALSConfig, settings["config"])
        model._configure(config, None, "cpu")
        # Models saved before it could be left to the data say it in their settings alone.
        everywhere = settings.get("unobserved_weight", config.everywhere)
        model._settled = replace(config, unobserved_weight=everywhere)
        items = float_matrix("item_factors", arrays["item_factors"], columns=config.factors)
        index = None
        if "faiss" in arrays:
            index = FaissIndex.from_arrays(
                {**arrays, "vectors": items}, config.index, threads=model._threads
            )
        fitted_items = whole_number("fitted_items", settings["fitted_items"], least=1)
        model._keep(items, fitted_items, index=index)
        model.half_life = settings["half_life"]
        return model

    def _keep(
        self,
        items: Scores,
        fitted_items: int,
        *,
        index: VectorIndex | None = None,
        histories: Ragged | None = None,
    ) -> None:
        """Hold fitted factors; a new index is tuned to the users of ``histories``, if given."""
        self._fitted_items = fitted_items
        self._fixed = FixedSide(
            items.copy(), self._settled, threads=self._threads, catalogue=fitted_items
        )
        if index is None:
            users = None
            if histories is not None and self.config.index != "exact":
                rng = np.random.default_rng(self.config.seed)
                active = np.flatnonzero(histories.lengths)
                sample = rng.permutation(active)[:_TUNED_TO]
                users = self._fold_in("user", histories.select(np.sort(sample)))
            index = make_index(items, self.config.index, queries=users, threads=self._threads)
        self._index, self._items = index, frozen(items)

    def _factorise(self, data: FitData, items: Scores) -> Scores:
        histories = data.histories
        if not len(histories.items):
            raise InputError("data has no events: ALS needs at least one to learn from")
        new = self._on_device(histories, items)
        if not np.isfinite(new).all():
            row = int(np.flatnonzero(~np.isfinite(new).all(axis=1))[0])
            raise FitError(
                f"the factor of item {row} is not finite: scale the weights down or raise "
                "regularization"
            )
        return new

    def _on_device(self, histories: Ragged, items: Scores) -> Scores:
        if self._device == "cuda" or (self._device == "auto" and find_spec("torch")):
            on_device = require_extra("hybridrec.recall.als_torch", "llm")
            device = on_device.resolved(self._device)
            if device != "cpu":
                return np.asarray(
                    on_device.factorise(histories, items, self._settled, device=device)
                )
        return factorise(histories, items, self._settled, threads=self._threads)

    def _fold_in(self, side: str, histories: Ragged) -> Scores:
        """(rows, F): the exact factor of each history against the fitted items."""
        fixed = fitted(self.name, self._fixed)
        users = fixed.solve(histories, side=side)
        _core.rotate(users, np.ascontiguousarray(fixed.axes.T), threads=self._threads)
        return users
