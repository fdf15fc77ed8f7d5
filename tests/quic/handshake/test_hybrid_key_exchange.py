"""X25519MLKEM768: its keys, hellos of two datagrams, and peers which do not know it."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.packet import encode_quic_version_negotiation
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl.backend import backend
from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from OpenSSL import SSL
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.quic.established.crypto_stream import INITIAL_WINDOW
from phoenix_trio.quic.handshake import hello_context, key_exchange
from phoenix_trio.quic.handshake.host import APPLICATION, EARLY
from phoenix_trio.quic.handshake.key_exchange import (
    GROUPS,
    X25519MLKEM768,
    KeyExchange,
    answer_exchange,
    begin_exchange,
    begin_offer,
)
from phoenix_trio.quic.handshake.policies import ClientPolicy, ServerPolicy
from phoenix_trio.quic.handshake.settings import HandshakeSettings
from phoenix_trio.quic.handshake.tls import DEFAULT_GROUPS
from phoenix_trio.quic.handshake.tls_context import PhoenixTLSContext, adopt
from phoenix_trio.quic.handshake.tls_messages import (
    build_client_hello,
    fixed_extensions,
    parse_client_hello,
    parse_server_hello,
)
from phoenix_trio.quic.wire.protection import VERSION_1, VERSION_2
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.support import ALPN, PORT, client_tls, server_tls
from tests.support import CLIENT as CLIENT_HOST
from tests.support import SERVER as SERVER_HOST

from .pair import CLIENT, SERVER, Owner, Pair, long_server_tls, make_client, make_server
from .test_with_aioquic import Network, dial, server_configuration
from .test_with_aioquic import assert_same_secrets as assert_same_secrets_as_aioquic

X25519 = tls.Group.X25519
HYBRID = "x25519mlkem768"


def client(**arguments: Any) -> HandshakeSettings:
    """With the groups of a default client."""
    arguments.setdefault("groups", DEFAULT_GROUPS)
    return make_client(client_tls(**arguments))


def server(**arguments: Any) -> partial[HandshakeSettings]:
    return partial(make_server, tls=server_tls(**arguments))


def assert_same_secrets(pair: Pair, group: str = HYBRID) -> None:
    assert pair.server is not None
    one, other = pair.client, pair.server
    assert one.handshake.key_exchange == other.handshake.key_exchange == group
    assert one.keys[APPLICATION, True] == other.keys[APPLICATION, False]
    assert one.keys[APPLICATION, False] == other.keys[APPLICATION, True]


def hello_of(pair: Pair) -> list[bytes]:
    pair.client.handshake.start(SERVER, 0.0)
    return [data for data, _ in pair.client.handshake.transmit(0.0)]


def admitted(pair: Pair, datagram: bytes) -> Owner:
    owner = pair.admit(datagram)
    assert owner is not None
    owner.handshake.receive(datagram, CLIENT, 0.0)
    return owner


# ------------------------------------------------------------------ keys


def test_shares_and_secrets_have_their_halves_in_the_order_of_the_rfc() -> None:
    """RFC 10024: the half of ML-KEM is first in each."""
    hybrid, curve = begin_offer([X25519MLKEM768, X25519])
    assert (hybrid.group, curve.group) == (0x11EC, X25519)
    assert len(hybrid.public) == 1184 + 32
    assert hybrid.public[1184:] == curve.public
    public, secret = answer_exchange(X25519MLKEM768, hybrid.public)
    assert (len(public), len(secret)) == (1088 + 32, 64)
    assert hybrid.finish(public) == secret
    assert secret[32:] == curve.finish(public[1088:])


def test_the_half_of_ml_kem_is_that_of_fips_203() -> None:
    """FIPS 203 section 6.3: a ciphertext which does not fit gives SHAKE256(z || ciphertext)."""
    seed = bytes(range(64))
    exchange = begin_exchange(X25519MLKEM768)
    exchange._kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)  # type: ignore[attr-defined]
    ciphertext = bytes(range(256)) * 4 + bytes(64)
    secret = exchange.finish(ciphertext + begin_exchange(X25519).public)
    assert secret[:32] == hashlib.shake_256(seed[32:] + ciphertext).digest(32)


def test_shares_of_a_wrong_size_or_value_are_refused() -> None:
    exchange = begin_exchange(X25519MLKEM768)
    good = exchange.public
    no_point = bytes(32)
    too_large = b"\xff" * 1184  # FIPS 203 section 7.2: its coefficients are not below 3329
    for share in (b"", good[:-1], good + b"x", good[32:], good[:1184] + no_point,
                  too_large + good[1184:]):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - the libraries' texts differ
            answer_exchange(X25519MLKEM768, share)
    answer, _ = answer_exchange(X25519MLKEM768, good)
    for share in (b"", answer[:-1], answer + b"x", answer[32:], answer[:1088] + no_point):
        with pytest.raises(ValueError):  # noqa: PT011
            exchange.finish(share)


@pytest.mark.parametrize(
    ("groups", "offered"),
    [
        ([X25519MLKEM768, X25519, 23], [X25519MLKEM768, X25519]),
        ([X25519MLKEM768, 23, X25519], [X25519MLKEM768, 23]),
        ([X25519MLKEM768], [X25519MLKEM768]),
        ([X25519, X25519MLKEM768], [X25519]),
    ],
)
def test_which_shares_are_offered(groups: list[int], offered: list[int]) -> None:
    assert [each.group for each in begin_offer(groups)] == offered


def test_a_group_which_this_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "mlkem_supported", lambda: False)
    with pytest.raises(UnsupportedAlgorithm):
        begin_exchange(X25519MLKEM768)
    assert not key_exchange._works(X25519MLKEM768)
    assert key_exchange._works(X25519)


WITHOUT_ML_KEM = """
from cryptography.hazmat.backends.openssl.backend import backend

