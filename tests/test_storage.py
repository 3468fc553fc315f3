"""Model folders: every kind of damage is refused, and no crash and no rival loses the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hybridrec import sealing, storage
from hybridrec.checks import InputError, StorageError
from hybridrec.storage import (
    current,
    from_sidecar,
    open_current,
    open_version,
    read_sidecar,
    remove_sidecar,
    save_version,
    set_current,
    write_sidecar,
)
from hybridrec.storage import versions as all_versions

FIXTURE = Path(__file__).parent / "fixtures" / "model-format-1"
HELPER = Path(__file__).parent / "storage_helper.py"


def fill(value: int) -> Any:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "als").mkdir()
        (folder / "als" / "items.npy").write_bytes(bytes([value]) * 100)
        (folder / "state.json").write_text(f"{value}\n")
        return {"value": value}

    return write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_version(folder, fill(1))
    return folder


def versions(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "versions").iterdir())


# -- round trips --------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    root = tmp_path / "new" / "model"
    version = save_version(root, fill(7))
    folder, model = open_current(root)
    assert model == {"value": 7}
    assert folder == root / "versions" / version
    assert (folder / "als" / "items.npy").read_bytes() == bytes([7]) * 100
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert set(manifest["files"]) == {"als/items.npy", "state.json"}
    assert (root / "CURRENT").read_text() == f"{version}\n"


def test_an_older_version_can_be_made_the_current_one(root: Path) -> None:
    first = current(root)
    second = save_version(root, fill(2))
    assert all_versions(root) == [first, second]
    set_current(root, first)
    assert current(root) == first
    assert open_current(root)[1] == {"value": 1}
    assert open_version(root, second)[1] == {"value": 2}
    third = save_version(root, fill(3))
    # It was the current one, so it stays; the one that had been set aside goes.
    assert all_versions(root) == [first, third]


def test_only_a_whole_version_becomes_the_current_one(root: Path, tmp_path: Path) -> None:
    first = current(root)
    second = save_version(root, fill(2))
    for wrong in ("x", "", f"../versions/{first}", ".tmp-x"):
        with pytest.raises(StorageError, match="holds no version"):
            set_current(root, wrong)
        with pytest.raises(StorageError, match="holds no version"):
            open_version(root, wrong)
    (root / "versions" / first / "state.json").write_text("rot")
    with pytest.raises(StorageError, match="was changed"):
        set_current(root, first)
    assert current(root) == second
    with pytest.raises(StorageError, match="no saved model"):
        set_current(tmp_path / "nothing", first)
    with pytest.raises(StorageError, match="no saved model"):
        all_versions(tmp_path / "nothing")


def test_the_current_one_is_not_changed_under_a_writer(root: Path) -> None:
    first = current(root)
    second = save_version(root, fill(2))

    def slow(folder: Path) -> dict[str, Any]:
        with pytest.raises(StorageError, match="is being written by"):
            set_current(root, first, wait=0.05)
        return fill(3)(folder)

    save_version(root, slow)
    assert open_current(root)[1] == {"value": 3}
    assert all_versions(root)[0] == second


def test_newest_two_versions_stay(root: Path) -> None:
    ids = [save_version(root, fill(value)) for value in range(4)]
    assert sorted(ids) == ids
    assert versions(root) == ids[-2:]
    assert open_current(root)[1] == {"value": 3}


def test_what_is_not_ours_in_versions_stays(root: Path) -> None:
    (root / "versions" / "backup").mkdir()
    (root / "notes.txt").write_text("mine")
    for value in range(3):
        save_version(root, fill(value))
    assert "backup" in versions(root)
    assert (root / "notes.txt").exists()


def test_a_fill_that_fails_changes_nothing(root: Path) -> None:
    before = versions(root)

    def broken(folder: Path) -> dict[str, Any]:
        fill(2)(folder)
        raise KeyError("no such stage")

    with pytest.raises(KeyError, match="no such stage"):
        save_version(root, broken)
    assert versions(root) == before
    assert open_current(root)[1] == {"value": 1}


def test_fixture_of_format_1_opens() -> None:
    folder, model = open_current(FIXTURE)
    assert model == {"stages": ["als"], "note": "format 1"}
    assert (folder / "als" / "state.json").read_text() == '{"factors": 2}\n'
    sidecar = read_sidecar(FIXTURE, "histories")
    assert sidecar is not None
    assert sidecar[1] == {"version": folder.name}


def test_older_format_is_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_2(manifest: dict[str, Any]) -> dict[str, Any]:
        return {**manifest, "format": 2, "model": {**manifest["model"], "note": "format 2"}}

    def to_3(manifest: dict[str, Any]) -> dict[str, Any]:
        return {**manifest, "format": 3, "model": {"was": manifest["model"]["note"]}}

    monkeypatch.setattr(sealing, "FORMAT", 3)
    monkeypatch.setitem(sealing.MIGRATIONS, 1, to_2)
    with pytest.raises(StorageError, match="format 1, which this hybridrec cannot read"):
        open_current(FIXTURE)
    monkeypatch.setitem(sealing.MIGRATIONS, 2, to_3)
    assert open_current(FIXTURE)[1] == {"was": "format 2"}


def test_newer_format_says_upgrade(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "FORMAT", 2)
    save_version(root, fill(1))
    monkeypatch.undo()
    with pytest.raises(StorageError, match=r"made by a newer hybridrec .*upgrade"):
        open_current(root)


# -- damage -------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    copy = path.parents[3] / "elsewhere"
    shutil.copy(path, copy)
    path.unlink()
    path.symlink_to(copy)


DAMAGE = {
    "changed": lambda folder: _flip(folder / "als" / "items.npy"),
    "truncated": lambda folder: os.truncate(folder / "als" / "items.npy", 99),
    "emptied": lambda folder: os.truncate(folder / "als" / "items.npy", 0),
    "missing": lambda folder: (folder / "als" / "items.npy").unlink(),
    "linked": lambda folder: _link(folder / "als" / "items.npy"),
    "replaced by a folder": lambda folder: [
        (folder / "als" / "items.npy").unlink(),
        (folder / "als" / "items.npy").mkdir(),
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(root: Path, damage: str) -> None:
    DAMAGE[damage](open_current(root)[0])
    with pytest.raises(StorageError, match=r"als/items\.npy"):
        open_current(root)
    save_version(root, fill(2))  # and a new save is not kept from replacing it
    assert open_current(root)[1] == {"value": 2}


def test_extra_file_is_named(root: Path) -> None:
    (open_current(root)[0] / "als" / "extra.bin").write_bytes(b"")
    with pytest.raises(StorageError, match=r"als/extra\.bin does not belong"):
        open_current(root)


def test_changed_manifest_is_refused(root: Path) -> None:
    path = open_current(root)[0] / "manifest.json"
    path.write_text(path.read_text().replace('"value": 1', '"value": 2'))
    with pytest.raises(StorageError, match=r"manifest\.json was changed"):
        open_current(root)
    for content in ("", "[]", "{}", "nothing", '{"format": "new"}', '{"format": null}'):
        path.write_text(content)
        with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
            open_current(root)
    path.unlink()
    with pytest.raises(StorageError, match=r"manifest\.json is missing"):
        open_current(root)


@pytest.mark.parametrize("content", [b"", b"\n", b"../../outside\n", b"a/b\n", b"\xff\n", b".\n"])
def test_damaged_current_is_refused(root: Path, content: bytes) -> None:
    before = versions(root)
    (root / "CURRENT").write_bytes(content)
    with pytest.raises(StorageError, match="CURRENT"):
        open_current(root)
    save_version(root, fill(2))
    assert open_current(root)[1] == {"value": 2}
    assert set(before) < set(versions(root))  # what might be the last good one is kept


def test_current_names_a_version_that_is_gone(root: Path) -> None:
    shutil.rmtree(open_current(root)[0])
    with pytest.raises(StorageError, match="missing"):
        open_current(root)


def test_linked_folders_and_pointer_are_refused(root: Path, tmp_path: Path) -> None:
    for inside in (f"versions/{versions(root)[0]}", "versions", "CURRENT"):
        moved = tmp_path / "moved"
        shutil.move(root / inside, moved)
        (root / inside).symlink_to(moved)
        with pytest.raises(StorageError, match="link"):
            open_current(root)
        (root / inside).unlink()
        shutil.move(moved, root / inside)
    assert open_current(root)[1] == {"value": 1}


def test_a_model_folder_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "production").symlink_to(root)
    assert open_current(tmp_path / "production")[1] == {"value": 1}


# -- what may be written where ------------------------------------------------------------------


def test_no_model_here(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no saved model"):
        open_current(tmp_path)
    with pytest.raises(StorageError, match="holds no saved model"):
        open_current(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="holds no saved model"):
        write_sidecar(tmp_path, "histories", fill(1))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log.csv").write_text("user,item\n")
    with pytest.raises(StorageError, match="holds no saved model"):
        open_current(tmp_path / "log.csv")


@pytest.mark.parametrize("name", ["thesis.tex", "CURRENT", ".hidden"])
def test_somebody_elses_folder_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match="not a model folder"):
        save_version(tmp_path, fill(1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(StorageError, match="not a folder"):
        save_version(tmp_path / "model", fill(1))


@pytest.mark.parametrize("name", [".hidden", "with space", "back\\slash", "ümlaut", "-dash"])
def test_names_that_are_not_plain_are_not_written(root: Path, name: str) -> None:
    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_text("")
        return {}

    with pytest.raises(StorageError, match="not a plain name"):
        save_version(root, write)
    assert open_current(root)[1] == {"value": 1}


def test_what_cannot_be_sealed(root: Path, tmp_path: Path) -> None:
    def link(folder: Path) -> dict[str, Any]:
        (folder / "weights").symlink_to(tmp_path)
        return {}

    def own_manifest(folder: Path) -> dict[str, Any]:
        (folder / "manifest.json").write_text("{}")
        return {}

    for write, message in ((link, "link or a device"), (own_manifest, "use another name")):
        with pytest.raises(StorageError, match=message):
            save_version(root, write)
    for model in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(StorageError, match="JSON"):
            save_version(root, lambda _, model=model: model)
    assert len(versions(root)) == 1


def test_a_folder_that_cannot_be_written(root: Path) -> None:
    def full(folder: Path) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        save_version(root, full)
    assert open_current(root)[1] == {"value": 1}


# -- sidecars -----------------------------------------------------------------------------------


def test_sidecar_is_replaced_and_erased(root: Path) -> None:
    assert read_sidecar(root, "histories") is None
    for value in (1, 2):
        write_sidecar(root, "histories", fill(value))
    sidecar = read_sidecar(root, "histories")
    assert sidecar is not None
    folder, info = sidecar
    assert info == {"value": 2}
    # To forget a user is to write the sidecar anew: nothing of the one before may stay.
    assert versions(root / "histories") == [folder.name]
    save_version(root, fill(5))
    assert read_sidecar(root, "histories") == (folder, {"value": 2})
    remove_sidecar(root, "histories")
    remove_sidecar(root, "histories")
    assert not (root / "histories").exists()
    assert not [name for name in versions(root) if name.startswith(".")]
    assert open_current(root)[1] == {"value": 5}


def test_a_version_is_current_once_what_belongs_beside_it_is_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, seen = storage._point, []

    def watched(home: Path, version: str) -> None:
        point(home, version)
        seen.append((home.name, read_sidecar(home, "histories") if home.name == "model" else None))

    def beside(folder: Path, version: str) -> dict[str, Any]:
        return {**fill(2)(folder), "version": version}

    before = current(root)
    monkeypatch.setattr(storage, "_point", watched)
    version = save_version(root, fill(2), beside=("histories", beside))
    assert version != before
    assert [name for name, _ in seen] == ["histories", "model"]
    assert seen[1][1] is not None
    assert seen[1][1][1] == {"value": 2, "version": version}
    # Of a first save nothing is there that another would take for somebody else's.
    fresh = tmp_path / "fresh" / "model"

    def broken(folder: Path, version: str) -> dict[str, Any]:
        raise RuntimeError("the plug was pulled")

    with pytest.raises(RuntimeError):
        save_version(fresh, fill(3), beside=("histories", broken))
    assert save_version(fresh, fill(4), beside=("histories", beside)) == current(fresh)
    # Of a later one the version before stays.
    with pytest.raises(RuntimeError):
        save_version(root, fill(5), beside=("histories", broken))
    assert current(root) == version
    with pytest.raises(InputError, match="sidecar name"):
        save_version(root, fill(6), beside=("versions", beside))


def test_a_sidecar_replaced_under_its_reader_is_read_again(root: Path) -> None:
    assert from_sidecar(root, "histories", lambda folder, info: info) is None
    write_sidecar(root, "histories", fill(1))
    seen = []

    def read(folder: Path, info: dict[str, Any]) -> int:
        seen.append(info["value"])
        if len(seen) == 1:
            write_sidecar(root, "histories", fill(2))
            raise StorageError("state.json is missing")
        return int((folder / "state.json").read_text())

    assert from_sidecar(root, "histories", read) == 2
    assert seen == [1, 2]

    def damaged(folder: Path, info: dict[str, Any]) -> None:
        raise StorageError("state.json is missing")

    with pytest.raises(StorageError, match="is missing"):
        from_sidecar(root, "histories", damaged)


def test_damaged_sidecar_is_refused_and_the_model_still_opens(root: Path) -> None:
    write_sidecar(root, "histories", fill(1))
    sidecar = read_sidecar(root, "histories")
    assert sidecar is not None
    _flip(sidecar[0] / "state.json")
    with pytest.raises(StorageError, match=r"state\.json was changed"):
        read_sidecar(root, "histories")
    assert open_current(root)[1] == {"value": 1}


@pytest.mark.parametrize("name", ["versions", "CURRENT", "../histories", ".lock", "", "a/b"])
def test_sidecar_names(root: Path, name: str) -> None:
    for call in (read_sidecar, remove_sidecar):
        with pytest.raises(InputError, match="sidecar name"):
            call(root, name)


def test_a_folder_of_the_users_is_no_sidecar(root: Path, tmp_path: Path) -> None:
    (root / "histories").mkdir()
    (root / "histories" / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="not a model folder"):
        write_sidecar(root, "histories", fill(1))
    with pytest.raises(StorageError, match="not a model folder"):
        remove_sidecar(root, "histories")
    (root / "linked").symlink_to(tmp_path / "model")
    with pytest.raises(StorageError, match="link"):
        remove_sidecar(root, "linked")
    with pytest.raises(StorageError, match="link"):
        read_sidecar(root, "linked")


# -- rivals -------------------------------------------------------------------------------------


def test_who_holds_the_lock_is_said(root: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, Any]:
        inside.set()
        leave.wait(20)
        return {"value": 9}

    writer = threading.Thread(target=save_version, args=(root, slow))
    writer.start()
    try:
        assert inside.wait(20)
        with pytest.raises(StorageError, match=f"written by process {os.getpid()} on .*waited 0"):
            save_version(root, fill(2), wait=0.1)
        assert open_current(root)[1] == {"value": 1}  # readers do not wait
    finally:
        leave.set()
        writer.join()
    assert open_current(root)[1] == {"value": 9}


def test_a_version_removed_while_it_is_opened_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = storage.verified, []

    def overtaken(folder: Path) -> dict[str, Any]:
        calls.append(folder.name)
        if len(calls) == 1:
            save_version(root, fill(2))
            save_version(root, fill(3))
        return real(folder)

    monkeypatch.setattr(storage, "verified", overtaken)
    assert open_current(root)[1] == {"value": 3}
    assert len(calls) == 2


def _helper(*arguments: object) -> subprocess.Popen[str]:
    # One BLAS thread: the helper forks, and has no use for more.
    settings = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(storage.__file__).parents[1]),
    }
    command = [sys.executable, str(HELPER), *map(str, arguments)]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)


def test_two_processes_save_into_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "model"
    writers = [_helper("save", root, first, 20) for first in (0, 100)]
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    ids = [line for output in outputs for line in output.split()]
    assert len(set(ids)) == 40
    assert open_current(root)[0].name == max(ids)
    assert versions(root) == sorted(ids)[-2:]


def test_a_kill_anywhere_leaves_a_model(tmp_path: Path) -> None:
    """SIGKILL at random times, and a death before each single write, flush and rename."""
    for mode in ("kill", "die"):
        helper = _helper(mode, tmp_path / mode, 0)
        output = helper.communicate(timeout=120)[0]
        assert helper.returncode == 0, output
        deaths, torn = map(int, output.split())
        assert deaths >= 20
        assert torn >= 5  # so many deaths left a half-written version behind: they hit their mark
        save_version(tmp_path / mode, fill(250))
        assert open_current(tmp_path / mode)[1] == {"value": 250}
        assert len(versions(tmp_path / mode)) == 2


def test_everything_is_flushed_before_current_names_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        real["fsync"](handle)

    def rename(source: Path, target: Path) -> None:
        events.append("rename")
        real["rename"](source, target)

    def replace(source: Path, target: Path) -> None:
        events.append("replace")
        real["replace"](source, target)

    for name, spy in (("fsync", fsync), ("rename", rename), ("replace", replace)):
        monkeypatch.setattr(os, name, spy)
    save_version(root, fill(2))
    rename_at, replace_at = events.index("rename"), events.index("replace")
    flushed = {Path(path).name for path in events[:rename_at]}
    assert {"items.npy", "als", "state.json", "manifest.json"} < flushed
    assert len(flushed) == 5  # and the version's own folder
    assert [Path(path).name for path in events[rename_at + 1 :]] == [
        "versions",
        ".tmp-CURRENT",
        "replace",
        "model",
    ]
    assert rename_at < replace_at
