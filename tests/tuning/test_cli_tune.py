"""``hybridrec tune`` and ``fit --settings`` as somebody would use them."""

import json
import shlex

import pyarrow.csv as csv
import pytest

import hybridrec as hr
from hybridrec import cli_tune, recipe
from hybridrec.cli import main


@pytest.fixture(scope="module")
def files(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli tune")
    events, items = frames
    csv.write_csv(events, folder / "log.csv")
    csv.write_csv(items, folder / "items.csv")
    engine = hr.HybridRecommender([hr.ALS(8, epochs=3), hr.Popularity()], None, hr.LinearFusion())
    (folder / "start.json").write_text(json.dumps({"recommender": hr.settings_of(engine)}))
    return folder


def words(files, *more):
    return ["tune", str(files / "log.csv"), "-q", "--trials", "2", *more]


def start(files):
    return ["--settings", str(files / "start.json")]


def test_the_next_command_fits_what_was_found(files, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "the search")
    assert main(words(files, *start(files), "--hold-out", "-o", out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["part", "trials", "given", "best", "best", "settings"]
    assert lines[-2] == f"Wrote {out}/best.json"
    assert "recaller als: NDCG@10" in caplog.text
    assert "half-life" not in caplog.text  # of the fits inside
    command = shlex.split(lines[-1].removeprefix("Next: hybridrec "))
    assert main([*command, "-q"]) == 0
    assert "found on other data" not in caplog.text
    assert "half-life" in caplog.text
    told = json.loads((tmp_path / "the search" / "best.json").read_text())
    assert hr.settings_of(hr.load("model")) == told["recommender"]
    assert main(["evaluate", "model", str(files / "log.csv"), "-q"]) == 0


def test_held_out_events_that_had_a_say_are_not_passed_over(files, tmp_path, caplog):
    assert main(words(files, *start(files), "-o", str(tmp_path / "search"))) == 0
    fit = ["fit", str(files / "log.csv"), "-q", "--settings", str(tmp_path / "search/best.json")]
    assert main([*fit, "-o", str(tmp_path / "b")]) == 0
    assert "was found on other data" not in caplog.text
    assert main([*fit, "--hold-out", "-o", str(tmp_path / "a")]) == 0
    assert "was found on other data" in caplog.text


def test_ctrl_c_says_how_to_go_on(files, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **given):
        raise KeyboardInterrupt

    command = words(files, *start(files), "--user", "user_id", "--hold-out", "--seed", "3")
    command += ["-o", str(tmp_path / "s")]
    with monkeypatch.context() as patch:
        patch.setattr(hr, "tune", interrupted)
        with pytest.raises(SystemExit) as stop:
            main(command)
    assert stop.value.code == 130
    said = capsys.readouterr().err.splitlines()[-1].removeprefix("Go on with: hybridrec ")
    parsed = cli_tune.argparse.ArgumentParser()
    cli_tune.add_tune_parser(parsed.add_subparsers(), cli_tune.argparse.ArgumentParser(add_help=0))
    again = vars(parsed.parse_args(shlex.split(said)))
    meant = vars(parsed.parse_args([word for word in command if word != "-q"]))
    assert again == meant


def test_without_settings_it_starts_from_what_did_best(files, tmp_path, monkeypatch):
    given = {}

    def seen(data, engine, **settings):
        given.update(settings, engine=engine)
        raise hr.InputError("seen enough")

    monkeypatch.setattr(hr, "tune", seen)
    table = ["--items", str(files / "items.csv"), "--item-text", "{title}", "--encoder", "e"]
    command = ["tune", str(files / "log.csv"), "-o", str(tmp_path / "s"), *table]
    assert main([*command, "--reranker", "--seed", "5"]) == 2
    assert (given["minutes"], given["trials"], given["seed"]) == (30.0, None, 5)
    assert [type(stage) for stage in given["offered"]] == [hr.ItemKNN]
    data = hr.Dataset.from_frame(
        files / "log.csv", user="user_id", item="item_id", time="timestamp",
        items=files / "items.csv", item_text="{title}",
    )  # fmt: skip
    made = recipe.default_recommender(data, encoder="e", reranker=True, seed=5)
    assert hr.settings_of(given["engine"]) == hr.settings_of(made)
    assert main(command) == 2
    assert given["engine"].reranker is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "{log}", "-o", "{files}"], "no search"),
        (["tune", "{log}", "-o", "{new}", "--trials", "0"], "trials is 0"),
        (["tune", "{log}", "-o", "{new}", "--reranker"], "--item-text"),
        (["tune", "{log}", "-o", "{new}", "--settings", "{files}/no.json"], "no.json"),
        (["tune", "{log}", "-o", "{new}", "--settings", "{start}", "--reranker"], "leave"),
        (["tune", "{log}", "-o", "{new}", "--time", "when"], "'when'"),
        (["fit", "{log}", "-o", "{new}", "--settings", "{start}", "--factors", "3"], "--factors"),
        (["fit", "{log}", "-o", "{new}", "--settings", "{start}", "--seed", "0"], "--seed"),
        (["fit", "{log}", "-o", "{new}", "--settings", "{files}/log.csv"], "log.csv"),
    ],
)
def test_mistakes_end_with_one_line_that_helps(files, tmp_path, arguments, message, capsys):
    places = {"log": files / "log.csv", "files": files, "start": files / "start.json"}
    filled = [part.format(**places, new=tmp_path / "new") for part in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_a_reranker_of_the_settings_may_be_left_out(files, tmp_path, monkeypatch):
    engine = hr.HybridRecommender([hr.Popularity()], hr.CrossEncoder("no/such/model"))
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"recommender": hr.settings_of(engine)}))
    command = ["fit", str(files / "log.csv"), "-q", "--settings", str(path), "--no-reranker"]
    assert main([*command, "-o", str(tmp_path / "model")]) == 0
    assert hr.load(tmp_path / "model").reranker is None
