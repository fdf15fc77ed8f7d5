"""Servers: handlers, their crashes, shutting down, limits, addresses."""

from __future__ import annotations

import logging
import socket

import attrs
import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import ApplicationErrorCode, TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls


class Simulated:
    """A server and its clients on one simulated network."""

    def __init__(self, **conditions: float) -> None:
        self.network = SimulatedNetwork(delay=0.01, **conditions)

    def serve_arguments(self, **more: object) -> dict[str, object]:
        arguments: dict[str, object] = {
            "tls": server_tls(),
            "alpn": ALPN,
            "network": self.network.host(SERVER),
        }
        return arguments | more

    def connect(self, **more: object):  # type: ignore[no-untyped-def]
        arguments: dict[str, object] = {
            "tls": client_tls(),
            "alpn": ALPN,
            "network": self.network.host(CLIENT),
        }
        return phoenix_trio.open_connection(SERVER, PORT, **(arguments | more))  # type: ignore[arg-type]


def serve(simulated: Simulated, handler: object, **more: object):  # type: ignore[no-untyped-def]
    async def run(
        task_status: trio.TaskStatus[list[phoenix_trio.QuicListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await phoenix_trio.serve(
            handler,  # type: ignore[arg-type]
            PORT,
            task_status=task_status,
            **simulated.serve_arguments(**more),  # type: ignore[arg-type]
        )

    return run


async def echo(connection: phoenix_trio.QuicConnection) -> None:
    async with trio.open_nursery() as nursery:

        async def echo_stream(stream: phoenix_trio.QuicStream) -> None:
            async with stream:
                async for chunk in stream:
                    await stream.send_all(chunk)

        async for stream in connection.incoming_streams():
            nursery.start_soon(echo_stream, stream)


async def ask(connection: phoenix_trio.QuicConnection, question: bytes) -> bytes:
    async with await connection.open_stream() as stream:
        await stream.send_all(question)
        await stream.send_eof()
        return b"".join([bytes(chunk) async for chunk in stream])


async def test_a_server_answers_and_a_clean_goodbye_is_no_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    simulated = Simulated()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve(simulated, echo))
        assert listeners[0].port == PORT
        async with simulated.connect() as connection:
            assert connection.alpn_protocol == "test/1"
            assert connection.peer_address == (SERVER, PORT)
            assert connection.peer_certificate is not None
            assert await ask(connection, b"hello") == b"hello"
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_crashing_handler_costs_its_connection_only(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    simulated = Simulated()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        stream = await connection.accept_stream()
        if await stream.receive_some() == b"crash":
            raise RuntimeError("secret detail")
        await stream.send_all(b"fine")
        await stream.aclose()
        await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, handler))
        async with simulated.connect() as good:
            stream = await good.open_stream()
            async with simulated.connect() as bad:
                victim = await bad.open_stream()
                await victim.send_all(b"crash")
                with pytest.raises(phoenix_trio.ConnectionClosedByPeer) as caught:
                    await victim.receive_some()
                assert caught.value.error_code == ApplicationErrorCode.HANDLER_CRASHED
                assert "secret" not in str(caught.value)
            await stream.send_all(b"ask")
            assert await stream.receive_some() == b"fine"
        nursery.cancel_scope.cancel()
    record = next(r for r in caplog.records if "crashed" in r.getMessage())
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


async def test_crashes_go_to_on_error_and_strict_lets_them_propagate(
    autojump_clock: MockClock,
) -> None:
    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        raise RuntimeError("boom")

    simulated = Simulated()
    errors: list[Exception] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, handler, on_error=errors.append))
        async with simulated.connect() as connection:
            await connection.wait_closed()
        nursery.cancel_scope.cancel()
    assert [str(error) for error in errors] == ["boom"]

    simulated = Simulated()
    outcome: list[BaseException] = []

    async def strict_server(task_status: trio.TaskStatus[object]) -> None:
        try:
            await serve(simulated, handler, strict=True)(task_status=task_status)  # type: ignore[arg-type]
        except BaseException as error:
            outcome.append(error)
            if not isinstance(error, RuntimeError):
                raise

    async with trio.open_nursery() as nursery:
        await nursery.start(strict_server)
        async with simulated.connect() as connection:
            await connection.wait_closed()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in outcome] == [RuntimeError], "a lone exception stays unwrapped"


