"""A version in memory: ids of every kind, nothing of what users did, and their types."""

import copy
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import hybridrec as hr
from hybridrec import storage
from hybridrec.serve.versions.models import load_model


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A model whose ids are numbers."""
    folder = tmp_path_factory.mktemp("numbered") / "model"
    rows = [(user, 10 * item, user + item) for user in range(20) for item in range(user % 5, 8)]
    frame = pa.table(dict(zip(("user", "item", "at"), zip(*rows, strict=True), strict=True)))
    data = hr.Dataset.from_frame(frame, user="user", item="item", time="at")
    model = hr.HybridRecommender([hr.ItemTransitions(), hr.Popularity()]).fit(data)
    model.save(folder, histories=True)
    return folder


def test_what_users_did_is_not_held_and_who_they_are_is(loaded, engine):
    assert loaded.data.n_users == engine.data.n_users == 60
    assert loaded.data.n_events == 0
    assert loaded.data.excluded is None
    assert loaded.user_code("u3") == engine.data.users.codes(["u3"])[0]
    assert loaded.user_code("stranger") == loaded.user_code(None) == -1
    assert (loaded.user_ids, loaded.item_ids) == ("str", "str")


def test_ids_are_coerced_to_the_type_of_the_model(loaded, numbered):
    assert loaded.item("i3") == "i3"
    assert loaded.item(3) == "3"
    by_number = load_model(numbered)
    assert (by_number.user_ids, by_number.item_ids) == ("int", "int")
    assert by_number.item("30") == by_number.item(30) == 30
    assert by_number.user("-3") == -3
    assert by_number.item_codes(["30", 30, 31, "030", "x"]).tolist()[2:] == [-1, -1, -1]
    assert len(set(by_number.item_codes(["30", 30]).tolist())) == 1
    assert by_number.item_id(by_number.item_codes([30])[0]) == 30


@pytest.mark.parametrize(
    "wrong", ["x", "", "07", "+7", " 7", "1_0", "7.0", "-0", "9" * 30, 2**63, "²", "٣"]
)
def test_what_is_no_number_is_no_id_of_a_model_of_numbers(numbered, wrong):
    with pytest.raises(hr.UnknownIdError, match="unknown"):
        load_model(numbered).item(wrong)


def test_unknown_items_are_named(loaded):
    with pytest.raises(hr.UnknownIdError, match=r"block\[1\] is 'nothing'.*1 of 3"):
        loaded.known_items("block", ["i1", "nothing", "i2"])


def test_titles_are_the_texts_where_there_is_no_title(loaded, numbered):
    assert loaded.title(0) == loaded.data.texts[0]
    assert load_model(numbered).title(0) is None


def test_titles_are_one_short_line(loaded):
    columns = {"title": np.array(["  Heat\n 1995", None, "x" * 500] + ["Clue"] * 27, object)}
    titled = replace(loaded.data, item_columns=columns)
    engine = copy.copy(loaded.engine)
    engine._model = replace(engine._model, data=titled)
    held = replace(loaded, engine=engine)
    assert held.title(0) == "Heat 1995"
    assert held.title(1) is None
    assert held.title(2) == "x" * 119 + "…"


def test_the_manifest_keeps_the_type_of_user_ids(numbered, tmp_path):
    stripped = hr.load(numbered, histories=False)
    assert stripped.data.n_users == 20
    anonymous = tmp_path / "anonymous"
    hr.load(numbered).save(anonymous)
    again = hr.load(anonymous)
    assert again.data.n_users == 0
    again.save(anonymous)
    folder, _ = storage.open_current(anonymous)
    assert json.loads((folder / "manifest.json").read_text())["model"]["user_ids"] == "int"
    assert load_model(anonymous).user_ids == "int"


def test_a_version_is_loaded_by_its_id(own_folder, save_another):
    first = storage.current(own_folder)
    second = save_another(own_folder)
    assert storage.versions(own_folder) == [first, second]
    assert load_model(own_folder).version == second
    before = load_model(own_folder, first)
    assert before.version == first
    assert not before.engine.retired.any()
    with pytest.raises(hr.StorageError, match="holds no version 'nothing'"):
        load_model(own_folder, "nothing")
