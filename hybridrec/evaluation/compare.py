"""How sure a figure is: bootstrap intervals, randomisation tests, and Holm's correction.

Users are what is drawn, never events: where a user was asked several times, ``groups`` says which
values are of one user, and these are drawn or turned over together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.evaluation.metrics import Values

_CELLS = 1 << 21  # draws held at once: 16 MiB


@dataclass(frozen=True)
class Delta:
    """The mean of a difference over users, and its interval."""

    mean: float
    low: float
    high: float


def bootstrap_ci(
    values: Values,
    *,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile-bootstrap interval of the mean of ``values`` (n,).

    Drawing n users with replacement is drawing how often each *distinct* value comes, which is
    multinomial: the same distribution at a fraction of the work, since a metric takes few values.

    Args:
        values: one for each query.
        groups: (n,) the user of each value; a user's values are drawn together (the cluster
            bootstrap). None, or a negative code: a user of its own.
        level: share of intervals that hold the true mean, between 0 and 1.
        samples: draws.
        seed: of the draws.

    Returns:
        The lower and the upper end; the same for the same seed.

    Raises:
        InputError: no values, a NaN or infinite one, or a level outside (0, 1).

    O(samples * distinct values) time, bounded memory.
    """
    samples = whole_number("samples", samples, least=1)
    if real_number("level", level, above=0.0) >= 1.0:
        raise InputError(f"level is {level}; wanted a share below 1, such as 0.95")
    sums, sizes = _by_user(_finite("values", values), groups)
    pairs, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(pairs))
    means: list[NDArray[np.float64]] = []
    for start in range(0, samples, step):
        draws = rng.multinomial(len(sums), counts / len(sums), size=min(step, samples - start))
        means.append((draws @ pairs[:, 0]) / (draws @ pairs[:, 1]))
    tail = (1.0 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return float(low), float(high)


def paired_ci(
    a: Values,
    b: Values,
    *,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Delta:
    """The mean of ``a - b`` over the same users, with its bootstrap interval.

    Raises:
        InputError: ``a`` and ``b`` have other lengths, none, or values that are not finite.
    """
    difference = _difference(a, b)
    low, high = bootstrap_ci(difference, groups=groups, level=level, samples=samples, seed=seed)
    return Delta(float(difference.mean()), low, high)


def paired_p(
    a: Values,
    b: Values,
    *,
    groups: NDArray[Any] | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> float:
    """How often chance alone would part ``a`` and ``b`` as far: a two-sided randomisation test.

    If the two were alike, which of a user's two values is whose would be a coin's toss, so signs of
    the differences are drawn and the share of means at least as far from 0 is counted (Fisher's
    test; Smucker, Allan & Carterette, CIKM 2007). The observed draw counts as one, so that p is
    never 0 and the test never promises too much: 1 / (samples + 1) is the least it can be. Where
    users are so few that all signs are no more than ``samples``, each is tried once and p is exact.

    Args:
        a: (n,) one value a query.
        b: (n,) of the same queries.
        groups: (n,) the user of each query, as in :func:`bootstrap_ci`; signs are drawn a user.
        samples: draws.
        seed: of the draws.

    Raises:
        InputError: as :func:`paired_ci`.

    O(samples * distinct differences) time, bounded memory.
    """
    samples = whole_number("samples", samples, least=1)
    sums, _ = _by_user(_difference(a, b), groups)
    sums = sums[sums != 0]
    # Sums of the same numbers in another order differ in their last bits: such a draw is as far.
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    if 2 ** len(sums) <= samples:
        turned = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((1 - 2 * turned) @ sums) >= least).mean())
    sizes, counts = np.unique(np.abs(sums), return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(sizes))
    far = 1
    for start in range(0, samples, step):
        # Of the users with one size of difference, how many are turned to +.
        plus = rng.binomial(counts, 0.5, size=(min(step, samples - start), len(counts)))
        far += int((np.abs((2 * plus - counts) @ sizes) >= least).sum())
    return far / (samples + 1)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of a table of comparisons, corrected for there being several (Holm, 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none falls below one before it: the
    chance that any true equality of the table is called a difference stays below the level.

    Raises:
        InputError: a value outside [0, 1].
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p is {list(p)}; wanted values from 0 to 1")
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(raised, 1.0)
    return [float(value) for value in corrected]


def _by_user(values: Values, groups: NDArray[Any] | None) -> tuple[Values, Values]:
    """(U,) each user's sum of ``values``, and how many there are of each."""
    if groups is None:
        return values, np.ones(len(values))
    groups = np.asarray(groups)
    if groups.shape != values.shape:
        raise InputError(f"groups has shape {groups.shape}; wanted {values.shape}, one a value")
    alone = np.flatnonzero(groups < 0)
    named = groups.astype(np.int64)
    named[alone] = named.max(initial=0) + 1 + np.arange(len(alone))
    _, rows = np.unique(named, return_inverse=True)
    sums: Values = np.bincount(rows, weights=values).astype(np.float64)
    return sums, np.bincount(rows).astype(np.float64)


def _difference(a: Values, b: Values) -> Values:
    a, b = _finite("a", a), _finite("b", b)
    if a.shape != b.shape:
        raise InputError(f"a has {len(a)} users and b {len(b)}; wanted the same users in both")
    difference: Values = a - b
    return difference


def _finite(name: str, values: Values) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; wanted one value for each of >= 1 users")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{name}[{place}] is {array[place]}; wanted finite values only")
    return array
