"""The page: it says what the report says, and nothing that a title holds gets out of its text."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.candidates import Candidates, Queries
from hybridrec.checks import InputError, InputTypeError
from hybridrec.evaluation.page_examples import chosen
from hybridrec.evaluation.protocol import StageList, evaluate
from hybridrec.ragged import Ragged

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\u202e&amp;'
VOID = {"meta", "br", "rect", "line", "circle", "path", "img"}
STAGES: dict[str, Any] = {
    "popularity": "single",
    "als": "single",
    "blend (recall stage)": "recall",
    f"llm {HOSTILE}": "llm",
    "fused, no LLM": "fused",
    "fused, with LLM": "fused",
}


class Engine:
    """Every stage has another taste; the last likes the target best."""

    def stage_lists(self, queries: Queries, k: int) -> Any:
        rng = np.random.default_rng(0)
        target = (queries.users % queries.n_items)[:, None]
        for place, (name, kind) in enumerate(STAGES.items()):
            scores = rng.random((len(queries), queries.n_items))
            scores += (np.arange(queries.n_items) == target) * 0.07 * place
            items = np.tile(np.arange(queries.n_items, dtype=np.int32), (len(queries), 1))
            lists = Candidates.ranked(items, scores.astype(np.float32)).head(k)
            yield StageList(name, lists, 0.001 * (place + 1), kind)


@pytest.fixture(scope="module")
def catalogue() -> Any:
    ids = hr.IdMap(np.arange(30))
    return SimpleNamespace(
        n_items=30,
        items=ids,
        texts=tuple(f"title {item} {HOSTILE}" if item % 3 else "" for item in range(30)),
        users=hr.IdMap(np.array([f"{HOSTILE}{n}" for n in range(40)])),
        histories=Ragged.from_rows([[n % 30, (n + 1) % 30] * (n % 2) for n in range(40)]),
    )


@pytest.fixture(scope="module")
def split(catalogue: Any) -> Any:
    users = np.arange(40, dtype=np.int32)
    histories = Ragged.from_rows([list(range(n % 12 + 1)) for n in range(40)])
    queries = Queries(histories, 30, users=users)
    return hr.split.Split(catalogue, queries, Ragged.from_rows([[n % 30] for n in range(40)]))


@pytest.fixture(scope="module")
def report(split: Any) -> Any:
    return evaluate(Engine(), split, k=10, depth=20, slices=True)


class Reader(HTMLParser):
    """Collects tags and text, and proves that every tag that opens is closed in its turn."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_needs_nothing_else(report: Any, split: Any, catalogue: Any) -> None:
    page = hr.report_page(report, split, catalogue=catalogue, title=HOSTILE)
    reader = read(page)
    tags = {tag for tag, _ in reader.tags}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "base", "form"})
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page
    assert page.isprintable() or "\u202e" in page  # a direction mark stays inside its bdi


def test_it_says_what_the_report_says(report: Any, split: Any) -> None:
    text = " ".join(read(hr.report_page(report, split)).text)
    for stage in report.stages:
        assert stage.name in text
        for value in (stage.recall, stage.hr, stage.ndcg, stage.mrr, stage.map, stage.oracle):
            assert f"{value:.4f}" in text
        assert f"{stage.lists.novelty:.2f}" in text
    for row in [*report.deltas, *(row for part in report.slices for row in part.deltas)]:
        assert f"{row.delta.mean:+.4f}".replace("-", "\u2212") in text
    for part in report.slices:
        assert part.label in text
    for heading in ("Stages", "adds or loses", "Recall ceiling", "Oracle order", "Time", "Slices"):
        assert heading in text


def test_every_drawing_has_words_for_those_who_cannot_see_it(report: Any, split: Any) -> None:
    drawings = [a for tag, a in read(hr.report_page(report, split)).tags if tag == "svg"]
    assert len(drawings) >= 6
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)


def test_examples_show_history_targets_and_lists(report: Any, split: Any, catalogue: Any) -> None:
    page = hr.report_page(report, split, examples=3)
    articles = re.findall(r"<article>.*?</article>", page, re.DOTALL)
    assert len(articles) == 3
    best = max(("popularity", "als"), key=lambda name: report.per_user[name].mean())
    for shown, article in zip(chosen(report, "fused, with LLM", best, 3, 0), articles, strict=True):
        row = shown.row
        text = html.unescape(article)
        assert str(catalogue.users.ids[row]) in text
        start, stop = split.queries.histories.indptr[row : row + 2]
        newest = split.queries.histories.items[stop - 1]
        name = catalogue.texts[newest] or f"item {newest}"
        assert name[:50] in text
        assert ("before</p>" in article) == (stop - start > 8)
        hits = sum(
            int(row % 30 in report.lists[stage.name][row][:5].tolist()) for stage in report.stages
        )
        assert article.count("✓") == hits


def test_the_first_examples_are_the_best_and_the_worst(report: Any) -> None:
    gain = report.per_user["fused, with LLM"] - report.per_user["als"]
    found = chosen(report, "fused, with LLM", "als", 5, 1)
    assert len({example.row for example in found}) == 5
    assert gain[found[0].row] == gain.max() > 0
    assert gain[found[1].row] == gain.min() < 0
    assert [example.why for example in found[2:]] == ["drawn at random"] * 3
    assert len(chosen(report, "als", None, 100, 0)) == 40
    assert found == chosen(report, "fused, with LLM", "als", 5, 1)


def test_no_examples_no_user_data(report: Any, split: Any) -> None:
    page = html.unescape(hr.report_page(report, split, examples=0))
    assert "<article>" not in page
    assert "title 1 " not in page


def test_an_engine_of_one_recaller_has_a_page(split: Any) -> None:
    class One:
        def stage_lists(self, queries: Queries, k: int) -> Any:
            yield next(iter(Engine().stage_lists(queries, k)))

    text = " ".join(read(hr.report_page(evaluate(One(), split, depth=20), split)).text)
    assert "adds or loses" not in text
    assert "popularity" in text


def test_refusals(report: Any, split: Any, catalogue: Any) -> None:
    with pytest.raises(InputTypeError, match="report is dict"):
        hr.report_page(report.to_json(), split)
    with pytest.raises(InputError, match="split has 5 queries"):
        hr.report_page(report, split.sample(5))
    small = SimpleNamespace(n_items=3)
    with pytest.raises(InputError, match="catalogue has 3 items"):
        hr.report_page(report, split, catalogue=small)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="examples is -1"):
        hr.report_page(report, split, examples=-1)