backend.mlkem_supported = lambda: False

import phoenix_trio
from phoenix_trio.quic.handshake.tls import DEFAULT_GROUPS, KNOWN_GROUPS
from tests.quic.handshake.pair import Pair, make_client, make_server
from tests.support import client_tls

assert DEFAULT_GROUPS == ("x25519", "secp256r1")
assert KNOWN_GROUPS == ("x25519", "secp256r1", "secp384r1", "x448")
pair = Pair(client=make_client(client_tls(groups=DEFAULT_GROUPS))).connect()
assert pair.client.handshake.key_exchange == "x25519"
try:
    phoenix_trio.ClientTLS(groups=("x25519mlkem768", "x25519"))
except ValueError as error:
    print(error)
"""


def test_a_cryptography_package_without_ml_kem_does_without() -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_ML_KEM],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "x25519mlkem768 needs a cryptography package whose OpenSSL has ML-KEM" in found.stdout


def test_it_is_preferred_by_both_sides() -> None:
    assert next(iter(GROUPS)) == HYBRID
    assert DEFAULT_GROUPS[0] == server_tls().groups[0] == HYBRID


# ------------------------------------------------------------------ handshakes


@pytest.mark.parametrize("versions", [(VERSION_1, VERSION_2), (VERSION_2, VERSION_1)])
def test_client_and_server_agree_on_it(versions: tuple[int, int]) -> None:
    settings = client()
    settings.versions = versions
    settings.first_version = VERSION_1
    pair = Pair(client=settings, server=server()).connect()
    assert_same_secrets(pair)
    assert pair.client.handshake.version == versions[0]
    hello = [data for side, data in pair.datagrams if side.is_client][:2]
    assert [len(data) for data in hello] == [1200, 1200]
    assert pair.now == pytest.approx(0.04), "no round trip more"


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen", "is_retried"),
    [
        (DEFAULT_GROUPS, ("x25519", "secp256r1"), "x25519", False),
        (DEFAULT_GROUPS, ("x25519", HYBRID), "x25519", False),
        (DEFAULT_GROUPS, ("secp256r1", HYBRID), HYBRID, False),
        (("x25519", "secp256r1"), (HYBRID, "x25519"), "x25519", False),
        (("x25519", HYBRID), (HYBRID, "x25519"), "x25519", False),
        (DEFAULT_GROUPS, ("secp256r1",), "secp256r1", True),
        (("x448", HYBRID), (HYBRID, "x25519"), HYBRID, True),
        ((HYBRID, "x448", "secp384r1"), ("x25519", "secp384r1"), "secp384r1", True),
    ],
)
def test_the_group_follows_from_both_sides_lists(
    ours: Sequence[str], theirs: Sequence[str], chosen: str, is_retried: bool
) -> None:
    pair = Pair(client=client(groups=ours), server=server(groups=theirs)).connect()
    assert_same_secrets(pair, chosen)
    context = pair.client.handshake.tls_context
    assert context is not None
    assert context.was_retried is is_retried


def test_two_shares_of_one_group_are_refused() -> None:
    share = X25519, begin_exchange(X25519).public
    hello = build_client_hello(
        random=bytes(32),
        session_id=b"",
        cipher_suites=[tls.CipherSuite.AES_128_GCM_SHA256],
        fixed=fixed_extensions(
            server_name=None,
            alpn=None,
            groups=(X25519,),
            signature_algorithms=(tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,),
            with_tickets=False,
        ),
        key_shares=[share, share],
        other=[],
    )
    with pytest.raises(tls.AlertIllegalParameter, match="two key shares"):
        message_of(new_server(), hello)


#: FIPS 203 section 7.2: a coefficient of an encapsulation key is below 3329.
NO_KEY = b"\xff" * 1184
#: RFC 8446 section 7.4.2: with this point, the secret of X25519 is all zeros.
NO_POINT = bytes(32)

BROKEN_CLIENTS: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda share: share[:-1],
    "long": lambda share: share + b"x",
    "X25519 alone": lambda share: share[1184:],
    "an invalid encapsulation key": lambda share: NO_KEY + share[1184:],
    "a point of small order": lambda share: share[:1184] + NO_POINT,
}
BROKEN_SERVERS: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda share: share[:-1],
    "long": lambda share: share + b"x",
    "X25519 alone": lambda share: share[1088:],
    "a point of small order": lambda share: share[:1088] + NO_POINT,
}


@pytest.mark.parametrize("change", BROKEN_CLIENTS.values(), ids=BROKEN_CLIENTS)
def test_a_client_whose_share_is_no_good_is_refused(
    change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offer(groups: Sequence[int]) -> list[KeyExchange]:
        exchanges = begin_offer(groups)
        exchanges[0].public = change(exchanges[0].public)
        return exchanges

    monkeypatch.setattr(hello_context, "begin_offer", offer)
    pair = run(Pair(client=client(), server=server()))
    assert pair.server is not None
    assert pair.server.fault is not None
    assert pair.server.fault[0] == 0x100 + tls.AlertDescription.illegal_parameter
    assert pair.client.peer_close is not None
    assert pair.client.peer_close[0] == pair.server.fault[0]
    assert pair.server.handshake.key_exchange is None
    assert not pair.server.keys


@pytest.mark.parametrize("change", BROKEN_SERVERS.values(), ids=BROKEN_SERVERS)
def test_a_server_whose_share_is_no_good_is_refused(
    change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(group: int, public: bytes) -> tuple[bytes, bytes]:
        share, secret = answer_exchange(group, public)
        return change(share), secret

    monkeypatch.setattr(hello_context, "answer_exchange", answer)
    pair = run(Pair(client=client(), server=server()))
    assert pair.client.fault is not None
    assert pair.client.fault[0] == 0x100 + tls.AlertDescription.illegal_parameter
    assert pair.client.handshake.key_exchange is None


def test_a_changed_ciphertext_ends_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIPS 203 section 6.3: decapsulation gives another secret, and says nothing."""

    def answer(group: int, public: bytes) -> tuple[bytes, bytes]:
        share, secret = answer_exchange(group, public)
        return bytes((share[0] ^ 1,)) + share[1:], secret

    monkeypatch.setattr(hello_context, "answer_exchange", answer)
    pair = run(Pair(client=client(), server=server()))
    assert pair.client.handshake.key_exchange == HYBRID
    assert not pair.client.handshake.is_complete


