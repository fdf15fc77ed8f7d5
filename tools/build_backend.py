"""Builds the wheel of phoenix-trio, with the protocol core compiled if possible.

Two parts are in one file, so that they agree:

- the build backend of pyproject.toml (PEP 517): that of hatchling.  It asks for the compiler's
  packages only if a wheel is to be compiled, so that other installations need nothing;
- the build hook of hatchling: :class:`CompiledCore` compiles, by mypyc and a C compiler, the
  modules that pyproject.toml lists for it.  Their Python files are in the wheel as well.

The environment variable PHOENIX_TRIO_COMPILE decides:

    0       the wheel is pure Python
    1       the wheel is compiled, or the build fails
    unset   the wheel is compiled if there is a C compiler with Python's headers; if that
            fails, the wheel is pure Python, and the build says so

An editable installation runs the files of the source tree and is never compiled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling import build as hatchling_backend
from hatchling.build import *  # noqa: F403  (under pip it has fewer functions)
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: mypyc, its requirements for building extension modules, and the packages whose types the core
#: uses.  mypyc has the same version as the type checker in pyproject.toml.
_REQUIREMENTS = ["mypy==2.4.1", "setuptools>=77", "attrs>=24.1", "cryptography>=47"]

#: The shared library of all compiled modules; those modules are stubs that load it.
_LIBRARY = "phoenix_trio.quic.core"


class CannotCompile(Exception):
    """The core was not compiled; the message says why."""


def setting() -> str:
    """PHOENIX_TRIO_COMPILE: ``"0"``, ``"1"``, or ``""`` if it is not set."""
    value = os.environ.get("PHOENIX_TRIO_COMPILE", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"PHOENIX_TRIO_COMPILE must be 0 or 1, not {value!r}")
    return value


def has_compiler() -> bool:
    """Whether there is a C compiler, and the headers of this Python."""
    if sys.implementation.name != "cpython":
        return False
    if os.name == "nt":
        return shutil.which("cl") is not None
    command = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    header = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(command[0]) is not None and header.is_file()


def is_wanted() -> bool:
    """Whether a wheel is to be compiled."""
    return setting() == "1" or (setting() == "" and has_compiler())


def get_requires_for_build_wheel(  # type: ignore[no-redef]
    config_settings: dict[str, Any] | None = None,
) -> list[str]:
    """See PEP 517."""
    required = hatchling_backend.get_requires_for_build_wheel(config_settings)
    return [*required, *(_REQUIREMENTS if is_wanted() else [])]


class CompiledCore(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled modules to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the wheel is put together.

        Args:
          version: ``"standard"`` or ``"editable"``.
          build_data: the wheel's content for hatchling; it is changed.
        """
        if version == "editable":
            if setting() == "1":
                raise SystemExit(
                    "PHOENIX_TRIO_COMPILE=1: an editable installation runs the Python files of "
                    "the source tree; install it without -e to have it compiled"
                )
            return
        if not is_wanted():
            return
        self._work = tempfile.mkdtemp(prefix="phoenix-trio-")
        try:
            built = compile_core(Path(self.root), self.config["modules"], Path(self._work))
        except CannotCompile as error:
            if setting() == "1":
                raise SystemExit(f"PHOENIX_TRIO_COMPILE=1, but {error}") from error
            self.app.display_warning(f"The wheel is pure Python: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path, name in built.items():
            build_data["force_include"][path] = name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary files after the wheel is written."""
        work = getattr(self, "_work", None)
        if work is not None:
            shutil.rmtree(work)


def compile_core(root: Path, patterns: list[str], work: Path) -> dict[str, str]:
    """Compile modules into `work`; returns the path of each file, and its name in the wheel.

    Args:
      root: the directory with the package.
      patterns: the modules, as patterns relative to `root`; packages' ``__init__.py`` stay as
        they are.
      work: an empty directory.

    Raises:
      CannotCompile: mypyc or the C compiler has failed, or is missing.
    """
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.command.build_ext import build_ext
    except ImportError as error:
        raise CannotCompile(f"{error.name} is not installed") from error
    modules = [
        str(path.relative_to(root))
        for pattern in patterns
        for path in sorted(root.glob(pattern))
        if path.name != "__init__.py"
    ]
    options = [
        "--config-file=",  # strictness is the type checker's business
        "--follow-imports=silent",
        "--ignore-missing-imports",  # of packages that the core does not use
    ]
    with _directory(root):
        try:
            extensions = mypycify(
                [*options, *modules],
                debug_level="0",
                group_name=_LIBRARY,
                target_dir=str(work / "c"),
            )
            command = build_ext(Distribution({"ext_modules": extensions}))
            command.build_lib = str(work / "lib")
            command.build_temp = str(work / "temp")
            command.ensure_finalized()
            command.run()
        except SystemExit as error:  # (mypyc ends like this after printing an error.)
            raise CannotCompile("mypyc has failed, see above") from error
        except Exception as error:  # setuptools has many, each compiler's its own
            raise CannotCompile(f"the C compiler has failed: {error}") from error
    return {
        str(path): path.relative_to(work / "lib").as_posix()
        for path in sorted((work / "lib").rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Change the working directory for the block: mypyc names modules after their paths."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
