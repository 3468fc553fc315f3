"""The command line as a newcomer would use it, on a tiny frame written to CSV."""

import json
import re
import tomllib
from pathlib import Path

import pyarrow.csv as csv
import pytest

import hybridrec as hr
from hybridrec.cli import main

ROOT = Path(__file__).parent.parent
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


def test_evaluate_writes_a_page_of_its_own(model, files, capsys, tmp_path):
    page, log = tmp_path / "out.html", str(files / "log.csv")
    command = ["evaluate", model, log, "-q", "--report", str(page), "--sample", "20"]
    assert main(command) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "20 queries of 20 users" in text
    assert "<title>model on log.csv</title>" in text
    assert text.count("<article>") == 6
    assert ". crime" in text
    assert main([*command, "--examples", "0"]) == 0
    assert "<article>" not in page.read_text(encoding="utf-8")
    assert main([*command, "--examples", "-1"]) == 2
    assert "--examples is -1" in capsys.readouterr().err


def test_a_model_that_has_seen_the_answers_is_not_evaluated(files, capsys):
    whole = ["fit", str(files / "log.csv"), "-o", str(files / "whole"), "-q"]
    assert main(whole) == 0
    assert main(["evaluate", str(files / "whole"), str(files / "log.csv")]) == 2
    assert "--hold-out" in capsys.readouterr().err


@pytest.mark.parametrize("seen_last", [True, False])
def test_histories_of_another_version_tell_nothing(files, tmp_path, caplog, seen_last):
    log, model = str(files / "log.csv"), str(tmp_path / "model")
    data = hr.Dataset.from_frame(log, user="user_id", item="item_id", time="timestamp")
    held_out = hr.split.leave_last(data).train
    for fitted in (held_out, data) if seen_last else (data, held_out):
        engine = hr.HybridRecommender([hr.Popularity()]).fit(fitted)
        engine.save(model, histories=True)
    for status, warned in ((2 if seen_last else 0, False), (0, True)):
        caplog.clear()
        assert main(["evaluate", model, log, "-q"]) == status
        assert ("has seen the answers is unknown" in caplog.text) == warned
        assert main(["rollback", model]) == 0