async def test_a_peer_which_vanishes_is_nobodys_crash(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    simulated = Simulated()
    ended: list[BaseException] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        stream = await connection.accept_stream()
        try:
            while True:
                await stream.receive_some()
        except BaseException as error:
            ended.append(error)
            raise

    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, handler, config=TransportConfig(max_idle_timeout=3)))
        async with simulated.connect() as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"x")
            await trio.sleep(1)
            simulated.network.partition(SERVER, CLIENT)
            await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert isinstance(ended[0], phoenix_trio.ConnectionTimedOut)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_handler_which_returns_closes_in_good_order(autojump_clock: MockClock) -> None:
    simulated = Simulated()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        stream = await connection.open_send_stream()
        await stream.send_all(b"w" * 3_000_000)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, handler))
        async with simulated.connect() as connection:
            stream = await connection.accept_receive_stream()
            total = 0
            async for chunk in stream:
                total += len(chunk)
            assert total == 3_000_000
            await connection.wait_closed()
            assert isinstance(connection.close_reason, phoenix_trio.ConnectionClosedByPeer)
            assert connection.close_reason.is_clean
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("grace_period", [0.0, 5.0])
async def test_shutting_down_gives_handlers_their_grace(
    grace_period: float, autojump_clock: MockClock
) -> None:
    simulated = Simulated()
    outcome: list[str] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        try:
            await trio.sleep(3)
            outcome.append("finished")
        except trio.Cancelled:
            outcome.append("cancelled")
            raise

    async with trio.open_nursery() as clients:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve(simulated, handler, grace_period=grace_period))

                async def client() -> None:
                    async with simulated.connect() as connection:
                        await connection.wait_closed()

                clients.start_soon(client)
                await trio.sleep(1)
                started = trio.current_time()
                scope.cancel()
        assert scope.cancelled_caught
        if grace_period:
            assert outcome == ["finished"]
            assert 2.9 < trio.current_time() - started < 3.5, "and close_linger"
        else:
            assert outcome == ["cancelled"]
            assert trio.current_time() - started < 0.1


async def test_closing_the_listeners_lets_the_server_end_by_itself(
    autojump_clock: MockClock,
) -> None:
    simulated = Simulated()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve(simulated, echo))
        async with simulated.connect() as connection:
            assert await ask(connection, b"one") == b"one"
            await listeners[0].aclose()
            with pytest.raises(trio.ClosedResourceError):
                await listeners[0].accept()
            assert await ask(connection, b"two") == b"two", "accepted connections go on"


async def test_the_body_of_open_connection_raises_unwrapped_and_aborts(
    autojump_clock: MockClock,
) -> None:
    simulated = Simulated()
    codes: list[int | None] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_closed()
        reason = connection.close_reason
        assert isinstance(reason, phoenix_trio.ConnectionClosedByPeer)
        codes.append(reason.error_code)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, handler))
        with pytest.raises(ValueError, match="mine"):
            async with simulated.connect():
                raise ValueError("mine")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert codes == [ApplicationErrorCode.CANCELLED]


# ------------------------------------------------------------------ handshakes refused


async def refused(simulated: Simulated, **arguments: object) -> phoenix_trio.HandshakeFailed:
    with pytest.raises(phoenix_trio.HandshakeFailed) as caught:
        async with simulated.connect(**arguments):
            raise AssertionError("connected")
    return caught.value


async def test_each_refused_handshake_has_its_own_exception_with_the_cause_in_its_text(
    autojump_clock: MockClock,
) -> None:
    import trustme

    other = trustme.CA()
    simulated = Simulated()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, echo))

        error = await refused(simulated, alpn=("other/9",))
        assert type(error) is phoenix_trio.NoCommonProtocol
        assert error.alert == 120

        error = await refused(simulated, tls=phoenix_trio.ClientTLS(ca=other.cert_pem.bytes()))
        assert type(error) is phoenix_trio.CertificateUntrusted

        error = await refused(simulated, tls=client_tls(server_name="wrong.example"))
        assert type(error) is phoenix_trio.CertificateNameMismatch
        assert "wrong.example" in str(error)

        error = await refused(simulated, tls=phoenix_trio.ClientTLS(pinned_sha256=bytes(32)))
        assert type(error) is phoenix_trio.CertificatePinMismatch

        # And the server still serves.
        async with simulated.connect() as connection:
            assert await ask(connection, b"hello") == b"hello"
        nursery.cancel_scope.cancel()


async def test_an_expired_certificate_is_named_as_such(autojump_clock: MockClock) -> None:
    import datetime as dt

    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert(SERVER, not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    tls = phoenix_trio.ServerTLS(issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())
    simulated = Simulated()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, echo, tls=tls))
        error = await refused(simulated, tls=phoenix_trio.ClientTLS(ca=authority.cert_pem.bytes()))
        assert type(error) is phoenix_trio.CertificateExpired
        nursery.cancel_scope.cancel()