def run(pair: Pair) -> Pair:
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(5.0)
    return pair


# ------------------------------------------------------------------ two datagrams


def test_the_parts_of_a_hello_are_taken_in_any_order() -> None:
    pair = Pair(client=client(), server=server())
    first, second = hello_of(pair)
    owner = admitted(pair, second)
    assert owner.handshake.alpn is None
    owner.handshake.receive(first, CLIENT, 0.0)
    assert owner.handshake.alpn == ALPN[0]
    pair.run(5.0)
    assert_same_secrets(pair)


def test_half_a_hello_costs_a_server_little_and_is_only_acknowledged() -> None:
    for which in (0, 1):
        pair = Pair(client=client(), server=server())
        half = hello_of(pair)[which]
        owner = admitted(pair, half)
        for now in (0.0, 0.1):  # (a repeated one changes nothing)
            answers = owner.handshake.transmit(now)
            assert sum(len(data) for data, _ in answers) < 100
            owner.handshake.receive(half, CLIENT, now)
        assert owner.handshake.key_exchange is None, "no key was computed"
        assert owner.handshake._state.initial.receiver.held < len(half) < INITIAL_WINDOW
        assert owner.handshake.deadline() > 1e6, "no timer runs for it"


@pytest.mark.parametrize("which", [0, 1])
def test_a_lost_part_of_a_hello_is_repeated(which: int) -> None:
    sent: list[bytes] = []

    def drop(sender: Owner, data: bytes) -> bool:
        if sender.is_client:
            sent.append(data)
        return sender.is_client and len(sent) == 1 + which

    pair = Pair(client=client(), server=server(), drop=drop)
    pair.connect()
    assert pair.lost == 1
    assert_same_secrets(pair)


