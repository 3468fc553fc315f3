"""Fits that several steps share: the dearest recaller is trained once a data set and a seed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any, ClassVar

from contract import OUTPUT

import hybridrec as hr


class KeptSequence(hr.SequenceRecall):
    """A SequenceRecall that keeps what it has learned, by settings and histories.

    Attributes:
        seconds: that training took in this process or an earlier one, of every fit asked for.
    """

    seconds: ClassVar[list[float]] = []

    def fit(self, data: Any) -> KeptSequence:
        """As SequenceRecall's."""
        return self._kept("fit", super().fit, data)

    def refit(self, data: Any) -> KeptSequence:
        """As SequenceRecall's."""
        return self._kept("refit", super().refit, data)

    def _kept(self, kind: str, learn: Callable[[Any], Any], data: Any) -> KeptSequence:
        rows = data.histories
        mark = hashlib.sha256(f"{kind} {self.config}".encode())
        for part in (rows.indptr, rows.items):
            mark.update(part.tobytes())
        folder = OUTPUT / "quality" / "kept" / mark.hexdigest()[:16]
        if not (folder / "seconds.json").exists():
            started = time.perf_counter()
            learn(data)
            seconds = time.perf_counter() - started
            self.save_files(folder)
            (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
        else:
            vars(self).update(vars(type(self).load_files(folder)))
        self.seconds.append(json.loads((folder / "seconds.json").read_text("utf-8")))
        return self