async def test_a_missing_client_certificate_is_reported_by_open_connection_itself(
    autojump_clock: MockClock,
) -> None:
    from tests.support import authority_pem, client_pem

    simulated = Simulated()
    seen: list[object] = []

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        seen.append(connection.peer_certificate)
        await echo(connection)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, handler, tls=server_tls(client_ca=authority_pem())))
        error = await refused(simulated)
        assert type(error) is phoenix_trio.ClientCertificateRequired
        assert not seen
        certificate, key = client_pem()
        async with simulated.connect(
            tls=client_tls(certificate=certificate, private_key=key)
        ) as connection:
            assert await ask(connection, b"mutual") == b"mutual"
        nursery.cancel_scope.cancel()
    assert len(seen) == 1
    assert seen[0] is not None


async def test_dialling_nobody_times_out_with_advice(autojump_clock: MockClock) -> None:
    simulated = Simulated()
    error = await refused(simulated, config=TransportConfig(max_idle_timeout=4.0))
    assert type(error) is phoenix_trio.HandshakeTimedOut
    assert "address" in str(error)


async def test_a_full_server_refuses(autojump_clock: MockClock) -> None:
    simulated = Simulated()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, echo, config=TransportConfig(max_connections=1)))
        async with simulated.connect() as connection:
            error = await refused(simulated)
            assert type(error) is phoenix_trio.ConnectionRefused
            assert await ask(connection, b"still") == b"still"
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ resumption and early data


async def test_sessions_are_resumed_and_early_data_needs_both_sides(
    autojump_clock: MockClock,
) -> None:
    for server_allows in (False, True):
        simulated = Simulated()
        store = phoenix_trio.SessionStore()
        tls = client_tls(session_store=store, early_data=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve(simulated, echo, tls=server_tls(early_data=server_allows)))
            async with simulated.connect(tls=tls) as connection:
                assert connection.session_resumed is False
                assert await ask(connection, b"first") == b"first"
            assert len(store) == 1
            started = trio.current_time()
            async with simulated.connect(tls=tls) as connection:
                early = trio.current_time() == started
                assert early is server_allows
                assert await ask(connection, b"second") == b"second"
                took = trio.current_time() - started
                await connection.wait_confirmed()
                assert connection.session_resumed is True
                assert connection.early_data_accepted is server_allows
            assert took < (0.03 if server_allows else 0.06)
            nursery.cancel_scope.cancel()


async def test_early_data_survives_a_retry(autojump_clock: MockClock) -> None:
    """RFC 9000 section 17.2.5.3: the server has dropped it, so it is sent again."""
    simulated = Simulated()
    tls = client_tls(session_store=phoenix_trio.SessionStore(), early_data=True)
    config = TransportConfig(retry="always")
    server = serve(simulated, echo, tls=server_tls(early_data=True), config=config)
    async with trio.open_nursery() as nursery:
        await nursery.start(server)
        for attempt in range(2):
            async with simulated.connect(tls=tls) as connection:
                with trio.fail_after(5):
                    assert await ask(connection, b"q" * 5000) == b"q" * 5000
                    await connection.wait_confirmed()
                assert connection.session_resumed is bool(attempt)
        nursery.cancel_scope.cancel()


async def test_early_data_which_a_restarted_server_refuses_is_sent_again(
    autojump_clock: MockClock,
) -> None:
    simulated = Simulated()
    store = phoenix_trio.SessionStore()
    tls = client_tls(session_store=store, early_data=True)
    for attempt in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve(simulated, echo, tls=server_tls(early_data=True)))
            async with simulated.connect(tls=tls) as connection:
                assert await ask(connection, b"q" * 3000) == b"q" * 3000
                await connection.wait_confirmed()
                assert connection.session_resumed is False, attempt
            nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ real sockets


async def test_a_port_in_use_is_an_error_which_names_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            await phoenix_trio.serve(echo, port, host="127.0.0.1", tls=server_tls())


async def test_an_unknown_host_is_an_error_which_names_it() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        async with phoenix_trio.open_connection("no-such-host.invalid", 1, tls=client_tls()):
            pass


@pytest.mark.parametrize(
    ("host", "port", "error"),
    [("", 1, ValueError), ("x", 0, ValueError), ("x", 65536, ValueError), (1, 1, TypeError)],
)
async def test_impossible_targets_are_refused(host: str, port: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"host|port"):
        async with phoenix_trio.open_connection(host, port, tls=client_tls()):
            pass


