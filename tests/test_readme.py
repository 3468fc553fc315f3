"""Every Python snippet and every hybridrec line of the README runs, in order, on a tiny frame."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from contextlib import ExitStack
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest
from scipy.sparse import csr_matrix

from hybridrec.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


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
    with ExitStack() as running:
        for line in lines:
            run(shlex.split(line, comments=True), running, tiny_encoder)
    assert "compiled core" in capsys.readouterr().out


def run(words, running, tiny_encoder):
    """Run one line; what it starts ends with ``running``."""
    if words[0] == "pip":
        wanted = re.search(r"\[(.*)\]", words[-1])[1].split(",")
        assert set(wanted) <= set(EXTRAS["project"]["optional-dependencies"])
    elif words[0] == "curl":
        assert words[1:3] == ["-s", "localhost:8000/v1/recommend"]
        name, _, value = words[words.index("-H") + 1].partition(": ")
        body = words[words.index("-d") + 1]
        answer = httpx2.post(f"{running.url}/v1/recommend", headers={name: value}, content=body)
        assert len(answer.json()["items"]) == json.loads(body)["k"]
    elif words[1] == "serve":
        command = [sys.executable, "-m", "hybridrec.cli", *words[1:], "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.callback(process.wait)
        running.callback(process.terminate)
        running.url = re.search(r"http://\S+", running.enter_context(process.stdout).readline())[0]
    else:
        assert words[0] == "hybridrec"
        if words[1] in ("fit", "tune"):  # the default encoder takes a minute: a small one
            words += ["--encoder", tiny_encoder, "-q"]
        if words[1] == "tune":
            words += ["--trials", "2"]
        assert main(words[1:]) == 0, words


def test_it_opens_with_the_two_commands():
    first = re.search(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert [line.split()[:2] for line in first.group(1).splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]
