"""A search in parts, each with what those before it found, so that what is dear is computed seldom.

A recaller alone costs its fit, a set of recallers their lists, a fusion nothing but itself, a
reranker everything. The first trial of every part is what was given.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any
from zlib import crc32

from hybridrec.checks import HybridrecError
from hybridrec.tuning.clock import Clock, weights_of
from hybridrec.tuning.folder import BEST
from hybridrec.tuning.found import Tuned, TunedPart, told
from hybridrec.tuning.ledger import Ledger
from hybridrec.tuning.members import OUT, TUNED, next_members, options_of
from hybridrec.tuning.space import settings_in
from hybridrec.tuning.stages import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from hybridrec.tuning.clock import Limits
    from hybridrec.tuning.space import Settings, Space
    from hybridrec.tuning.stages import Stages
    from hybridrec.tuning.trials import Evaluate, Part, Trial, TrialsFile
    from hybridrec.tuning.workbench import Workbench

    Propose = Callable[[list[Trial]], Settings | None]

_log = logging.getLogger("hybridrec")

_LISTS = "lists"
"""What a reranker reads, beside its settings: the lists that were given, or those found."""


class Search:
    """One run of a search, which goes on where the runs before it ended.

    Args:
        stages: what to choose from.
        spaces: what to try of each stage, by its name.
        bench: what to measure on.
        file: the trials so far, and those to come.
        limits: when to end.
        folder: where the best settings are written, whenever there are better ones.
    """

    def __init__(
        self,
        stages: Stages,
        spaces: Mapping[str, Space],
        bench: Workbench,
        file: TrialsFile,
        limits: Limits,
        folder: Path,
    ) -> None:
        self._stages, self._spaces, self._bench, self._file = stages, spaces, bench, file
        self._limits, self._folder = limits, folder
        self._parts: list[TunedPart] = []
        self._ledger = Ledger(stages, file, folder / BEST, bench.mark)
        self._alone = [name for name in stages.recallers if spaces[name]]
        self._kinds = list(stages.fusions)
        self._clock = Clock(
            limits.minutes,
            weights_of(
                [f"recaller {name}" for name in self._alone],
                [f"fusion {name}" for name in self._kinds],
                reranker=stages.engine.reranker is not None,
            ),
        )

    def run(self) -> Tuned:
        """Search until the limits are reached.

        Raises:
            FitError: the recommender that was given cannot be fitted.
            KeyboardInterrupt: it was interrupted; what was found has been written.
        """
        stages = self._stages
        given = stages.given
        try:
            first = self._part("given", {}, _first([{}], {}), lambda _: self._scored(given))
            changed = {name: self._recaller(name) for name in list(stages.recallers)}
            recallers = self._recallers({name: changed[name] for name in stages.recallers})
            for kind in self._kinds:
                self._fusion(kind, recallers)
            if stages.engine.reranker is not None:
                first = self._reranker(stages.engine.reranker)
        except KeyboardInterrupt:
            _log.warning(
                "interrupted: what was found so far is in %s; the same search goes on from there "
                "when it is started again",
                self._folder,
            )
            raise
        best = self._ledger.best
        return Tuned(
            folder=self._folder,
            given=first.ended()[0].value or 0.0,
            best=best.value,
            error=best.error,
            events=self._bench.events(reranker=stages.engine.reranker is not None),
            parts=tuple(self._parts),
            _stages=stages,
            _choice=best.choice,
        )

    # -- the parts ---------------------------------------------------------------------------

    def _recaller(self, name: str) -> Settings:
        """What makes this recaller better than it was, alone; nothing where nothing does."""
        stages, space = self._stages, self._spaces[name]
        if not space:
            return {}
        stage = stages.recallers[name]
        there = settings_in(stage, space)

        def evaluate(params: Settings) -> tuple[float, dict[str, Any]]:
            return self._bench.alone(stages.with_settings(name, _changed(params, there)))

        try:
            part = self._part(f"recaller {name}", space, _first([there], space), evaluate)
        except HybridrecError as error:
            if name not in stages.offered:
                raise
            self._leave_out(f"recaller {name}", error)
            stages.forget(name)
            return {}
        return _changed(part.best.params, there)

    def _recallers(self, changed: Mapping[str, Settings]) -> Mapping[str, Settings]:
        """Which of them together, as they were or with what was found for each.

        Measured by one kind of fusion, where several were given: the others take their turn later.
        """
        stages = self._stages
        options = options_of(changed, stages.offered, stages.needed())
        kind: tuple[str, Settings] | None = None
        if len(stages.engine.fusions) > 1:
            kind = (stages.usual_fusion, {})

        def chosen(params: Settings) -> dict[str, Settings]:
            taken = {name: option for name, option in params.items() if option != OUT}
            return {name: changed[name] if taken[name] == TUNED else {} for name in taken}

        part = self._part(
            "recallers",
            options,
            lambda ended: next_members(options, ended),
            lambda params: self._scored(Choice(chosen(params), kind)),
            depends=[changed, options],
        )
        return chosen(part.best.params)

    def _fusion(self, kind: str, recallers: Mapping[str, Settings]) -> None:
        """The settings of one kind of fusion, over the best recallers."""
        name, space = f"fusion {kind}", self._spaces[kind]
        there = settings_in(self._stages.fusions[kind], space)

        def evaluate(params: Settings) -> tuple[float, dict[str, Any]]:
            return self._scored(Choice(recallers, (kind, _changed(params, there))))

        if not self._bench.teaches(self._stages.made(Choice(recallers), reranker=False)):
            self._leave_out(name, "there is no list that a fusion could learn from")
            return
        try:
            self._part(name, space, _first([there], space), evaluate, depends=recallers)
        except HybridrecError as error:
            self._leave_out(name, error)

    def _reranker(self, reranker: Any) -> Part:
        """The reranker's settings, over what was given and over what was found."""
        lists = {"given": self._stages.given, "found": self._ledger.best_served}
        if lists["given"] == lists["found"]:
            del lists["found"]
        own = self._spaces[reranker.name]
        there = settings_in(reranker, own)
        firsts = [{**there, _LISTS: name} for name in lists]
        space = {**own, _LISTS: tuple(lists)}

        def evaluate(params: Settings) -> tuple[float, dict[str, Any]]:
            below = lists[params[_LISTS]]
            changed = _changed({name: params[name] for name in own}, there)
            choice = Choice(below.recallers, below.fusion, changed)
            measured = self._bench.reranked(self._stages.made(choice))
            return measured[0], self._ledger.noted(measured, choice, reranked=True)

        depends = [below.to_json() for below in lists.values()]
        return self._part("reranker", space, _first(firsts, space), evaluate, depends)

    # -- trials ------------------------------------------------------------------------------

    def _part(
        self,
        name: str,
        space: Mapping[str, Any],
        propose: Propose,
        evaluate: Evaluate,
        depends: Any = None,
    ) -> Part:
        """Try what ``propose`` says, until that or the limits end it.

        Args:
            name: of the part.
            space: what the trials are about.
            propose: what comes after the trials that have ended: settings, {} to draw them, None
                for nothing more.
            evaluate: what settings are worth.
            depends: what the parts before have found: trials over anything else are another study.
        """
        part = self._file.part(f"{name} {crc32(json.dumps(depends, sort_keys=True).encode()):08x}")
        others = [
            other
            for other in self._file.names()
            if other.rpartition(" ")[0] == name and other != part.name
        ]
        elsewhere = sum(self._file.part(other).seconds for other in others)
        share, most = self._clock.share(name), self._limits.trials_of(name)
        ended = part.ended()
        while len(ended) < most and _allows(share, elsewhere, ended):
            fixed = propose(ended)
            if fixed is None:
                break
            ended.append(part.try_next(space, fixed, evaluate))
            self._tell(name, ended)
        self._clock.ended(name, elsewhere + part.seconds)
        if name != "given":
            self._parts.append(TunedPart.of(name, ended))
            _log.info("%s", self._parts[-1])
        return part

    def _leave_out(self, name: str, why: object) -> None:
        _log.warning("%s is left out of the search: %s", name, why)
        self._clock.ended(name, 0.0)

    def _tell(self, name: str, ended: Sequence[Trial]) -> None:
        *before, last = ended
        known = [trial.value for trial in before if trial.value is not None]
        if last.value is None or (known and last.value <= max(known)):
            return
        _log.info(
            "%s: NDCG@10 %.4f in trial %d: %s", name, last.value, len(ended), told(last.params)
        )

    def _scored(self, choice: Choice) -> tuple[float, dict[str, Any]]:
        """NDCG@10 of the order that ``choice`` would serve without a reranker."""
        engine = self._stages.made(choice, reranker=False)
        kinds = engine.fusions or (None,)
        measured = max(self._bench.fused(engine, kind) for kind in kinds)
        return measured[0], self._ledger.noted(measured, choice)


def _first(firsts: Sequence[Settings], space: Mapping[str, Any]) -> Propose:
    """``firsts`` one after another, then whatever seems worth it if there is a ``space``."""

    def propose(ended: list[Trial]) -> Settings | None:
        if len(ended) < len(firsts):
            return firsts[len(ended)]
        return {} if space else None

    return propose


def _allows(share: float | None, elsewhere: float, ended: Sequence[Trial]) -> bool:
    """Whether another trial is likely to end in time; the first is always begun."""
    if share is None or not ended:
        return True
    spent = sum(trial.seconds for trial in ended)
    return elsewhere + spent + spent / len(ended) <= share


def _changed(params: Mapping[str, Any], there: Mapping[str, Any]) -> Settings:
    return {name: value for name, value in params.items() if value != there[name]}