@pytest.mark.parametrize("host", [None, "127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("dial", ["127.0.0.1", "::1", "localhost"])
async def test_servers_on_every_kind_of_address(host: str | None, dial: str) -> None:
    def families(name: str) -> set[int]:
        return {found[0] for found in socket.getaddrinfo(name, 1, type=socket.SOCK_DGRAM)}

    if host is not None and not families(host) & families(dial):
        pytest.skip("different families on this machine")
    async with trio.open_nursery() as nursery:
        try:
            listeners = await nursery.start(
                lambda task_status: phoenix_trio.serve(
                    echo, 0, host=host, tls=server_tls(), task_status=task_status
                )
            )
        except OSError as error:
            pytest.skip(f"no such address here: {error}")
        with trio.fail_after(10):
            async with phoenix_trio.open_connection(
                dial, listeners[0].port, tls=client_tls()
            ) as connection:
                assert await ask(connection, b"hello") == b"hello"
                assert connection.peer_address[0] in ("127.0.0.1", "::1")
        nursery.cancel_scope.cancel()


async def test_one_endpoint_dials_and_listens_on_one_socket() -> None:
    async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:
        listener = endpoint.listen(tls=server_tls())
        with pytest.raises(trio.BusyResourceError):
            endpoint.listen(tls=server_tls())
        with trio.fail_after(10):
            async with endpoint.connect("127.0.0.1", endpoint.port, tls=client_tls()) as ours:
                theirs = await listener.accept()
                stream = await ours.open_stream()
                await stream.send_all(b"to myself")
                accepted = await theirs.accept_stream()
                assert await accepted.receive_some() == b"to myself"
        assert endpoint.statistics().connections_accepted == 1
    with pytest.raises(trio.ClosedResourceError):
        endpoint.listen(tls=server_tls())


async def test_configurations_are_checked_where_they_are_made() -> None:
    for field, value in {
        "max_bidirectional_streams": -1,
        "receive_buffer_size": 0,
        "max_udp_payload_size": 1199,
        "max_idle_timeout": 0,
        "congestion_control": "vegas",
        "retry": "sometimes",
        "initial_rtt": float("nan"),
        "datagram_queue_length": 0,
        "accept_backlog": 1.5,
    }.items():
        with pytest.raises((TypeError, ValueError), match=field):
            TransportConfig(**{field: value})
    with pytest.raises(ValueError, match="keep_alive"):
        TransportConfig(keep_alive=40.0)
    with pytest.raises(ValueError, match="keep_alive"):
        attrs.evolve(TransportConfig(keep_alive=20.0), max_idle_timeout=10.0)
    with pytest.raises(ValueError, match="alpn"):
        async with phoenix_trio.open_connection("127.0.0.1", 1, tls=client_tls(), alpn=()):
            pass
    with pytest.raises(TypeError, match="alpn"):
        async with phoenix_trio.open_connection("127.0.0.1", 1, tls=client_tls(), alpn="h3"):
            pass


# ------------------------------------------------------------------ a failing socket


async def test_a_socket_which_fails_for_good_ends_the_endpoint_with_its_error(
    autojump_clock: MockClock,
) -> None:
    simulated = Simulated()
    told: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(serve(simulated, echo))
        with pytest.raises(OSError, match="gone"):
            async with simulated.connect() as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"

                def fail(limit: int, pool: object) -> list[object]:
                    raise OSError("gone")

                connection._driver.socket.receive_runs = fail  # type: ignore[method-assign]
                await stream.send_all(b"y")
                try:
                    await stream.receive_some()
                except BaseException as error:
                    told.append(error)
                    raise
        nursery.cancel_scope.cancel()
    assert isinstance(told[0], (trio.BrokenResourceError, trio.ClosedResourceError, trio.Cancelled))


async def test_without_a_nursery_a_failed_socket_is_reported_by_the_next_call(
    autojump_clock: MockClock,
) -> None:
    simulated = Simulated()
    listener = await phoenix_trio.open_listener(
        PORT, tls=server_tls(), alpn=ALPN, network=simulated.network.host(SERVER)
    )

    def fail(limit: int, pool: object) -> list[object]:
        raise OSError("gone")

    listener._driver.socket.receive_runs = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        await listener.accept()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await listener.accept()
    assert "gone" in str(caught.value.__cause__)
    await listener.aclose()


async def test_without_a_nursery_a_writer_sends_at_once_whatever_a_driver_has_left_behind(
    autojump_clock: MockClock,
) -> None:
    simulated = Simulated()
    listener = await phoenix_trio.open_listener(
        PORT, tls=server_tls(), alpn=ALPN, network=simulated.network.host(SERVER)
    )
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            async with simulated.connect() as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"y"
                await connection.aclose()

        nursery.start_soon(ask)
        connection = await listener.accept()
        stream = await connection.accept_stream()
        driver = listener._driver
        assert not driver._hand_over.is_running
        # The state left by a leader that is cancelled between two turns.
        assert connection._route is not None
        driver._sender.dirty[connection._route] = None
        before = driver.statistics().datagrams_sent
        await stream.send_all(b"y")
        assert driver.statistics().datagrams_sent > before
        await connection.wait_closed()
    await listener.aclose()
