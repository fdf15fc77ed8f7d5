"""Names, renames and removes the ledger that lies beside a part.

Floor 4.  Blocks.
"""

from __future__ import annotations

import contextlib
import os
import re

__all__ = ["LEDGER_SUFFIX", "NEW_LEDGER_SUFFIX", "beside", "remove_widows", "rename_part"]
__all__ += ["unlink_beside"]

#: The suffix of a ledger: its name is that of the part, with this instead of ``.part``.
LEDGER_SUFFIX = ".ledger"

#: The suffix of a ledger being written, which will replace the old one.
NEW_LEDGER_SUFFIX = ".ledger.new"

_BESIDE_NAME = re.compile(r"(.*\.[0-9a-f]{32}\.[0-9a-f]{16})\.ledger(?:\.new)?", re.DOTALL)


def beside(part: str, suffix: str) -> str:
    """The name of the file beside `part` that has this suffix."""
    return part.removesuffix(".part") + suffix


def unlink_beside(part: str, directory: int) -> None:
    """Remove all files beside `part`."""
    for suffix in (LEDGER_SUFFIX, NEW_LEDGER_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside(part, suffix), dir_fd=directory)


def rename_part(part: str, new: str, directory: int) -> None:
    """Rename a part and its ledger."""
    # The part goes last: a part without its ledger begins anew, and a ledger alone is removed.
    with contextlib.suppress(FileNotFoundError):
        os.rename(
            beside(part, LEDGER_SUFFIX),
            beside(new, LEDGER_SUFFIX),
            src_dir_fd=directory,
            dst_dir_fd=directory,
        )
    os.rename(part, new, src_dir_fd=directory, dst_dir_fd=directory)


def remove_widows(directory: int) -> None:
    """Remove files whose part is gone because a process was killed between two steps."""
    names = set(os.listdir(directory))
    for name in names:
        found = _BESIDE_NAME.fullmatch(name)
        if found is None or f"{found[1]}.part" in names:
            continue
        with contextlib.suppress(FileNotFoundError):
            try:
                os.stat(f"{found[1]}.part", dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                os.unlink(name, dir_fd=directory)
