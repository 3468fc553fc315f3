"""Models of the ``implicit`` library as recallers; the only door to that library.

What a model has learnt is read out once, as plain arrays: only fitting needs ``implicit``.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix

from hybridrec.checks import (
    FitError,
    InputError,
    InputTypeError,
    NotFittedError,
    float_matrix,
    frozen,
    require_extra,
    whole_number,
)
from hybridrec.recall.faiss_index import make_index
from hybridrec.recall.implicit_state import FoldedIn, Learnt, Neighbours, OfUsers
from hybridrec.recall.promises import check_half_life, check_name, check_queries, fitted
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Scores

__all__ = ["ImplicitConfig", "ImplicitModel", "item_factors"]

_HALF_LIVES = (None, 40.0, 20.0, 10.0, 5.0, 3.0, 2.0)

_LMF = "implicit.cpu.lmf.LogisticMatrixFactorization"
_ALS = tuple(f"implicit.{where}.als.AlternatingLeastSquares" for where in ("cpu", "gpu"))
_BPR = tuple(f"implicit.{where}.bpr.BayesianPersonalizedRanking" for where in ("cpu", "gpu"))
_OF_USERS = (*_BPR, _LMF)
_ITEM_ITEM = tuple(
    f"implicit.nearest_neighbours.{kind}Recommender"
    for kind in ("ItemItem", "Cosine", "TFIDF", "BM25")
)
_KINDS = (*_ALS, *_OF_USERS, *_ITEM_ITEM)


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig:
    """Settings of :class:`ImplicitModel`.

    Attributes:
        kind: the class of ``implicit``, with its module.
        settings: the arguments of its constructor, as JSON values.
    """

    kind: str
    settings: dict[str, Any]
    half_life: float | str | None = "auto"
    name: str = "implicit"

    def __post_init__(self) -> None:
        _check_kind(self.kind, _KINDS)
        check_half_life(self.half_life)
        if self.kind in _OF_USERS and self.half_life not in ("auto", None):
            raise InputError(
                f"half_life is {self.half_life!r}; {self.kind} does not read the history: leave "
                "half_life out"
            )
        check_name(self.name)


class ImplicitModel:
    """A model of the ``implicit`` library as a recaller.

    What the model has learnt is copied: it is never changed, nor asked again. Row u and column i
    of the matrix it was fitted on must be user u and item i in the codes of the data set.

    How an item scores depends on the kind of model:

    - ``AlternatingLeastSquares`` solves a vector for the history, as its ``recalculate_user`` does
      (an item met twice adds up its weights), and takes the inner product;
    - item-item models (cosine, TF-IDF, BM25) sum the item's similarities to the history;
    - BPR and LMF cannot fold a history in: they take the vector learnt for ``queries.users``, and
      refuse users they were not fitted on.

    Args:
        model: one of these, made for the CPU or the GPU. It need not be fitted: :meth:`fit` makes
            another of its settings (a copy of a generator as ``random_state`` gives the seed).
        half_life: events after which a history item counts half; None weighs all alike, and
            "auto" does so until the engine chooses on validation events.
        name: the column that the scores fill.

    Raises:
        InputTypeError: a model of another class.
        InputError: what it learnt is not finite, or a half-life where no history is read.
    """

    half_life: float | None

    def __init__(
        self, model: Any, *, half_life: float | str | None = "auto", name: str = "implicit"
    ) -> None:
        _check_kind(_kind(model), _KINDS)
        config = ImplicitConfig(
            kind=_kind(model), settings=_settings(model), half_life=half_life, name=name
        )
        self._configure(config, _learnt(model) if _is_fitted(model) else None)

    def _configure(self, config: ImplicitConfig, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        self.config = config
        self.half_life = None if isinstance(config.half_life, str) else config.half_life
        self._state: Learnt | None = None if arrays is None else _state(config, arrays)

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def reads_users(self) -> bool:
        """Whether it knows users by their codes and does not read what they did."""
        return self.config.kind in _OF_USERS

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """The half-lives worth trying; none where one was given or no history is read."""
        return _HALF_LIVES if not self.reads_users and self.config.half_life == "auto" else ()

    def fit(self, data: FitData) -> Self:
        """Fit a new model of the same class and settings; weights of the same pair add up.

        Raises:
            InputError: there is not one event, or what is learnt is not finite.
            FitError: ``implicit`` gives up.
            MissingExtraError: ``implicit`` is not installed.
        """
        rows = data.histories
        if not len(rows.items):
            raise InputError(f"data has no events: {self.name!r} needs at least one to learn from")
        weights = np.ones(len(rows.items)) if rows.weights is None else rows.weights
        # float64 is what item-item models insist on; copies, as the sums are written in place.
        matrix = csr_matrix(
            (weights.astype(np.float64), rows.items.copy(), rows.indptr.copy()),
            shape=(len(rows), data.n_items),
        )
        matrix.sum_duplicates()
        self._state = _state(self.config, _fitted_arrays(self.config, matrix))
        return self

    def refit(self, data: FitData) -> Self:
        """The same as :meth:`fit`; the half-life in use is kept."""
        return self.fit(data)

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The best ``k`` items that a query does not exclude.

        Raises:
            UnknownIdError: a user whom a model that folds no history in was not fitted on.
        """
        return self._checked(queries).recall(queries, self.half_life, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1.

        Raises:
            UnknownIdError: as :meth:`recall`.
        """
        return self._checked(queries).score(queries, self.half_life, items)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items as ``implicit`` leaves those that nobody has taken."""
        self._state = self._fitted.grown(whole_number("n", n))

    def save_files(self, folder: Path) -> None:
        """Write the settings and what was learnt.

        Of BPR and LMF that includes a vector for each user: such a model holds user data.
        """
        settings = {"config": config_to_json(self.config), "half_life": self.half_life}
        write_state(folder, settings, self._fitted.arrays)

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; needs no ``implicit``."""
        settings, arrays = read_state(folder)
        model = cls.__new__(cls)
        model._configure(config_from_json(ImplicitConfig, settings["config"]), arrays)
        model.half_life = settings["half_life"]
        return model

    @property
    def _fitted(self) -> Learnt:
        return fitted(self.name, self._state)

    def _checked(self, queries: Queries) -> Learnt:
        check_queries(self.name, self._fitted.n_items, queries)
        return self._fitted


def item_factors(model: Any) -> Scores:
    """(I, F) float32, a copy of the item factors of a fitted ``implicit`` ALS.

    Raises:
        InputTypeError: a model of another class.
        NotFittedError: it is not fitted.
        InputError: a factor is not finite.
    """
    _check_kind(_kind(model), _ALS)
    if not _is_fitted(model):
        raise NotFittedError("model is not fitted: call its fit(matrix) first")
    return float_matrix("item_factors", _learnt(model)["items"])


def _kind(model: Any) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _check_kind(kind: object, wanted: Sequence[str]) -> None:
    if kind not in wanted:
        raise InputTypeError(
            f"model is of class {kind}; wanted one of {', '.join(wanted)} (of an approximate one, "
            "give its .model)"
        )


def _settings(model: Any) -> dict[str, Any]:
    """The arguments that would make ``model`` again, as JSON values."""
    names = inspect.signature(type(model).__init__).parameters
    # GPU models do not keep every argument.
    settings = {name: getattr(model, name) for name in names if hasattr(model, name)}
    if "dtype" in settings:
        settings["dtype"] = np.dtype(settings["dtype"]).name
    if isinstance(settings.get("random_state"), np.random.Generator):
        settings["random_state"] = copy.deepcopy(settings["random_state"]).integers(1 << 31)
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in settings.items()
    }


def _is_fitted(model: Any) -> bool:
    learnt = "similarity" if _kind(model) in _ITEM_ITEM else "item_factors"
    return getattr(model, learnt) is not None


def _learnt(model: Any) -> dict[str, NDArray[Any]]:
    """Copies of the arrays that a fitted ``model`` has learnt."""
    kind = _kind(model)
    if kind in _ITEM_ITEM:
        table = csr_array(model.similarity, dtype=np.float32, copy=True)
        return {"indptr": table.indptr, "indices": table.indices, "values": table.data}
    learnt = {"items": _on_host(model.item_factors)}
    return learnt if kind in _ALS else learnt | {"users": _on_host(model.user_factors)}


def _on_host(factors: Any) -> Scores:
    """A float32 copy of an array, or of a matrix on the GPU."""
    return np.array(factors.to_numpy() if hasattr(factors, "to_numpy") else factors, np.float32)


def _state(config: ImplicitConfig, arrays: Mapping[str, NDArray[Any]]) -> Learnt:
    """What answers queries, from the arrays of :func:`_learnt`."""
    if config.kind in _ITEM_ITEM:
        return Neighbours.from_arrays(config.name, arrays)
    items = frozen(float_matrix("item_factors", arrays["items"]))
    index = make_index(items)
    if config.kind in _ALS:
        alpha, regularization = config.settings["alpha"], config.settings["regularization"]
        return FoldedIn(config.name, items, index, alpha, regularization)
    users = frozen(float_matrix("user_factors", arrays["users"], columns=items.shape[1]))
    return OfUsers(config.name, items, index, users, biased=config.kind == _LMF)


def _fitted_arrays(config: ImplicitConfig, matrix: csr_matrix) -> dict[str, NDArray[Any]]:
    """What a new model of ``config`` learns from ``matrix`` (U, I)."""
    module, _, name = config.kind.rpartition(".")
    make = getattr(require_extra(module, "implicit"), name)
    failure = require_extra("implicit.recommender_base", "implicit").ModelFitError
    settings = dict(config.settings)
    if "dtype" in settings:
        settings["dtype"] = np.dtype(settings["dtype"]).type
    # BLAS inside implicit's own threads is what it warns of, as it costs it dear.
    limits = require_extra("threadpoolctl", "implicit").threadpool_limits
    with limits(1, user_api="blas"), warnings.catch_warnings():
        # Its item-item models warn of the format of a matrix that they made themselves.
        warnings.filterwarnings("ignore", message="Method expects CSR input")
        model = make(**settings)
        try:
            model.fit(matrix, show_progress=False)
        except (failure, ValueError) as error:
            raise FitError(
                f"{config.name!r} cannot be fitted as {name}: {error}; raise its regularization, "
                "lower its factors or learning rate"
            ) from error
    return _learnt(model)
