"""The receiver's directory: hostile names and circumstances."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.storage.directory import PARTS_DIRECTORY, Refused, Storage, check_path

HOSTILE = [
    "",
    "/etc/passwd",
    "../outside",
    "a/../../outside",
    "a//b",
    "a/./b",
    ".",
    "..",
    "a/",
    "nul\0byte",
    "new\nline",
    "\x1b[31mred",
    "back\\slash",
    "C:/windows",
    "CON",
    "com1.txt",
    "ends.",
    " starts",
    "x" * 256,
    "\u00e9" * 128,
    "/".join("d" * 33),
    "/".join(["x" * 200] * 6),
    ".name.0123456789abcdef.part",
    ".phoenix-trio/x",
    ".ssh/authorized_keys",
    " leading",
    "trailing ",
    "a/ b",
    "\udcff",
    "gpj.\u202etxt.exe",
    "a\u2066b",
    "a\u200fb",
    "a\u061cb",
    "zero\u200bwidth",
    "joined\u200d",
    "\ufeffbom",
    "soft\u00adhyphen",
    "private\ue000",
    "line\u2028end",
    "filler\u3164",
    "none\uffff",
    "tag\U000e0041",
    "full\uff0fwidth",
    "\u2025/x",
    "com\u00b9",
    "nul .txt",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_nothing_happens(name: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "in"))
    with pytest.raises(Refused) as caught:
        storage.begin(name, 1, "id")
    assert caught.value.code == "bad-name"
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == []
    storage.close()


@given(st.text(max_size=40))
def test_whatever_passes_stays_below_the_directory(name: str) -> None:
    try:
        parts = check_path(name)
    except Refused:
        return
    joined = os.path.normpath(os.path.join("/base", *parts))
    assert joined.startswith("/base/")
    assert len(parts) == len(Path(joined).parts) - 2


def test_symbolic_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(outside / "target")
    storage = Storage(str(inside), overwrite=True)
    with pytest.raises(Refused):
        storage.begin("link/x", 1, "id")
    with pytest.raises(Refused):
        storage.begin("file", 1, "id")
    (inside / PARTS_DIRECTORY).symlink_to(outside)
    with pytest.raises(Refused):
        storage.begin("name", 1, "id")
    (inside / PARTS_DIRECTORY).unlink()
    stored = storage.begin("name", 2, "id")
    stored.write(b"x")
    stored.close()
    (part,) = (inside / PARTS_DIRECTORY).iterdir()
    part.unlink()
    part.symlink_to(outside / "target")
    with pytest.raises(OSError, match="symbolic"):
        storage.begin("name", 2, "id")
    assert os.listdir(outside) == []
    storage.close()


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    stored = storage.begin("sub/dir/name", 6, "id")
    stored.write(b"abc")
    assert not (tmp_path / "sub/dir/name").exists()
    stored.close()
    again = storage.begin("sub/dir/name", 6, "id")
    assert again.offset == 3
    again.write(b"def")
    again.commit()
    again.close()
    assert (tmp_path / "sub/dir/name").read_bytes() == b"abcdef"
    assert os.listdir(tmp_path / "sub/dir") == ["name"]
    storage.close()


def test_another_identity_or_none_does_not_resume(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = storage.begin("name", None, "one")
    first.write(b"old")
    first.close()
    for identity in ("two", None):
        stored = storage.begin("name", None, identity)
        assert stored.offset == 0
        stored.write(b"x")
        stored.close()
    assert storage.begin("name", None, None).offset == 0
    storage.close()


def test_existing_files_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"precious")
    storage = Storage(str(tmp_path))
    with pytest.raises(Refused) as caught:
        storage.begin("name", 1, "id")
    assert caught.value.code == "exists"
    storage.close()
    storage = Storage(str(tmp_path), overwrite=True)
    stored = storage.begin("name", 1, "id")
    stored.write(b"n")
    stored.commit()
    stored.close()
    assert (tmp_path / "name").read_bytes() == b"n"
    storage.close()


def test_a_name_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    stored = storage.begin("name", 1, "id")
    (tmp_path / "name").write_bytes(b"precious")
    with pytest.raises(Refused):
        stored.commit()
    stored.close()
    assert (tmp_path / "name").read_bytes() == b"precious"
    storage.close()


def test_two_senders_of_one_name_are_never_mixed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = storage.begin("name", 1, "id")
    with pytest.raises(Refused) as caught:
        storage.begin("name", 1, "id")
    assert caught.value.code == "busy"
    first.close()
    storage.begin("name", 1, "id").close()
    storage.close()


def test_the_size_limit_holds_for_announced_and_for_actual_sizes(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), max_file_size=10)
    with pytest.raises(Refused) as caught:
        storage.begin("name", 11, "id")
    assert caught.value.code == "too-large"
    stored = storage.begin("name", None, None)
    stored.write(bytes(10))
    with pytest.raises(Refused):
        stored.write(b"x")
    stored.close()
    storage.close()
