"""The compiled core: the same csrc/ once for every instruction set; the rest is in pyproject.toml.

HYBRIDREC_SANITIZE=1 builds with AddressSanitizer and UBSan instead (see `make asan`).
"""

from __future__ import annotations

import copy
import os
import platform
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The hot loops are vectors of the width that the build has; which build runs is decided at import
# (hybridrec/_core/__init__.py), so nothing here may depend on the machine that compiles.
BUILDS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux":
    BUILDS["avx2"] = ["-mavx2", "-mfma"]
    BUILDS["avx512"] = [
        *BUILDS["avx2"],
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
        "-mavx512bf16",  # in the products of linear.cpp alone, which ask the CPU before they run
        "-mprefer-vector-width=512",
    ]

if os.environ.get("HYBRIDREC_SANITIZE") == "1":
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    COMPILE = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZE]
    LINK = SANITIZE
else:
    COMPILE = ["-O3", "-g0"]
    LINK = []
# Fused multiply-adds wherever the build has them, said aloud because compilers differ in their
# default. It is settled when compiling, so it cannot make results depend on the thread count.
COMPILE += ["-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wextra", "-pthread"]


def extension(name: str, flags: list[str]) -> Pybind11Extension:
    return Pybind11Extension(
        f"hybridrec._core._{name}",
        sorted(str(path) for path in Path("csrc").glob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
        cxx_std=20,
        define_macros=[
            ("HYBRIDREC_MODULE", f"_{name}"),
            *([("HYBRIDREC_X86_BUILDS", "1")] if len(BUILDS) > 1 else []),
        ],
        extra_compile_args=[*COMPILE, *flags],
        extra_link_args=["-pthread", *LINK],
    )


class BuildEach(build_ext):
    """Builds the extensions side by side, each with object files of its own."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or min(len(BUILDS), os.cpu_count() or 1)

    def build_extension(self, ext: Extension) -> None:
        # All builds compile the same sources: one folder for all would mix their objects.
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp, ext.name.rpartition(".")[2]))
        super(BuildEach, own).build_extension(ext)


setup(
    ext_modules=[extension(name, flags) for name, flags in BUILDS.items()],
    cmdclass={"build_ext": BuildEach},
)