def write(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def test_a_held_out_repeat_is_no_answer_that_was_seen(tmp_path, capsys):
    rows = [f"u{user},{item},{time}" for user in range(6) for time, item in enumerate("abcdea")]
    log = write(tmp_path / "log.csv", "user,item,time", rows)
    for flags, status in ((["--hold-out"], 0), ([], 2)):
        model = str(tmp_path / f"model{status}")
        assert main(["fit", log, "--factors", "4", "-q", "-o", model, *flags]) == 0
        capsys.readouterr()
        assert main(["evaluate", model, log, "-q"]) == status
    assert "fitted on 6 of the 6" in capsys.readouterr().err


def test_ids_of_text_files_need_no_common_look(tmp_path, capsys):
    rows = [f"{user},{1 + (user + t) % 6},{t}" for user in range(8) for t in range(5)]
    log = write(tmp_path / "log.csv", "user,item,time", rows)
    items = write(tmp_path / "items.csv", "item,title", [f"{i},t{i}" for i in ["A7", *range(1, 7)]])
    model = str(tmp_path / "model")
    command = ["fit", log, "--items", items, "-q", "--factors", "4", "--hold-out", "-o", model]
    assert main(command) == 0
    assert main(["evaluate", model, log, "-q"]) == 0
    capsys.readouterr()
    assert main(["recommend", model, "--user", "3", "-k", "9"]) == 0
    assert "\tA7\t" in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_refused_before_fitting(files, tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.tex").write_text("mine")

    def fit(self, data):
        raise AssertionError("fitted for nothing")

    monkeypatch.setattr(hr.HybridRecommender, "fit", fit)
    assert main(["fit", str(files / "log.csv"), "-o", str(tmp_path), "-q"]) == 2
    assert "'thesis.tex'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_next_command_is_one_that_works(files, tmp_path, capsys):
    import shlex

    for flags in ([], ["--no-histories"]):
        model = str(tmp_path / f"a model{len(flags)}")
        assert main(["fit", str(files / "log.csv"), "-q", "-o", model, *flags]) == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert main(shlex.split(said)[2:]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 10


def test_what_cannot_be_written_is_refused_before_the_work(
    model, files, tmp_path, capsys, monkeypatch
):
    def work(*_, **given):
        raise AssertionError("worked for nothing")

    monkeypatch.setattr(hr, "evaluate", work)
    monkeypatch.setattr(hr.HybridRecommender, "fit", work)
    log, kept = str(files / "log.csv"), tmp_path / "kept.html"
    kept.write_text("kept")
    for option in ("--json", "--report"):
        for path in (tmp_path / "none" / "x.html", tmp_path, kept / "x.html"):
            assert main(["evaluate", model, log, "-q", option, str(path)]) == 2
            assert f"error: {option} {path} cannot be written (" in capsys.readouterr().err
    for path in ("/proc/x", str(kept / "model")):
        assert main(["fit", log, "-q", "-o", path]) == 2
        assert f"error: --output {path} cannot be written (" in capsys.readouterr().err
    # What can be written waits for its results.
    new = tmp_path / "new.html"
    for path in (kept, new):
        with pytest.raises(AssertionError, match="for nothing"):
            main(["evaluate", model, log, "-q", "--report", str(path)])
    assert kept.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "{model}", "--user", "nobody"], "'nobody' is unknown: give --history, or"),
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


@pytest.fixture
def nameless(files, tmp_path):
    data = hr.Dataset.from_frame(files / "log.csv", user="user_id", item="item_id")
    hr.HybridRecommender([hr.Popularity()]).fit(data).save(tmp_path / "nameless")
    return str(tmp_path / "nameless")


def test_without_histories_every_user_is_unknown_whatever_the_name(nameless, capsys):
    for user in ("alice", "7"):
        assert main(["recommend", nameless, "--user", user]) == 2
        assert f"'{user}' is unknown, as this model holds no users'" in capsys.readouterr().err
        assert main(["recommend", nameless, "--user", user, "--unknown", "popular", "-k", "1"]) == 0
        assert capsys.readouterr().out.startswith(f"{user}\t1\t")


def test_an_empty_history_is_one(nameless, capsys):
    assert main(["recommend", nameless, "--history", "", "-k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_data_that_tell_no_last_event_are_refused_by_the_flag(model, tmp_path, capsys):
    log = write(tmp_path / "log.csv", "user,item", ["a,x", "a,y", "b,x", "b,y"])
    out = str(tmp_path / "out")
    for command in (["evaluate", model], ["fit", "-o", out], ["tune", "-o", out]):
        flags = [] if command[0] == "evaluate" else ["--hold-out"]
        assert main([*command, log, *flags, "-q"]) == 2
        assert "no time column" in (said := capsys.readouterr().err)
        assert "--time" in said


def test_ids_of_another_type_are_told_with_their_file(tmp_path, capsys):
    rows = [f"{user},{1 + (user + t) % 6},{t},n{t}" for user in range(8) for t in range(5)]
    log = write(tmp_path / "log.csv", "user,item,time,name", rows)
    data = hr.Dataset.from_frame(log, user="user", item="item", time="time")
    model = str(tmp_path / "model")
    hr.HybridRecommender([hr.Popularity()]).fit(data).save(model, histories=True)
    for column in ("item", "user"):
        assert main(["evaluate", model, log, f"--{column}", "name", "-q"]) == 2
        assert f"log.csv has {column} ids such as 'n0'" in (said := capsys.readouterr().err)
        assert f"with --{column}" in said


def test_ctrl_c_ends_with_one_line(files, tmp_path, capsys, monkeypatch):
    def interrupted(self, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(hr.HybridRecommender, "fit", interrupted)
    assert main(["fit", str(files / "log.csv"), "-o", str(tmp_path / "model"), "-q"]) == 130
    assert capsys.readouterr().err == "hybridrec: interrupted\n"


def test_help_is_there_for_every_command(capsys):
    for command in ("demo", "fit", "tune", "recommend", "evaluate", "doctor"):
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


def test_doctor_names_all_that_each_extra_brings(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    told = dict(re.findall(r"^\[(\w+)\] (.*)$", out, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(told) == set(extras) - {"all", "test", "bench", "dev"}
    for extra, names in told.items():
        for wanted in extras[extra]:
            name = re.match(r"[\w-]+", wanted)[0]
            assert name == "hybridrec" or f"{name} " in names


def test_doctor_finds_both_builds_of_faiss(monkeypatch, capsys):
    from hybridrec import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    assert main(["doctor"]) == 0
    assert "faiss-cpu and faiss-gpu own the same module" in capsys.readouterr().out
