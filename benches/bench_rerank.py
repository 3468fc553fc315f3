"""The cross-encoder against sentence-transformers' over the same weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from contract import scaled, timed
from rerank_peers import fastest, predict, sentence_transformer
from rerank_scene import (
    Scene,
    Scores,
    agreement,
    finite,
    first_and_second,
    kept_is_right,
    precision_of,
    scene,
)
from rerank_scene import ours as cross_encoder

CANDIDATES = scaled(smoke=8, default=100, full=100)
CALLS = scaled(smoke=2, default=15, full=31)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """[CLS] and 13 x (10 tokens + [SEP]): a prompt of 144."""
    folder = tmp_path_factory.mktemp("short")
    return scene(folder, history=13, words=10, candidates=CANDIDATES, own_words=10)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """[CLS] and 15 x (16 tokens + [SEP]): a prompt of 256."""
    folder = tmp_path_factory.mktemp("long")
    return scene(folder, history=15, words=16, candidates=CANDIDATES, own_words=24)


def compare(
    duel: Any,
    scene: Scene,
    bench: str,
    precision: str,
    peer_precision: str,
    *,
    texts_in: bool = False,
) -> None:
    """A row: ours at ``precision`` against ``predict`` at its own, at its best batch size."""
    encoder = cross_encoder(scene, precision)
    peer = sentence_transformer(scene.folder, bf16=peer_precision == "bf16")
    batch, _ = fastest(partial(predict, peer, scene.pairs))
    chosen = precision_of(encoder)
    queries = scene.whole if texts_in else scene.queries
    if texts_in:
        name, note = "score_texts", "both tokenise inside"
        call = partial(encoder.score_texts, scene.prompt, scene.texts)
    else:
        name, note = "score", "our catalogue is tokenised by prepare, the peer tokenises inside"
        call = partial(encoder.score, queries, scene.items)

    def check(mine: Scores, other: Scores) -> str:
        finite(other, len(scene.texts))
        return agreement(mine, encoder.score_pairs(queries, scene.items), chosen)

    duel(
        bench,
        (f"CrossEncoder.{name}, {precision}", timed(call)),
        (
            f"sentence-transformers predict, {peer_precision}",
            timed(partial(predict, peer, scene.pairs, batch)),
        ),
        check=check,
        data=scene.size,
        parameters=f"MiniLM-L6 384, same weights, {chosen} and {peer_precision}, one-way mask "
        f"against full attention, no prefix kept, peer's best batch size {batch}; {note}",
    )


@pytest.mark.parametrize(
    ("precision", "peer_precision"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")]
)
def test_catalogue_ready(duel: Any, short: Scene, precision: str, peer_precision: str) -> None:
    compare(duel, short, "rerank", precision, peer_precision)


def test_texts_in(duel: Any, short: Scene) -> None:
    compare(duel, short, "rerank, texts in", "auto", "fp32", texts_in=True)


def test_long_texts(duel: Any, long: Scene) -> None:
    compare(duel, long, "rerank, long texts", "auto", "fp32")


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_second_request(duel: Any, short: Scene, precision: str) -> None:
    """The prefix of the same user is kept."""
    encoder = cross_encoder(short, precision, prefix_cache=64)
    second, first, users = first_and_second(encoder, short, CALLS)

    def check(mine: Any, other: Any) -> str:
        assert len({user for user, _ in mine + other}) == 2 * CALLS, "a user came twice"
        return kept_is_right(encoder, short, users, mine)

    duel(
        "second request",
        ("the same user's second", second),
        ("hybridrec itself, a user's first", first),
        check=check,
        data=short.size,
        parameters=f"MiniLM-L6 384, {precision_of(encoder)}, prefix_cache=64, median of {CALLS}",
    )
