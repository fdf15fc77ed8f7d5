"""Inspection sockets in the file system: whose they are, and what is left over."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from phoenix_trio.inspection import find_applications, places


@pytest.fixture(autouse=True)
def own_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default directory of these tests."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "phoenix-trio"


def leave_socket(path: Path) -> None:
    """Leave a socket as a killed process does."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_directory_and_socket_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sock"
    place = places.listen_at(str(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["a.sock"]
    place.close()
    assert os.listdir(path.parent) == []


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o710)
    with pytest.raises(PermissionError, match="other users may enter"):
        places.listen_at(str(shared / "a.sock"))
    assert os.listdir(shared) == []


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        places.listen_at(str(tmp_path / "new" / "a.sock"))


def test_a_symbolic_link_is_not_followed_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NotADirectoryError):
        places.listen_at(str(tmp_path / "link" / "a.sock"))


def test_the_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sock"
    leave_socket(path)
    place = places.listen_at(str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    place.close()


def test_the_socket_of_a_living_process_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sock"
    place = places.listen_at(str(path))
    with pytest.raises(OSError, match="another process is inspected there"):
        places.listen_at(str(path))
    assert path.exists()
    place.close()


def test_a_file_is_not_removed_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        places.listen_at(str(path))
    assert path.read_text() == "precious"


def test_the_end_removes_no_socket_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sock"
    place = places.listen_at(str(path))
    path.unlink()
    other = places.listen_at(str(path))
    place.close()
    assert path.exists()
    other.close()


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than"):
        places.listen_at(str(tmp_path / ("x" * 120)))


def test_applications_are_found_and_what_others_left_is_cleared_away(own_default: Path) -> None:
    assert find_applications() == {}
    leave_socket(own_default / "gone-1.sock")
    (own_default / "notes.sock").write_text("a file")
    assert find_applications() == {}
    place = places.listen_at(places.default_path("../a b"))
    name = f"_a_b-{os.getpid()}"
    assert find_applications() == {name: str(own_default / f"{name}.sock")}
    assert sorted(os.listdir(own_default)) == [f"{name}.sock", "notes.sock"]
    place.close()


def test_a_runtime_directory_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    path = places.default_path("x")
    assert os.path.basename(os.path.dirname(path)) == f"phoenix-trio-{own + 1}"


def test_systems_without_unix_sockets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(OSError, match="not available on this system"):
        find_applications()
