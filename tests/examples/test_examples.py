"""Every example, run as its users run it: as processes on loopback."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phoenix_trio.inspection import find_applications
from tests.support import authority_pem, server_pem

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    directory = tmp_path / "certificates"
    directory.mkdir()
    chain, key = server_pem()
    (directory / "server.pem").write_bytes(chain)
    (directory / "server-key.pem").write_bytes(key)
    (directory / "ca.pem").write_bytes(authority_pem())
    return tmp_path


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *arguments]


def run(directory: Path, name: str, *arguments: str, text: str | None = None) -> str:
    result = subprocess.run(
        command(name, *arguments),
        cwd=directory,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextmanager
def server(directory: Path, name: str, *arguments: str) -> Iterator[tuple[str, list[str]]]:
    """The server's port, and a list that holds the rest of its output in the end."""
    with started(directory, command(name, *arguments, "--port", "0")) as found:
        yield found


@contextmanager
def started(
    directory: Path, program: list[str], *handed_in: int
) -> Iterator[tuple[str, list[str]]]:
    """A program with file descriptors of ours; otherwise as :func:`server`."""
    process = subprocess.Popen(
        program,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=handed_in,
    )
    output: list[str] = []
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on port "), process.communicate(timeout=10)
        yield line.split()[-1], output
        time.sleep(0.2)
    finally:
        process.terminate()
        rest, errors = process.communicate(timeout=20)
        output.append(rest)
    assert "Traceback" not in errors.replace("KeyboardInterrupt", ""), errors


def test_peers_know_each_other_by_their_keys(tmp_path: Path) -> None:
    keys = {
        name: run(tmp_path, "known_keys.py", "identity", f"{name}.pem").strip()
        for name in ("alice", "bob", "eve")
    }
    assert len(set(keys.values())) == 3
    serving = [sys.executable, str(EXAMPLES / "known_keys.py"), "listen", "alice.pem"]
    with started(tmp_path, [*serving, "--known", keys["bob"], "--port", "0"]) as (port, _):

        def ask(name: str, known: str) -> str:
            arguments = "ask", f"{name}.pem", "--known", keys[known], "localhost", port, "hello"
            return run(tmp_path, "known_keys.py", *arguments)

        assert ask("bob", "alice") == f"hello, {keys['bob'][:8]}\n"
        assert "certificate_unknown" in ask("eve", "alice"), "a stranger is told so"
        assert f"nobody here knows the key {keys['alice']}" in ask("bob", "eve")


def test_echo(certificates: Path) -> None:
    with server(certificates, "echo_server.py") as (port, _):
        output = run(certificates, "echo_client.py", "localhost", port, "one", "two", "three")
    assert sorted(output.splitlines()[:3]) == ["echo: one", "echo: three", "echo: two"]
    assert "round trip" in output


