"""What a recommender may be made of: every stage is looked at before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError, InputTypeError, one_of
from hybridrec.fusing import every_kind
from hybridrec.newcomers import Newcomers
from hybridrec.recall.blend import Blend
from hybridrec.rerank.vectors import source_for

if TYPE_CHECKING:
    from hybridrec.protocols import Fusion, Recaller, Signal


def checked_stages(
    recallers: Any, signals: Any, reranker: Any, fusions: Sequence[Fusion]
) -> tuple[list[Recaller], list[Signal]]:
    """The scorers as lists; refuses stages that are none, share a name or lack vectors."""
    for name, value in (("recallers", recallers), ("signals", signals)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InputTypeError(
                f"{name} is {type(value).__name__}; wanted a list such as [hybridrec.ALS()]"
            )
    if not recallers:
        raise InputError("recallers is empty; wanted at least one, such as hybridrec.ALS()")
    wanted = [(f"recallers[{n}]", stage, "recall", "ALS") for n, stage in enumerate(recallers)]
    wanted += [(f"signals[{n}]", stage, "score", "Popularity") for n, stage in enumerate(signals)]
    wanted += [("reranker", reranker, "finetune", "CrossEncoder")] * (reranker is not None)
    wanted += [("fusion", fusion, "rank", "LinearFusion") for fusion in fusions]
    for name, stage, method, example in wanted:
        if isinstance(stage, type) or not hasattr(stage, method):
            got = f"the class {stage.__name__}" if isinstance(stage, type) else f"{stage!r:.100}"
            raise InputTypeError(
                f"{name} is {got}; wanted an object with {method}(...), such as "
                f"hybridrec.{example}()"
            )
    names = [stage.name for stage in (*recallers, *signals, reranker) if stage is not None]
    if len(set(names)) < len(names):
        raise InputError(
            f"recallers, signals and reranker are named {names}; wanted a name of its own for "
            "each: pass name= to those of the same kind"
        )
    source_for(reranker, recallers)
    blend = Blend(recallers, scorers=signals)  # refuses a signal that reads what is not there
    return blend.recallers, blend.scorers


def checked_newcomers(
    newcomers: Any, recallers: Sequence[Recaller], signals: Sequence[Signal]
) -> Newcomers | None:
    """``newcomers``; refuses what is none, and stages that say nothing of them."""
    if newcomers is None:
        return None
    if not isinstance(newcomers, Newcomers):
        got = newcomers.__name__ if isinstance(newcomers, type) else repr(newcomers)[:100]
        raise InputTypeError(f"newcomers is {got}; wanted hybridrec.Newcomers() or None")
    newcomers.read(recallers, signals)
    return newcomers


def fusion_kinds(fusion: Any) -> list[Fusion]:
    """The kinds of fusion to try."""
    if fusion is None:
        return []
    if isinstance(fusion, str):
        one_of("fusion", fusion, ("auto",))
        return every_kind()
    return list(fusion) if isinstance(fusion, Sequence) else [fusion]
