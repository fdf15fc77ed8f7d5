"""Checks that each wheel holds its whole package, and nothing else.  For `.ci/run`.

Usage: check_wheel.py DIRECTORY.  It holds the wheels of phoenix-trio and phoenix-trio-bench.
The benchmark must not be in the library's wheel.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent


def only_wheel(directory: Path, package: str) -> Path:
    (wheel,) = directory.glob(f"{package}-*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def find_differences(wheel: Path, package: Path) -> Iterator[str]:
    """Files of the wheel that are not the package's, and files that it lacks."""
    files = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    packed = names_in(wheel)
    yield from (f"{wheel.name} lacks {name}" for name in sorted(files - packed))
    for name in sorted(packed - files):
        yield f"{wheel.name} has {name}, which is not part of the package"


def find_benchmark(library: Path) -> Iterator[str]:
    """Modules of the benchmark in the library's wheel."""
    for name in sorted(names_in(library)):
        if name.startswith(("phoenix_trio/bench/", "phoenix_trio_bench/", "bench/")):
            yield f"{library.name} has {name}, which belongs to the benchmark"


def imports(wheels: list[Path], program: str) -> bool:
    """Whether `program` runs with the wheels in front of the installed packages."""
    path = [str(wheel.resolve()) for wheel in wheels]
    # Python imports from a zip file: the packages come first, their dependencies behind them.
    command = f"import sys; sys.path[:0] = {path!r}; {program}"
    return subprocess.run([sys.executable, "-I", "-c", command], check=False).returncode == 0


def main(directory: Path) -> int:
    library = only_wheel(directory, "phoenix_trio")
    benchmark = only_wheel(directory, "phoenix_trio_bench")
    problems = [
        *find_differences(library, ROOT / "phoenix_trio"),
        *find_differences(benchmark, ROOT / "bench" / "phoenix_trio_bench"),
        *find_benchmark(library),
    ]
    if "phoenix_trio/py.typed" not in names_in(library):
        problems.append(f"{library.name} lacks py.typed")
    for problem in problems:
        print(problem)
    works = imports(
        [library],
        "import phoenix_trio; "
        "assert '.whl' in phoenix_trio.__file__, phoenix_trio.__file__; "
        "[getattr(phoenix_trio, name) for name in phoenix_trio.__all__]; "
        "assert not any('bench' in name for name in sys.modules if 'phoenix' in name)",
    ) and imports(
        [library, benchmark],
        "import phoenix_trio_bench; "
        "assert '.whl' in phoenix_trio_bench.__file__, phoenix_trio_bench.__file__; "
        "from phoenix_trio.cli.program import program; "
        "assert {'bench', 'serve-bench', 'simulate'} <= program.commands.keys()",
    )
    return 0 if works and not problems else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