def test_socket_activation(certificates: Path) -> None:
    with server(certificates, "socket_activation.py") as (port, _):
        assert "echo: one" in run(certificates, "echo_client.py", "localhost", port, "one")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handed_in:
        handed_in.bind(("127.0.0.1", 0))
        number = handed_in.fileno()
        # As systemd does: the socket is file descriptor 3, and LISTEN_PID the process.
        script = (
            f"import os, sys; number = {number}\n"
            "os.set_inheritable(3, True) if number == 3 else os.dup2(number, 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        program = [sys.executable, "-c", script, *command("socket_activation.py")]
        with started(certificates, program, number) as (port, _):
            assert port == str(handed_in.getsockname()[1])
            assert "echo: one" in run(certificates, "echo_client.py", "127.0.0.1", port, "one")


def test_file_mover(certificates: Path) -> None:
    original = certificates / "original.bin"
    original.write_bytes(os.urandom(3_000_000))
    with server(certificates, "file_mover.py", "receive", "copy.bin") as (port, output):
        sent = run(certificates, "file_mover.py", "send", "original.bin", "--port", port)
        time.sleep(1.5)
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    assert digest in sent
    assert digest in output[0]
    assert (certificates / "copy.bin").read_bytes() == original.read_bytes()


def test_resumable_mover_when_its_receiver_is_killed(certificates: Path) -> None:
    size = 16 * 1024 * 1024
    original, copy = certificates / "original.bin", certificates / "copy.bin"
    original.write_bytes(os.urandom(size))
    copy.write_bytes(b"before")
    beside = certificates / ".phoenix-trio"

    def start_receiver(port: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            command("resumable_mover.py", "receive", "copy.bin", "--port", port),
            cwd=certificates,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on port "), line
        return process, line.split()[-1]

    def received() -> int:
        return sum(part.stat().st_size for part in beside.glob("*.part"))

    receiver, port = start_receiver("0")
    sender = subprocess.Popen(
        command("resumable_mover.py", "send", "original.bin", "--port", port)
        + ["--rate", "12e6", "--seconds", "45"],
        cwd=certificates,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 20
        while received() < size // 3:
            assert time.monotonic() < deadline
            assert sender.poll() is None, sender.communicate()[0]
            time.sleep(0.02)
        receiver.kill()
        receiver.communicate()
        assert received() < size
        assert copy.read_bytes() == b"before"
        receiver, _ = start_receiver(port)
        sent, _ = sender.communicate(timeout=50)
    finally:
        for process in (sender, receiver):
            if process.poll() is None:
                process.kill()
        output, _ = receiver.communicate()
        sender.wait()
    assert sender.returncode == 0, sent
    assert "interrupted: " in sent
    found = re.search(r"stored there: (\d+) bytes, of which (\d+) were there already", sent)
    assert found is not None, sent
    assert int(found[1]) == size
    assert size // 3 - 2 * 1024 * 1024 <= int(found[2]) < size
    assert f"stored {size} bytes, {found[2]} of them from an earlier attempt" in output
    assert copy.read_bytes() == original.read_bytes()
    assert not beside.exists()
    assert not (certificates / "original.bin.transfer-id").exists()


def test_chat(certificates: Path) -> None:
    with server(certificates, "chat.py", "serve") as (port, _):
        listener = subprocess.Popen(
            command("chat.py", "join", "--port", port, "--name", "bob"),
            cwd=certificates,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "you have joined\n"
            run(certificates, "chat.py", "join", "--port", port, "--name", "al", text="hi bob\n")
            assert listener.stdout.readline() == "al has joined\n"
            assert listener.stdout.readline() == "al: hi bob\n"
        finally:
            listener.kill()
            listener.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is local on Linux")
def test_roaming(certificates: Path) -> None:
    with server(certificates, "roaming.py", "serve") as (port, output):
        said = run(
            certificates,
            *("roaming.py", "roam", "--host", "127.0.0.1", "--port", port),
            *("--local", "127.0.0.2", "--local", "127.0.0.3"),
        )
    assert "127.0.0.3 to 127.0.0.1: in use" in said
    assert "30 lines from 127.0.0.1, 127.0.0.2, 127.0.0.3" in "".join(output)


def test_telemetry(certificates: Path) -> None:
    with server(certificates, "telemetry.py", "collect") as (port, output):
        reported = run(
            certificates,
            *("telemetry.py", "report", "--port", port, "--count", "200", "--rate", "1000"),
        )
        time.sleep(1.5)
    assert reported.startswith("sent 200")
    assert output[0].startswith("200 of 200 readings, average 20."), output


def test_http3(certificates: Path) -> None:
    with server(certificates, "http3_server.py") as (port, _):
        got = run(certificates, "http3_client.py", "localhost", port, "/100000")
        body = (bytes(range(251)) * 400)[:100000]
        assert f"100000 bytes, SHA-256 {hashlib.sha256(body).hexdigest()}" in got
        upload = certificates / "upload"
        upload.write_bytes(os.urandom(1_000_000))
        arguments = ("localhost", port, "/", "--post", "upload", "--show")
        posted = run(certificates, "http3_client.py", *arguments)
        assert f"1000000 {hashlib.sha256(upload.read_bytes()).hexdigest()}" in posted


def test_httpcore_and_h11(certificates: Path) -> None:
    with server(certificates, "h11_server.py") as (port, _):
        urls = [f"https://localhost:{port}/{size}" for size in (0, 10, 300_000)]
        got = run(certificates, "httpcore_backend.py", *urls)
    assert sorted(got.splitlines()) == [
        f"{urls[0]}: 200, 0 bytes",
        f"{urls[1]}: 200, 10 bytes",
        f"{urls[2]}: 200, 300000 bytes",
    ]


def test_websockets_on_streams(certificates: Path) -> None:
    with server(certificates, "websocket_streams.py", "serve") as (port, _):
        got = run(certificates, "websocket_streams.py", "talk", "one", "two", "--port", port)
    assert sorted(got.splitlines()) == [
        f"{number}: {text}" for number in range(3) for text in ("one", "two")
    ]


def test_actor_channel(certificates: Path) -> None:
    with server(certificates, "actor_channel.py", "serve") as (port, _):
        got = run(certificates, "actor_channel.py", "ask", "3", "one", "two", "--port", port)
    lines = sorted(got.splitlines())
    assert lines[0].startswith("3: {'error': ")
    assert lines[1:] == ["one: {'return': 'ONE'}", "two: {'return': 'TWO'}"]


def test_hq_interop(certificates: Path) -> None:
    served = certificates / "served"
    served.mkdir()
    for name, size in (("one.bin", 1_000_000), ("two.bin", 10), ("empty", 0)):
        (served / name).write_bytes(os.urandom(size))
    with server(certificates, "hq_server.py", "--directory", "served") as (port, _):
        paths = ("/one.bin", "/two.bin", "/empty")
        got = run(certificates, "hq_client.py", "localhost", port, *paths)
        assert sorted(got.splitlines()) == [
            "/empty: 0 bytes",
            "/one.bin: 1000000 bytes",
            "/two.bin: 10 bytes",
        ]
        # Neither a missing file nor one outside the directory is sent.
        for path in ("/missing", "/../certificates/server-key.pem"):
            with pytest.raises(AssertionError, match="0x404"):
                run(certificates, "hq_client.py", "localhost", port, path)
    for file in served.iterdir():
        assert (certificates / "downloads" / file.name).read_bytes() == file.read_bytes()


def test_voice(certificates: Path) -> None:
    with server(certificates, "voice.py", "answer") as (port, output):
        called = run(certificates, "voice.py", "call", "--port", port, "--seconds", "1")
        time.sleep(0.5)
    frames = int(called.split()[0])
    assert 45 <= frames <= 50, called
    assert "of 50 frames came back" in called
    assert "99 % within" in called
    assert "#" in called
    assert "call ended after 50 frames" in output[0]


def test_directory_mover(certificates: Path) -> None:
    source = certificates / "source"
    contents = {
        "empty": b"",
        "small.txt": b"hello",
        "below/large.bin": os.urandom(5_000_000),
        "below/deeper/other.bin": os.urandom(700_001),
    }
    for name, content in contents.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with server(certificates, "directory_mover.py", "receive", "--directory", "copy") as (
        port,
        output,
    ):
        sent = run(
            certificates,
            *("directory_mover.py", "send", "--port", port, "--directory", "source"),
        )
        time.sleep(0.5)
    assert "sent 4 files" in sent
    copy = certificates / "copy"
    found = {
        path.relative_to(copy).as_posix(): path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file()
    }
    assert found == contents
    assert "received below/large.bin (5000000 bytes)" in output[0]


def test_sensors(certificates: Path) -> None:
    with server(certificates, "sensors.py", "collect") as (port, output):
        sent = run(
            certificates, "sensors.py", "fleet", "--port", port, "--readings", "50", "--rate", "50"
        )
        time.sleep(1)
    assert sent.startswith("sent 10000 readings in ")
    # How many readings share a batch depends on the machine; how many batches that permits
    # does not.
    batches, most = int(sent.split()[4]), int(sent.split()[7])
    assert 200 <= batches <= most, sent
    assert "10000 readings of 200 sensors" in output[0]
    growth = float(output[0].split(", ")[-1].split()[0])
    assert growth < 10, output


def test_fan_out(certificates: Path) -> None:
    with server(certificates, "fan_out.py", "relay") as (port, output):
        publisher = subprocess.Popen(
            command("fan_out.py", "publish", "--port", port, "--rate", "500"),
            cwd=certificates,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for count in ("20", "50"):
                got = run(certificates, "fan_out.py", "subscribe", "--port", port, "--count", count)
                assert got.startswith("the last one: message ")
                assert got.endswith(f"{count} messages\n")
            assert publisher.poll() is None, "a subscriber which leaves ends nothing else"
        finally:
            publisher.terminate()
            publisher.communicate(timeout=20)
        time.sleep(0.2)
    assert output[0].count("left: ") == 2, output
    assert output[0].count(" 0 dropped") == 2, output


def test_video(certificates: Path) -> None:
    with server(certificates, "video.py", "watch") as (port, output):
        sent = run(certificates, "video.py", "stream", "--port", port, "--seconds", "1.5")
        time.sleep(0.5)
    assert sent.startswith("sent 38 frames")
    assert output[0].startswith("38 frames"), output
    assert "jitter" in output[0]


def test_service(certificates: Path) -> None:
    with server(certificates, "service.py", "serve") as (port, _):
        asked = run(certificates, "service.py", "load", "--port", port, "--requests", "1000")
    assert asked.startswith("1000 of 1000 answers")
    most = int(asked.splitlines()[1].split()[0])
    assert 1 <= most <= 4
    assert "0 still waiting, 0 leases left" in asked


def test_dashboard(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(certificates))
    with server(certificates, "dashboard.py", "serve") as (port, output):
        (name,) = find_applications()
        assert name.startswith("sink-")
        watched = run(certificates, "dashboard.py", "watch", "--port", port, "--seconds", "1.5")
        time.sleep(0.5)
    assert "Gbit/s" in watched
    assert "acknowledged by the peer" in watched
    found = re.search(r"(\d+) messages, (\d+) bytes acknowledged", watched)
    assert found is not None, watched
    messages = int(found[1])
    assert messages > 5
    taken = int(output[0].split()[1])
    assert taken >= messages * 256 * 1024


def test_graceful_service(certificates: Path) -> None:
    """It is told to end while it answers, and finishes first."""
    with server(certificates, "graceful_service.py", "serve", "--seconds", "1") as (port, output):
        asking = subprocess.Popen(
            command("graceful_service.py", "ask", "--port", port, "--calls", "50"),
            cwd=certificates,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert asking.stdout is not None
        assert asking.stdout.readline() == "connected\n"
        time.sleep(0.5)
    told, _ = asking.communicate(timeout=20)
    assert told == "50 of 50 calls were answered\n"
    assert output == ["50 answers, 0 handlers were cancelled\n"]


def test_workers(certificates: Path) -> None:
    with server(certificates, "workers.py", "serve", "--workers", "2") as (port, _):
        asked = run(certificates, "workers.py", "ask", "--port", port, "--clients", "20")
    lines = sorted(asked.splitlines())
    found = [re.fullmatch(r"worker (\d) of 2 has served (\d+) clients", line) for line in lines]
    assert sum(int(each[2]) for each in found if each is not None) == 20
    assert {each[1] for each in found if each is not None} == {"0", "1"}, asked


def test_ticket_keys(certificates: Path) -> None:
    keys = certificates / "ticket.keys"
    old = run(certificates, "ticket_keys.py", "key")
    new = run(certificates, "ticket_keys.py", "key")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
        free.bind(("::", 0))
        port = str(free.getsockname()[1])
    asking = subprocess.Popen(
        command("ticket_keys.py", "ask", "--port", port),
        cwd=certificates,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asking.stdin is not None
    assert asking.stdout is not None
    serving = command("ticket_keys.py", "serve", "--port", port)
    said = []
    for content in (old, new + old, new, old):
        keys.write_text(content)
        with started(certificates, serving):
            print("Ann", file=asking.stdin, flush=True)
            said.append(asking.stdout.readline())
    asking.communicate(timeout=20)
    first, resumed = "hello, Ann (full handshake)\n", "hello, Ann (resumed)\n"
    assert said == [first, resumed, resumed, first]


def test_lost_readings(certificates: Path) -> None:
    arrived, replaced = run(certificates, "lost_readings.py").splitlines()
    assert arrived == "the last readings of 40 sensors have arrived"
    found = re.fullmatch(r"(\d+) readings were replaced on the way", replaced)
    assert found is not None
    assert int(found[1]) > 20
