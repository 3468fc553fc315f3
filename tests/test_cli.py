"""The command line as a newcomer would use it, on a tiny frame written to CSV."""

import json

import pyarrow.csv as csv
import pytest

from hybridrec.cli import main

TEMPLATE = "{title}. {genres}"


@pytest.fixture(scope="module")
def files(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    events, items = frames
    csv.write_csv(events, folder / "log.csv")
    csv.write_csv(items, folder / "items.csv")
    return folder


@pytest.fixture(scope="module")
def model(files, tiny_encoder):
    command = ["fit", str(files / "log.csv"), "--items", str(files / "items.csv"), "-q"]
    command += ["--item-text", TEMPLATE, "--encoder", tiny_encoder, "--factors", "8"]
    command += ["--depth", "20", "--hold-out", "-o", str(files / "model")]
    assert main(command) == 0
    return str(files / "model")


def test_recommend_prints_a_line_an_item(model, capsys):
    assert main(["recommend", model, "--user", "u1", "--user", "u2", "-k", "3"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["u1", str(r)] for r in (1, 2, 3)] + [
        ["u2", str(r)] for r in (1, 2, 3)
    ]
    assert all(line[4].endswith(("crime", "drama", "comedy", "horror")) for line in lines)


def test_recommend_as_json_for_a_history(model, capsys):
    assert main(["recommend", model, "--history", "i3, i4", "-k", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2]
    assert set(rows[0]) == {"user", "rank", "item", "score", "text"}
    assert not {"i3", "i4"} & {row["item"] for row in rows}


def test_evaluate_prints_the_table_and_writes_the_report(model, files, capsys, tmp_path):
    command = ["evaluate", model, str(files / "log.csv"), "--json", str(tmp_path / "report.json")]
    assert main(command) == 0
    assert "fused, with LLM" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"name", "recall@100", "hr@10", "ndcg@10", "ndcg@10_ci", "ms_per_user"} <= set(
        report["stages"][0]
    )


def test_a_model_that_has_seen_the_answers_is_not_evaluated(files, capsys):
    whole = ["fit", str(files / "log.csv"), "-o", str(files / "whole"), "-q"]
    assert main(whole) == 0
    assert main(["evaluate", str(files / "whole"), str(files / "log.csv")]) == 2
    assert "--hold-out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "{model}", "--user", "nobody"], "'nobody'"),
        (["recommend", "{model}"], "--user"),
        (["recommend", "{model}", "--user", "u1", "-k", "0"], "k is 0"),
        (["recommend", "{files}/nothing", "--user", "u1"], "nothing"),
        (["fit", "{files}/none.csv", "-o", "{files}/x"], "none.csv"),
        (["fit", "{files}/items.csv", "-o", "{files}/x"], "--user"),
        (["fit", "{files}/log.csv", "--encoder", "./no", "-o", "{files}/x"], "--item-text"),
        (["fit", "{files}/log.csv", "--time", "when", "-o", "{files}/x"], "'when'"),
        (["fit", "{files}/log.csv", "--positive", "3", "-o", "{files}/x"], "rating"),
    ],
)
def test_mistakes_end_with_one_line_that_helps(model, files, arguments, message, capsys):
    filled = [part.format(model=model, files=files) for part in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_help_is_there_for_every_command(capsys):
    for command in ("demo", "fit", "recommend", "evaluate", "doctor"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "usage: hybridrec" in capsys.readouterr().out
    assert main([]) == 0
    assert "hybridrec demo" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["fit", "x", "--no-such-flag"])
    assert stop.value.code == 2


def test_doctor_names_the_build_and_what_is_missing(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "compiled core: " in out
    assert "[llm] torch " in out
    assert "numpy" in out


def test_doctor_finds_both_builds_of_faiss(monkeypatch, capsys):
    from hybridrec import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    assert main(["doctor"]) == 0
    assert "faiss-cpu and faiss-gpu own the same module" in capsys.readouterr().out
