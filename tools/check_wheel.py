"""Does the wheel hold the whole package, and nothing else?  For `.ci/run`.

Usage: check_wheel.py DIRECTORY, which holds one wheel.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent


def main(directory: Path) -> int:
    (wheel,) = directory.glob("phoenix_trio-*.whl")
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "phoenix_trio").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    for name in sorted(tracked - packed):
        print(f"{wheel.name} lacks {name}")
    for name in sorted(packed - tracked):
        print(f"{wheel.name} has {name}, which is not part of the package")
    if tracked != packed or "phoenix_trio/py.typed" not in packed:
        return 1
    # Python imports from a zip file: the package stands first, its dependencies behind it.
    program = (
        "import phoenix_trio, pathlib; "
        "assert '.whl' in phoenix_trio.__file__, phoenix_trio.__file__; "
        "[getattr(phoenix_trio, name) for name in phoenix_trio.__all__]"
    )
    path = f"import sys; sys.path.insert(0, {str(wheel.resolve())!r}); "
    return subprocess.run([sys.executable, "-I", "-c", path + program], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
