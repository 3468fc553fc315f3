"""A package imports only what stands to its left, heavy libraries stay behind one door each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hybridrec"
ORDER = [
    "_core",
    "checks",
    "bars",
    "state",
    "ragged",
    "deadline",
    "candidates",
    "ranking",
    "protocols",
    "data",
    "recall",
    "signals",
    "rerank",
    "fuse",
    "evaluation",
    "sealing",
    "storage",
    "newcomers",
    "neighbours",
    "defaults",
    "pipeline",
    "stage_lists",
    "lessons",
    "fusing",
    "training",
    "persistence",
    "stages",
    "engine",
    "loading",
    "recipe",
    "tuning",
    "serve",
    "client",
    "demo",
    "doctor",
    "cli_data",
    "cli_output",
    "cli_evaluate",
    "cli_tune",
    "cli_serve",
    "cli",
]
DOORS = {
    "faiss": {"recall/faiss_kinds.py", "doctor.py"},
    "lightgbm": {"fuse/trees.py"},
    "optuna": {"tuning/trials.py"},
    "implicit": {"recall/implicit_model.py"},
    "torch": {
        "rerank/",
        "recall/als_torch.py",
        "recall/sequence.py",
        "recall/sequence_network.py",
        "recall/sequence_training.py",
        "recall/text_encoder.py",
        "doctor.py",
    },
    "transformers": {"rerank/", "recall/text_encoder.py"},
    "fastapi": {"serve/"},
    "starlette": {"serve/"},
    "uvicorn": {"serve/"},
    "pydantic": {"serve/wire/", "client/"},
    "httpx2": {"client/"},
    "prometheus_client": {"serve/watch/metrics.py"},
    "opentelemetry": {"serve/watch/tracing.py"},
    "psycopg": {"serve/store/postgres_"},
    "psycopg_pool": {"serve/store/postgres_store.py"},
    "limits": {"serve/access/rates.py"},
    "ray": {"serve/on_ray.py"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


IMPORTERS = {"require_extra", "import_module", "__import__"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, by statement or call."""
    return imported(path.read_text(encoding="utf-8"), path)


def imported(source: str, path: Path | str = "source") -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            named = node.args[0]
            if called in IMPORTERS and isinstance(named, ast.Constant):
                found.add(named.value)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "hybridrec":
                found |= {f"hybridrec.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_what_stands_to_its_left(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    place = ORDER.index(room)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "hybridrec" or len(parts) == 1 or parts[1] not in ORDER:
            continue
        assert ORDER.index(parts[1]) <= place, f"{room} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_have_one_door_each(path):
    where = str(path.relative_to(PACKAGE))
    for module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        assert doors is None or any(where.startswith(door) for door in doors), (where, module)


@pytest.mark.parametrize(
    "source",
    [
        "import faiss.contrib",
        "def f():\n    from faiss import IndexFlat",
        "require_extra('faiss', 'faiss')",
        "checks.require_extra('faiss', extra='faiss').IndexFlat",
        "importlib.import_module('faiss')",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert {module.split(".")[0] for module in imported(source)} >= {"faiss"}


def test_import_loads_nothing_heavy():
    code = (
        "import sys, hybridrec\n"
        "heavy = {'torch', 'faiss', 'numba', 'scipy', 'pyarrow', 'transformers', 'optuna'}\n"
        "heavy |= {'fastapi', 'pydantic', 'httpx2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import hybridrec

    for name in hybridrec.__all__:
        assert getattr(hybridrec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hybridrec.nothing  # noqa: B018


def test_no_module_holds_an_assert_or_a_pickle():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], path
        assert not imports(path) & {"pickle", "dill", "cloudpickle", "shelve"}, path
