"""Every Python snippet and every hybridrec line of the README runs, in order, on a tiny frame."""

import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest
from scipy.sparse import csr_matrix

from hybridrec.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def named_frames():
    """The README's frames: alice and bob among forty users, films with titles, years, genres."""
    generator = np.random.default_rng(0)
    films = ["heat", "fargo", *(f"film{place}" for place in range(38))]
    people = ["alice", "bob", *(f"user{place}" for place in range(38))]
    rows = [
        (person, films[(start + step) % len(films)], 100 * place + step)
        for place, person in enumerate(people)
        for start in [int(generator.integers(len(films)))]
        for step in range(12)
    ]
    user, item, time = zip(*rows, strict=True)
    interactions = pa.table({"user_id": user, "item_id": item, "timestamp": time})
    movies = pa.table(
        {
            "item_id": films,
            "title": [film.title() for film in films],
            "year": [1980 + place for place in range(len(films))],
            "genres": ["crime" if place % 2 else "drama" for place in range(len(films))],
        }
    )
    return interactions, movies


def implicit_als(generator):
    """A tiny fitted ALS of implicit."""
    als = pytest.importorskip("implicit.cpu.als")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of BLAS threads
        model = als.AlternatingLeastSquares(factors=4, alpha=5.0, iterations=2, num_threads=1)
        model.fit(csr_matrix(generator.random((20, 30)) < 0.3, dtype=np.float32), False)
    return model


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_the_python_snippets(place, tiny_encoder, monkeypatch, capsys):
    monkeypatch.chdir(place)
    interactions, movies = named_frames()
    generator = np.random.default_rng(0)
    names = {
        "interactions": interactions,
        "movies": movies,
        "encoder": tiny_encoder,
        "new_movies": pa.table(
            {"item_id": ["new"], "title": ["New"], "year": [1999], "genres": ["drama"]}
        ),
        "implicit_als": implicit_als(generator),
        "query_vectors": generator.normal(size=(5, 16)).astype(np.float32),
        "item_vectors": generator.normal(size=(300, 16)).astype(np.float32),
    }
    code = "\n".join(blocks("python"))
    exec(compile(code, "README.md", "exec"), names)
    assert names["engine"].recommend(["alice"], k=2).num_rows == 2
    assert names["ids"].shape == (5, 100)
    assert "fused, with LLM" in capsys.readouterr().out


def test_the_command_lines(place, tiny_encoder, monkeypatch, capsys):
    monkeypatch.chdir(place)
    interactions, movies = named_frames()
    csv.write_csv(interactions, "log.csv")
    csv.write_csv(movies, "items.csv")
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "hybridrec"
        if words[1] in ("fit", "tune"):  # the default encoder takes a minute: a small one
            words += ["--encoder", tiny_encoder, "-q"]
        if words[1] == "tune":
            words += ["--trials", "2"]
        assert main(words[1:]) == 0, line
    assert "compiled core" in capsys.readouterr().out


def test_it_opens_with_the_two_commands():
    first = re.search(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert [line.split()[:2] for line in first.group(1).splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]