@pytest.mark.parametrize("retries", [True, False])
@pytest.mark.parametrize("groups", [("secp256r1",), (HYBRID,)])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_handshakes_with_retries_and_losses(
    retries: bool, groups: tuple[str, ...], loss: float
) -> None:
    generator = random.Random(2)
    pair = Pair(
        client=client(),
        server=server(groups=groups),
        retries=retries,
        drop=lambda sender, data: generator.random() < loss and pair.now < 30.0,
    )
    pair.client.handshake.start(SERVER, 0.0)
    pair.run(60.0)
    assert pair.client.handshake.is_confirmed
    assert_same_secrets(pair, groups[0])
    assert pair.client.log.count(("retry",)) == retries, "one of two Retry packets is followed"


@pytest.mark.parametrize("lost", [None, 0, 1])
def test_a_server_with_a_long_chain_sends_three_times_what_has_come(lost: int | None) -> None:
    """RFC 9000 section 8.1: also while half a hello is missing."""
    received = sent = hellos = 0
    most = 0.0

    def watch(sender: Owner, data: bytes) -> bool:
        nonlocal received, sent, hellos, most
        if not sender.is_client:
            sent += len(data)
            if not sender.paths.all[0].is_validated:
                most = max(most, sent / received)
            return False
        hellos += 1
        if hellos - 1 == lost:
            return True
        received += len(data)
        return False

    serving = partial(make_server, tls=long_server_tls(names=400))
    pair = Pair(client=client(), server=serving, drop=watch).connect()
    assert_same_secrets(pair)
    assert 2.5 < most <= 3


def test_version_negotiation_begins_again_with_a_whole_hello() -> None:
    settings = client()
    settings.versions = (VERSION_2, VERSION_1)
    pair = Pair(client=settings, server=server())
    hello_of(pair)
    answer = encode_quic_version_negotiation(
        source_cid=pair.client.handshake.peer_cid,
        destination_cid=pair.client.handshake.host_cid,
        supported_versions=[VERSION_1],
    )
    for _ in range(2):  # each of the two datagrams is answered
        pair.client.handshake.receive(answer, SERVER, 0.0)
    assert pair.client.handshake.version == VERSION_1
    again = pair.send(pair.client)
    assert [len(data) for data in again] == [1200, 1200]
    pair.run(5.0)
    assert_same_secrets(pair)


