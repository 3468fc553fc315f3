"""How sure a figure is: bootstrap intervals of a mean over users, and of a paired difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, real_number, whole_number

if TYPE_CHECKING:
    from hybridrec.evaluation.metrics import Values

_CELLS = 1 << 21  # draws held at once: 16 MiB


@dataclass(frozen=True)
class Delta:
    """The mean of a difference over users, and its interval."""

    mean: float
    low: float
    high: float


def bootstrap_ci(
    values: Values, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile-bootstrap interval of the mean of ``values`` (n,), one a user.

    Drawing n users with replacement is drawing how often each *distinct* value comes, which is
    multinomial: the same distribution at a fraction of the work, since a metric takes few values.

    Returns:
        The lower and the upper end; the same for the same seed.

    Raises:
        InputError: no values, a NaN or infinite one, or a level outside (0, 1).

    O(samples * distinct values) time, bounded memory.
    """
    samples = whole_number("samples", samples, least=1)
    if real_number("level", level, above=0.0) >= 1.0:
        raise InputError(f"level is {level}; wanted a share below 1, such as 0.95")
    values = _finite("values", values)
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(distinct))
    means: list[NDArray[np.float64]] = []
    for start in range(0, samples, step):
        draws = rng.multinomial(len(values), counts / len(values), size=min(step, samples - start))
        means.append(draws @ distinct / len(values))
    tail = (1.0 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return float(low), float(high)


def paired_ci(
    a: Values, b: Values, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Delta:
    """The mean of ``a - b`` over the same users, with its bootstrap interval.

    Raises:
        InputError: ``a`` and ``b`` have other lengths, none, or values that are not finite.
    """
    a, b = _finite("a", a), _finite("b", b)
    if a.shape != b.shape:
        raise InputError(f"a has {len(a)} users and b {len(b)}; wanted the same users in both")
    low, high = bootstrap_ci(a - b, level=level, samples=samples, seed=seed)
    return Delta(float((a - b).mean()), low, high)


def _finite(name: str, values: Values) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; wanted one value for each of >= 1 users")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{name}[{place}] is {array[place]}; wanted finite values only")
    return array
