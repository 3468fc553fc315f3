"""The cross-encoder against the best of sentence-transformers' ONNX and OpenVINO backends."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from contract import scaled, timed
from rerank_peers import backends, fastest, predict, sentence_transformer
from rerank_scene import Scene, Scores, agreement, precision_of, scene
from rerank_scene import ours as cross_encoder

CANDIDATES = scaled(smoke=8, default=100, full=100)
LEAST_CORRELATION = {"fp32": 0.9999, "int8": 0.5, "as it comes": 0.9}
"""Of a backend's scores with those of predict in fp32: a graph that was cut wrongly shows here."""


class Measured(NamedTuple):
    """The backends on these pairs, each at its best batch size."""

    peers: dict[str, Any]
    batch: dict[str, int]
    seconds: dict[str, float]
    plain: Scores

    def best(self, end: str = "") -> str:
        """The fastest of those whose name holds ``end``."""
        return min((name for name in self.seconds if end in name), key=self.seconds.__getitem__)

    def __str__(self) -> str:
        parts = [
            f"{name} {1000 * seconds:.3g} ms (batch {self.batch[name]})"
            for name, seconds in sorted(self.seconds.items(), key=lambda entry: entry[1])
        ]
        return "all backends: " + ", ".join(parts)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("short")
    return scene(folder, history=13, words=10, candidates=CANDIDATES, own_words=10)


@pytest.fixture(scope="module")
def measured(short: Scene, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder: Path = tmp_path_factory.mktemp("graphs")
    peers = dict(backends(short.folder, folder, short.pairs))
    found = {name: fastest(partial(predict, peer, short.pairs)) for name, peer in peers.items()}
    plain = predict(sentence_transformer(short.folder), short.pairs, 8)
    return Measured(
        peers,
        {name: batch for name, (batch, _) in found.items()},
        {name: seconds for name, (_, seconds) in found.items()},
        plain,
    )


def same_graph(name: str, scores: Scores, plain: Scores) -> str:
    """Prove that a backend scores as the model that it was exported from; says how nearly."""
    alike = float(np.corrcoef(scores, plain)[0, 1])
    least = next(least for part, least in LEAST_CORRELATION.items() if part in name)
    assert alike >= least, f"{name} correlates {alike:.4f} with predict, wanted {least}"
    return f"{name} correlates {alike:.4f} with predict in fp32"


@pytest.mark.parametrize(
    ("precision", "among"), [("fp32", "fp32"), ("int8", ""), ("auto", "")], ids=str
)
def test_backends(duel: Any, short: Scene, measured: Measured, precision: str, among: str) -> None:
    """fp32 against the best in fp32; int8 and auto against the best of all, int8 among them."""
    encoder = cross_encoder(short, precision)
    chosen, name = precision_of(encoder), measured.best(among)

    def check(mine: Scores, other: Scores) -> str:
        wanted = encoder.score_pairs(short.queries, short.items)
        said = agreement(mine, wanted, chosen)
        return f"{said}; {same_graph(name, other, measured.plain)}"

    batch = measured.batch[name]
    duel(
        "rerank, backends",
        (
            f"CrossEncoder.score, {precision}",
            timed(partial(encoder.score, short.queries, short.items)),
        ),
        (
            f"sentence-transformers predict, {name}",
            timed(partial(predict, measured.peers[name], short.pairs, batch)),
        ),
        check=check,
        data=short.size,
        parameters=f"MiniLM-L6 384, same weights, {chosen}, one-way mask against full attention, "
        f"no prefix kept, peer's best batch size {batch}; {measured}",
    )