def test_early_data_comes_with_a_hello_of_two_datagrams() -> None:
    serving = server_tls(early_data=True)
    tls_of_client = client_tls(
        groups=DEFAULT_GROUPS, session_store=phoenix_trio.SessionStore(), early_data=True
    )
    make = partial(make_server, tls=serving)
    first = Pair(client=make_client(tls_of_client), server=make).connect()
    assert first.server is not None
    first.client.handshake.take_tls_message(first.server.crypto)
    for is_reordered in (False, True):
        pair = Pair(client=make_client(tls_of_client), server=make)
        hello = hello_of(pair)
        assert len(hello) == 2
        assert pair.client.handshake.can_send_early_data
        early = pair.client.seals(b"\x01\0\0", EARLY)
        owner = admitted(pair, hello[0])
        for data in (early, hello[1]) if is_reordered else (hello[1], early):
            owner.handshake.receive(data, CLIENT, 0.0)
        assert owner.packets == [(EARLY, early)]
        pair.run(5.0)
        assert pair.client.completed == (ALPN[0], True, True)
        assert_same_secrets(pair)
        pair.client.handshake.take_tls_message(owner.crypto)


class Server:
    """Serves with the groups of a default server, and dials it with those of a default client."""

    def __init__(self, network: SimulatedNetwork, **config: Any) -> None:
        self.network = network
        self.config = phoenix_trio.TransportConfig(**config)
        self.groups: list[str | None] = []
        self.listener: phoenix_trio.QuicListener

    async def handle(self, connection: phoenix_trio.QuicConnection) -> None:
        self.groups.append(connection.key_exchange)
        await connection.wait_closed()

    async def start(self, nursery: trio.Nursery) -> None:
        (self.listener,) = await nursery.start(
            partial(
                phoenix_trio.serve,
                self.handle,
                PORT,
                tls=server_tls(),
                alpn=ALPN,
                config=self.config,
                network=self.network.host(SERVER_HOST),
            )
        )

    async def dial(self, **arguments: Any) -> phoenix_trio.QuicConnection:
        """A connection, which has ended."""
        tls_of_client = client_tls(groups=DEFAULT_GROUPS, **arguments)
        async with phoenix_trio.open_connection(
            SERVER_HOST, PORT, tls=tls_of_client, alpn=ALPN, network=self.network.host(CLIENT_HOST)
        ) as connection:
            assert connection.key_exchange == HYBRID
            await connection.wait_confirmed()
            await connection.ping()
            await trio.sleep(1)
        return connection


