"""Checks names that come from strangers: for files, and for the terminal.

Floor 4, pure functions.  A name from the network may try to lead out of the directory,
to look like another one, to mean something else on another system, or to command the
terminal.  :func:`check_path` decides which names a receiver stores, :func:`fold` decides
which names count as the same, and :func:`printable` makes any text safe to print.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

__all__ = ["DEPTH_MAX", "NAME_BYTES_MAX", "PATH_BYTES_MAX", "Refused", "check_path", "fold"]
__all__ += ["printable", "shorten"]

#: The longest name that file systems take (Linux: ``NAME_MAX``).
NAME_BYTES_MAX = 255

#: Bytes of a whole path: far more than people type, a quarter of the limit of Linux.
PATH_BYTES_MAX = 1024

#: Components of a path.
DEPTH_MAX = 32

#: Names with another meaning on Windows, in case the directory is shared with it.
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"} | {
    f"{name}{digit}" for name in ("COM", "LPT") for digit in range(10)
}

#: Unicode categories whose characters are invisible, or look different from their meaning.
_ODD_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible format character",  # bidirectional overrides, zero-width ones
    "Cs": "half a surrogate pair",
    "Co": "a character of private use",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}

#: Invisible letters, marks and symbols.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


class Refused(Exception):
    """The storage does not take a file, and nothing has happened.

    Attributes:
      code: a short name of the reason, for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_path(path: str) -> tuple[str, ...]:
    """The components of a relative POSIX path, if it is safe to create below a directory.

    They are in Unicode's normalisation form C, so that one name has one spelling.

    Raises:
      Refused: with code ``"bad-name"`` and a text that names the fault.
    """

    def refuse(why: str) -> Refused:
        return Refused("bad-name", f"the name '{printable(path[:200])}' is refused: {why}")

    if not path:
        raise refuse("it is empty")
    if len(path) > PATH_BYTES_MAX:  # before steps that take time in proportion
        raise refuse(f"it has more than {PATH_BYTES_MAX} bytes")
    if path.startswith("/"):
        raise refuse("it is absolute")
    for character in path:
        odd = _fault_of(character)
        if odd is not None:
            raise refuse(f"it has {odd} (U+{ord(character):04X})")
    parts = tuple(unicodedata.normalize("NFC", part) for part in path.split("/"))
    if len(parts) > DEPTH_MAX:
        raise refuse(f"it is more than {DEPTH_MAX} directories deep")
    for part in parts:
        _check_part(part, refuse)
    if len("/".join(parts).encode()) > PATH_BYTES_MAX:
        raise refuse(f"it has more than {PATH_BYTES_MAX} bytes")
    return parts


def _check_part(part: str, refuse: Callable[[str], Refused]) -> None:
    if part in ("", ".", ".."):
        raise refuse(f"it has a component {part!r}")
    if len(part.encode()) > NAME_BYTES_MAX:
        raise refuse(f"a component has more than {NAME_BYTES_MAX} bytes")
    # Compatibility forms: a full-width slash, for instance, is seen as, or becomes, a plain one.
    plain = unicodedata.normalize("NFKC", part)
    if any(character in plain for character in "/\\:"):
        raise refuse("slashes in a component, backslashes and colons are not allowed")
    if plain.startswith("."):
        raise refuse("a component begins with a dot: hidden files are not taken")
    if plain != plain.strip() or plain.endswith("."):
        raise refuse("a component begins or ends with a space, or ends with a dot")
    if plain.split(".")[0].rstrip().upper() in _RESERVED:
        raise refuse("it is a reserved name on some systems")


def fold(name: str) -> str:
    """A key that is equal for names that some file system or reader takes for the same.

    Upper and lower case, composed and decomposed letters, and compatibility forms are equal.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def printable(text: str) -> str:
    """`text` with every character escaped that commands a terminal, hides, or turns the line."""
    return "".join(
        character if _fault_of(character) is None else character.encode("unicode_escape").decode()
        for character in text
    )


def _fault_of(character: str) -> str | None:
    """The fault of a character of a name; ``None``: there is none."""
    if " " <= character <= "~":
        return None
    if character in _INVISIBLE:
        return "an invisible character"
    category = unicodedata.category(character)
    if category == "Cn":
        # Not assigned, as far as this Python knows: a new letter, or a code point that will
        # never be one, or is invisible by default (Unicode's Default_Ignorable_Code_Point).
        code = ord(character)
        ignorable = code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF
        if ignorable or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
            return "a code point which is no character"
        return None
    return _ODD_CATEGORIES.get(category)


def shorten(name: str, max_bytes: int) -> str:
    """The longest beginning of `name` of at most `max_bytes`, in whole characters."""
    return name.encode(errors="replace")[:max_bytes].decode(errors="ignore")
