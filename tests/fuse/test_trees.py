"""Trees learn what a sum of signals cannot say, and the same bits whatever the threads."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_fusion_contract import changed, make_lists

import hybridrec as hr
from hybridrec.candidates import Candidates

pytest.importorskip("lightgbm")


def small(**settings):
    return hr.TreeFusion(**{"trees": 20, "leaves": 6, "least_in_leaf": 20, **settings})


def test_a_signal_about_the_query_decides_which_other_signal_counts():
    """Short histories choose by the first signal, long ones by the second."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(2, 1500, 10)).astype(np.float32)
    long = rng.random((1500, 1)) < 0.5
    length = np.repeat(np.where(long, 5.0, 1.0), 10, axis=1).astype(np.float32)
    place = np.where(long, raw[1], raw[0]).argmax(axis=1)
    items = np.tile(np.arange(10, dtype=np.int32), (1500, 1))
    scores = np.tile(-np.arange(10, dtype=np.float32), (1500, 1))
    lists = Candidates(items, scores, {"a": raw[0], "b": raw[1], "length": length})
    half = np.arange(750)
    found = {}
    for fusion in (small(), hr.LinearFusion()):
        fusion.fit(lists.select(half), place[half])
        top = fusion.rank(lists.select(half + 750)).items[:, 0]
        found[type(fusion)] = (top == place[750:]).mean()
    assert found[hr.TreeFusion] > 0.8
    assert found[hr.LinearFusion] < 0.65


def test_the_number_of_threads_is_not_seen():
    lists = make_lists()
    one, three = (small(threads=n).fit(*lists) for n in (1, 3))
    assert one._texts == [
        text.replace("[num_threads: 3]", "[num_threads: 1]") for text in three._texts
    ]
    np.testing.assert_array_equal(one.score(lists[0]), three.score(lists[0]))


def test_seeds_are_averaged_and_differ():
    lists = make_lists()
    both = small(seeds=2, seed=4).fit(*lists).score(lists[0])
    first, second = (small(seeds=1, seed=seed).fit(*lists).score(lists[0]) for seed in (4, 5))
    assert (first != second).any()
    valid = lists[0].valid
    np.testing.assert_allclose(both[valid], (first[valid] + second[valid]) / 2, rtol=1e-5)


def test_a_sample_of_lists_is_seeded():
    lists = make_lists()
    some = small(lists=100).fit(*lists)
    np.testing.assert_array_equal(
        some.score(lists[0]), small(lists=100).fit(*lists).score(lists[0])
    )
    assert (some.score(lists[0]) != small().fit(*lists).score(lists[0])).any()


def test_raw_values_are_read_of_signals_about_the_query_alone():
    candidates, targets = make_lists()
    fusion = small().fit(candidates, targets)
    np.testing.assert_array_equal(fusion._flat, [False, False, False, True])
    shifted = changed(candidates, s0=candidates.signals["s0"] + np.float32(0.0))
    np.testing.assert_array_equal(fusion.score(shifted), fusion.score(candidates))


def test_too_few_lists_to_split_leave_the_linear_order():
    candidates, targets = make_lists(rows=3)
    told = {name: values for name, values in candidates.signals.items() if name.startswith("s")}
    lists = Candidates(candidates.items, candidates.scores, told)
    scores = hr.TreeFusion().fit(lists, targets).score(lists)
    np.testing.assert_allclose(
        scores, hr.LinearFusion().fit(lists, targets).score(lists), rtol=1e-5, atol=1e-6
    )


def test_lists_of_which_nothing_tells_candidates_apart_get_one_order():
    candidates, targets = make_lists(rows=3)
    told = {"about the query": candidates.signals["about the query"]}
    lists = Candidates(candidates.items, candidates.scores, told)
    scores = hr.TreeFusion().fit(lists, targets).score(lists)
    assert len(np.unique(scores[lists.valid])) == 1


def test_a_saved_fusion_is_read_without_lightgbm(tmp_path):
    candidates, targets = make_lists()
    fusion = small().fit(candidates, targets)
    fusion.save_files(tmp_path / "fusion")
    code = (
        "import pathlib, sys\n"
        "sys.modules['lightgbm'] = None\n"
        "import hybridrec as hr\n"
        f"fusion = hr.TreeFusion.load_files(pathlib.Path({str(tmp_path / 'fusion')!r}))\n"
        "print(len(fusion._forests), fusion.signals)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "2 ('s0', 's1', 's2', 'about the query')"


def test_trees_saved_before_they_had_a_linear_start_are_read(tmp_path):
    candidates, targets = make_lists()
    fusion = small().fit(candidates, targets)
    fusion.save_files(tmp_path)
    (tmp_path / "coefficients.npy").unlink()
    state = json.loads((tmp_path / "state.json").read_text())
    state["arrays"].remove("coefficients")
    (tmp_path / "state.json").write_text(json.dumps(state))
    old = hr.TreeFusion.load_files(tmp_path)
    fusion._coefficients = np.empty(0)
    np.testing.assert_array_equal(old.score(candidates), fusion.score(candidates))


def test_without_lightgbm_fitting_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(hr.MissingExtraError, match=r"hybridrec\[trees\]"):
        small().fit(*make_lists())


def test_trees_that_are_read_wrongly_are_refused(monkeypatch):
    from hybridrec.fuse import forest

    monkeypatch.setattr(forest.Forest, "score", lambda self, table: np.zeros(table.shape[1]))
    with pytest.raises(hr.FitError, match="score otherwise"):
        small().fit(*make_lists())


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_files_are_refused(tmp_path, damage):
    small().fit(*make_lists()).save_files(tmp_path)
    path = tmp_path / "trees_1.txt"
    text = path.read_text()
    path.unlink()
    if damage == "cut":
        path.write_text(text[: len(text) // 3])
    with pytest.raises(hr.StorageError, match="trees"):
        hr.TreeFusion.load_files(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trees": 0}, "trees is 0"),
        ({"leaves": 1}, "leaves is 1"),
        ({"leaves": 65}, "leaves is 65"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"least_in_leaf": 0}, "least_in_leaf is 0"),
        ({"l2": -1.0}, "l2 is -1"),
        ({"features": 0.0}, "features is 0"),
        ({"sample": 1.5}, "sample is 1.5"),
        ({"seeds": 0}, "seeds is 0"),
        ({"lists": 0}, "lists is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_nonsense_is_refused_when_made(settings, words):
    with pytest.raises(hr.InputError, match=words):
        hr.TreeFusion(**settings)