@pytest.mark.parametrize(
    "faults",
    [
        {"loss": 0.2},
        {"reorder": 0.5, "jitter": 0.02},
        {"duplicate": 0.5, "jitter": 0.02},
        {"loss": 0.1, "reorder": 0.3, "duplicate": 0.3, "corrupt": 0.05, "jitter": 0.02},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("retry", ["never", "always"])
async def test_connections_tell_the_group_on_any_network(
    faults: dict[str, float], retry: str, autojump_clock: MockClock
) -> None:
    server = Server(SimulatedNetwork(3, delay=0.01, **faults), retry=retry)
    async with trio.open_nursery() as nursery:
        await server.start(nursery)
        for _ in range(5):
            connection = await server.dial()
            assert connection.key_exchange == HYBRID, "it is known after the end, too"
        await trio.sleep(30)
        assert server.listener.statistics().handshakes == 0
        nursery.cancel_scope.cancel()
    assert server.groups == [HYBRID] * 5


@pytest.mark.parametrize("is_reordered", [False, True])
async def test_one_token_is_enough_for_both_datagrams_of_a_hello(
    is_reordered: bool, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    server = Server(network, retry="always")
    store = phoenix_trio.SessionStore()
    async with trio.open_nursery() as nursery:
        await server.start(nursery)
        await server.dial(session_store=store)
        retries = server.listener.statistics().retries_sent
        assert retries == 2, "one for each datagram of the first hello"
        if is_reordered:
            network.tap = swap_the_first_two()
        await server.dial(session_store=store)
        assert server.listener.statistics().retries_sent == retries
        nursery.cancel_scope.cancel()
    assert server.groups == [HYBRID] * 2


def swap_the_first_two() -> Callable[[Datagram], list[Datagram] | Datagram | None]:
    held: list[Datagram] = []

    def tap(datagram: Datagram) -> list[Datagram] | Datagram | None:
        held.append(datagram)
        if len(held) == 1:
            return None
        return [datagram, held[0]] if len(held) == 2 else datagram

    return tap


# ------------------------------------------------------------------ other implementations


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_an_aioquic_server_takes_x25519_instead(loss: float) -> None:
    owner = Owner(client(), CLIENT)
    peer = dial(owner, Network(loss), server_configuration(supported_versions=[VERSION_1]))
    assert owner.handshake.is_complete
    assert owner.handshake.key_exchange == "x25519"
    assert_same_secrets_as_aioquic(owner, peer)


Secrets = dict[tuple[tls.Direction, tls.Epoch], tuple[tls.CipherSuite, bytes]]


def message_of(context: PhoenixTLSContext, message: bytes) -> bytes:
    """Its answer to this message."""
    output = {each: Buffer(capacity=16384) for each in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE)}
    context.handle_message(message, output)
    return output[tls.Epoch.INITIAL].data + output[tls.Epoch.HANDSHAKE].data


def new_server(secrets: Secrets | None = None) -> PhoenixTLSContext:
    context = tls.Context(is_client=False)
    identity = server_tls().identity
    context.certificate, context.certificate_private_key = (
        identity.certificate,
        identity.private_key,
    )
    _collect(context, secrets)
    return adopt(context, ServerPolicy())


def _collect(context: tls.Context, secrets: Secrets | None) -> None:
    if secrets is not None:
        context.update_traffic_key_cb = lambda direction, epoch, suite, secret: secrets.update(
            {(direction, epoch): (suite, secret)}
        )


def record_cipher(suite: tls.CipherSuite, secret: bytes) -> tuple[AESGCM, bytes]:
    """The cipher of TLS records, and the nonce of the first one (RFC 8446 section 5.2)."""
    is_large = suite == tls.CipherSuite.AES_256_GCM_SHA384
    algorithm = SHA384() if is_large else SHA256()
    key = tls.hkdf_expand_label(algorithm, secret, b"key", b"", 32 if is_large else 16)
    return AESGCM(key), tls.hkdf_expand_label(algorithm, secret, b"iv", b"", 12)


def record(kind: int, content: bytes) -> bytes:
    return bytes((kind, 3, 3)) + len(content).to_bytes(2, "big") + content


def records(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        found.append((data[0], data[5:end]))
        data = data[end:]
    return [each for each in found if each[0] != 20]  # (change_cipher_spec)


def test_openssl_as_the_server_computes_the_same_secret() -> None:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    identity = server_tls().identity
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.private_key)
    theirs = SSL.Connection(context)
    theirs.set_accept_state()
    secrets: Secrets = {}
    plain = tls.Context(is_client=True)
    _collect(plain, secrets)
    ours = adopt(plain, ClientPolicy(server_name="localhost", accept_any=True))
    theirs.bio_write(record(22, message_of(ours, b"")))
    with pytest.raises(SSL.WantReadError):
        theirs.do_handshake()
    (_, hello), (_, encrypted), *_ = records(theirs.bio_read(65536))
    share = parse_server_hello(hello).key_share
    assert share is not None
    if share[0] != X25519MLKEM768:
        pytest.skip("this OpenSSL does not choose X25519MLKEM768")
    message_of(ours, hello)
    assert ours.key_group == X25519MLKEM768
    cipher, nonce = record_cipher(*secrets[tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE])
    head = record(23, encrypted)[:5]
    assert cipher.decrypt(nonce, encrypted, head)[0] == 8, "EncryptedExtensions"


def test_openssl_as_the_client_completes_a_handshake() -> None:
    theirs = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
    theirs.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        theirs.do_handshake()
    ((_, hello),) = records(theirs.bio_read(65536))
    shares = parse_client_hello(hello).key_shares
    assert shares is not None
    if X25519MLKEM768 not in dict(shares):
        pytest.skip("this OpenSSL does not offer X25519MLKEM768")
    secrets: Secrets = {}
    ours = new_server(secrets)
    flight = message_of(ours, hello)
    assert ours.key_group == X25519MLKEM768
    size = 4 + int.from_bytes(flight[1:4], "big")
    cipher, nonce = record_cipher(*secrets[tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE])
    inner = flight[size:] + b"\x16"
    head = record(23, bytes(len(inner) + 16))[:5]
    theirs.bio_write(record(22, flight[:size]) + head + cipher.encrypt(nonce, inner, head))
    theirs.do_handshake()  # which checks our Finished
