"""The stages that a search is about, and the recommender that a choice among them makes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from hybridrec.checks import InputError, InputTypeError
from hybridrec.engine import HybridRecommender
from hybridrec.fuse.linear import LinearFusion
from hybridrec.protocols import Fusion, ReadsRecaller, ReadsVectors, Recaller
from hybridrec.recall.text import TextRecall
from hybridrec.tuning.space import Settings, space_of, varied

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridrec.data.dataset import Dataset
    from hybridrec.tuning.space import Space


@dataclass(frozen=True)
class Choice:
    """What of the stages is taken, and how they are set; plain JSON.

    Attributes:
        recallers: those that are in, by name, with the settings that are not as given.
        fusion: the kind and its changed settings; None leaves the kinds as they were given.
        reranker: its changed settings.
    """

    recallers: Mapping[str, Settings]
    fusion: tuple[str, Settings] | None = None
    reranker: Settings = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` gave, or JSON made of it."""
        fusion = values["fusion"]
        return cls(values["recallers"], fusion and (fusion[0], fusion[1]), values["reranker"])


class Stages:
    """A recommender's stages and those it is offered.

    Args:
        engine: what the search starts from.
        data: what it is to be fitted to.
        offered: recallers and fusions that it may take in.

    Attributes:
        engine: the same, its stages told.
        recallers: by name, the given ones first.
        fusions: by the name of their class, the given ones first.
        offered: names of the recallers that are not the engine's.

    Raises:
        InputError: a stage is offered that is there.
        InputTypeError: something is offered that is neither a recaller nor a fusion.
    """

    def __init__(self, engine: HybridRecommender, data: Dataset, offered: Sequence[object]) -> None:
        recallers, signals = engine.stages_for(data)
        self.engine = engine = HybridRecommender(
            recallers,
            engine.reranker,
            engine.fusions,
            signals=signals,
            newcomers=engine.newcomers,
            **asdict(engine.settings),
        )
        self.recallers: dict[str, Any] = {stage.name: stage for stage in engine.recallers}
        self.fusions: dict[str, Any] = {}
        for fusion in engine.fusions:
            self.fusions.setdefault(type(fusion).__name__, fusion)
        taken = {*self.recallers, *(stage.name for stage in engine.signals)}
        self.offered: list[str] = []
        for stage in offered:
            if isinstance(stage, Recaller) and not isinstance(stage, type):
                if stage.name in taken:
                    raise InputError(
                        f"offered holds a recaller {stage.name!r}, and there is one: give it a "
                        "name of its own, or leave it out"
                    )
                taken.add(stage.name)
                self.recallers[stage.name] = stage
                self.offered.append(stage.name)
            elif isinstance(stage, Fusion) and not isinstance(stage, type):
                self.fusions.setdefault(type(stage).__name__, stage)
            else:
                raise InputTypeError(
                    f"offered holds {stage!r:.80}; wanted recallers and fusions, such as "
                    "[hybridrec.EASE(), hybridrec.TreeFusion()]"
                )

    @property
    def given(self) -> Choice:
        """The recommender as it was given."""
        return Choice({stage.name: {} for stage in self.engine.recallers})

    @property
    def usual_fusion(self) -> str:
        """The kind that recallers are measured by where there are several: quick, and learned."""
        usual = LinearFusion.__name__
        return usual if usual in self.fusions else next(iter(self.fusions))

    def forget(self, name: str) -> None:
        """An offered recaller cannot be used after all."""
        del self.recallers[name]
        self.offered.remove(name)

    def with_settings(self, name: str, settings: Settings) -> Any:
        """The recaller ``name`` with other ``settings``, to be fitted."""
        return varied(self.recallers[name], settings)

    def needed(self) -> set[str]:
        """Names of recallers that cannot be left out: the reranker or newcomers read them."""
        reranker, newcomers = self.engine.reranker, self.engine.newcomers
        names = {reranker.vectors_from} if isinstance(reranker, ReadsVectors) else set()
        if newcomers is not None:
            texts = [stage for stage in self.recallers.values() if isinstance(stage, TextRecall)]
            names |= {*(newcomers.config.reads or ()), *(stage.name for stage in texts)}
        return names

    def spaces(self, given: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Space]:
        """What to try of each stage, by its name; of fusions by their class's.

        Raises:
            InputError: ``given`` names a stage that is not there.
        """
        stages: dict[str, Any] = {**self.recallers, **self.fusions}
        reranker = self.engine.reranker
        if reranker is not None:
            stages[reranker.name] = reranker
        unknown = sorted(set(given or {}) - set(stages))
        if unknown:
            raise InputError(f"space names {unknown[0]!r}; wanted some of {sorted(stages)}")
        return {name: space_of(name, stage, given) for name, stage in stages.items()}

    def made(self, choice: Choice, *, reranker: bool = True) -> HybridRecommender:
        """The unfitted recommender of ``choice``; signals that read what is not in go, too."""
        engine = self.engine
        recallers = [
            varied(stage, choice.recallers[name])
            for name, stage in self.recallers.items()
            if name in choice.recallers
        ]
        there = {stage.name for stage in (*recallers, *engine.signals)}
        signals = [varied(stage, {}) for stage in engine.signals]
        while lost := [
            stage
            for stage in signals
            if isinstance(stage, ReadsRecaller) and stage.reads not in there
        ]:
            signals = [stage for stage in signals if stage not in lost]
            there -= {stage.name for stage in lost}
        fusions: list[Any] = list(engine.fusions)
        if choice.fusion is not None:
            kind, settings = choice.fusion
            fusions = [varied(self.fusions[kind], settings)]
        second = engine.reranker
        return HybridRecommender(
            recallers,
            varied(second, choice.reranker) if second is not None and reranker else None,
            fusions,
            signals=signals,
            newcomers=copy.copy(engine.newcomers),
            **asdict(engine.settings),
        )
