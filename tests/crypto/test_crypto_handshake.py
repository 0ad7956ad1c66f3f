"""Handshakes between Alice and Bob, with Eve as attacker on the path."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.handshake import PendingInitiation, initiate, receive_initiation
from ravenvpn.crypto.keys import PresharedKey, PrivateKey, PublicKey
from ravenvpn.errors import ConfigError, MalformedMessage

STAMP = bytes.fromhex("40000000695735af15000000")

# Points of small order and their encodings that are not reduced modulo p: RFC 7748 §7 and the list in its reference
# [Curve25519]. The product of any private key with one of them is zero.
LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]

both_suites = pytest.mark.parametrize("suite", Suite)


def fresh() -> PrivateKey:
    return PrivateKey.generate(os.urandom)


@pytest.fixture(scope="module")
def alice() -> PrivateKey:
    return fresh()


@pytest.fixture(scope="module")
def bob() -> PrivateKey:
    return fresh()


@both_suites
def test_alice_and_bob_agree_on_keys(alice, bob, suite):
    body, pending = initiate(alice, bob.public, suite, STAMP, fresh())
    received = receive_initiation(bob, body, suite)
    assert (received.static, received.timestamp, received.suite) == (alice.public, STAMP, suite)

    response, bobs = received.respond(None, fresh())
    alices = pending.finish(response)

    assert (len(body), len(response)) == (108, 48)
    assert (alices.send, alices.receive) == (bobs.receive, bobs.send)
    assert alices.send != alices.receive
    assert len(alices.send) == len(alices.receive) == 32


@both_suites
def test_every_flipped_bit_of_an_initiation_is_refused(alice, bob, suite):
    body, _ = initiate(alice, bob.public, suite, STAMP, fresh())
    for position in range(len(body)):
        with pytest.raises(MalformedMessage):
            receive_initiation(bob, flipped(body, position), suite)
    assert receive_initiation(bob, body, suite).static == alice.public


@both_suites
def test_every_flipped_bit_of_a_response_is_refused_and_changes_nothing(alice, bob, suite):
    """A bogus response must not change the pending handshake: the genuine one still completes it."""
    body, pending = initiate(alice, bob.public, suite, STAMP, fresh())
    response, bobs = receive_initiation(bob, body, suite).respond(None, fresh())
    for position in range(len(response)):
        with pytest.raises(MalformedMessage):
            pending.finish(flipped(response, position))
    assert pending.finish(response).send == bobs.receive


@both_suites
def test_a_refused_response_leaves_every_field_of_the_handshake_as_it_was(alice, bob, suite):
    """The comparison includes fields that the next message overwrites."""
    body, pending = initiate(alice, bob.public, suite, STAMP, fresh())
    response, _ = receive_initiation(bob, body, suite).respond(None, fresh())
    before = everything_in(pending._state)
    refuse(pending, flipped(response, 47))
    assert everything_in(pending._state) == before


def everything_in(thing: object) -> object:
    """Return the contents of noiseprotocol's objects, recursively; other objects by identity."""
    if type(thing).__module__.startswith("noise."):
        return {name: everything_in(value) for name, value in vars(thing).items()}
    if isinstance(thing, dict):
        return {name: everything_in(value) for name, value in thing.items()}
    if isinstance(thing, list):
        return [everything_in(value) for value in thing]
    return thing


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_secrets_of_a_handshake_go_without_waiting_for_the_collector(alice, bob):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    received = receive_initiation(bob, body, Suite.CHACHA20POLY1305)
    dropped = receive_initiation(bob, body, Suite.CHACHA20POLY1305)
    watched = [weakref.ref(handshake._state.symmetric_state) for handshake in (pending, received, dropped)]
    del dropped
    assert watched[2]() is None
    response, _ = received.respond(None, fresh())
    assert watched[1]() is None
    pending.finish(response)
    assert watched[0]() is None


@pytest.mark.usefixtures("no_collector")
def test_refused_messages_leave_nothing_for_the_collector(alice, bob):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    response, _ = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, fresh())
    gc.collect()
    for _ in range(10):
        with contextlib.suppress(MalformedMessage):
            receive_initiation(bob, flipped(body, 100), Suite.CHACHA20POLY1305)
        with contextlib.suppress(MalformedMessage):
            pending.finish(flipped(response, 40))
    assert gc.collect() == 0


def flipped(message: bytes, position: int) -> bytes:
    """Flip one bit of byte `position`.

    In the last byte of a key it is the top bit, which X25519 ignores (RFC 7748 §5) but the handshake hash does not.
    """
    changed = bytearray(message)
    changed[position] ^= 1 << (position % 8)
    return bytes(changed)


def test_only_what_is_new_in_a_handshake_costs_elliptic_curve_arithmetic(alice, bob):
    """After the first handshake the static keys are loaded and their static secret is cached.

    Loading a private key costs as much as a DH. `bench/micro_handshake.py` measures the gain.
    """
    ephemerals = [fresh() for _ in range(4)]
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, ephemerals[0])
    pending.finish(receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, ephemerals[1])[0])

    with counted() as spent:
        body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, ephemerals[2])
    assert spent == {"from_private_bytes": 1, "exchange": 1}  # the ephemeral key, es
    with counted() as spent:
        received = receive_initiation(bob, body, Suite.CHACHA20POLY1305)
    assert spent == {"exchange": 1}  # es
    with counted() as spent:
        response, _ = received.respond(None, ephemerals[3])
    assert spent == {"from_private_bytes": 1, "exchange": 2}  # the ephemeral key, ee, se
    with counted() as spent:
        pending.finish(response)
    assert spent == {"exchange": 2}  # ee, se


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of `cryptography` for curve arithmetic."""
    calls: Counter[str] = Counter()

    def profile(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and (name := getattr(function, "__name__", "")) in {"from_private_bytes", "exchange"}:
            calls[name] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("length", [0, 1, 47, 49, 108])
def test_a_response_of_the_wrong_length_is_refused_and_changes_nothing(alice, bob, length):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    with pytest.raises(MalformedMessage):
        pending.finish(bytes(length))
    response, _ = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, fresh())
    pending.finish(response)


@pytest.mark.parametrize("length", [0, 32, 107, 109, 148])
def test_an_initiation_of_the_wrong_length_is_refused(bob, length):
    with pytest.raises(MalformedMessage):
        receive_initiation(bob, bytes(length), Suite.CHACHA20POLY1305)


@given(body=st.binary(min_size=108, max_size=108), response=st.binary(min_size=48, max_size=48))
def test_random_bytes_raise_nothing_but_malformed_message(alice, bob, body, response):
    _, pending = initiate(alice, bob.public, Suite.AES256GCM, STAMP, fresh())
    with pytest.raises(MalformedMessage):
        receive_initiation(bob, body, Suite.AES256GCM)
    with pytest.raises(MalformedMessage):
        pending.finish(response)


def test_a_replayed_response_is_refused(alice, bob):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    response, _ = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, fresh())
    pending.finish(response)
    with pytest.raises(MalformedMessage, match="over"):
        pending.finish(response)


def test_a_response_to_an_earlier_initiation_is_refused_and_changes_nothing(alice, bob):
    first, _ = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    second, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    late, _ = receive_initiation(bob, first, Suite.CHACHA20POLY1305).respond(None, fresh())
    with pytest.raises(MalformedMessage):
        pending.finish(late)
    response, bobs = receive_initiation(bob, second, Suite.CHACHA20POLY1305).respond(None, fresh())
    assert pending.finish(response).send == bobs.receive


def test_a_static_secret_is_forgotten_with_its_peer(alice, bob):
    initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    before = alice.remembered
    alice.forget(bob.public)
    assert alice.remembered == before - 1
    body, _ = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    assert receive_initiation(bob, body, Suite.CHACHA20POLY1305).static == alice.public


def test_an_initiation_is_answered_once(alice, bob):
    body, _ = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    received = receive_initiation(bob, body, Suite.CHACHA20POLY1305)
    received.respond(None, fresh())
    with pytest.raises(RuntimeError, match="once"):
        received.respond(None, fresh())


@pytest.mark.parametrize("alices", ["none", "other"])
def test_a_preshared_key_that_differs_is_refused_until_it_is_right(alice, bob, alices):
    """The preshared key enters with the response (psk2), so a key that is corrected meanwhile still completes it."""
    right = PresharedKey.generate(os.urandom)
    wrong = None if alices == "none" else PresharedKey.generate(os.urandom)
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    response, bobs = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(right, fresh())
    with pytest.raises(MalformedMessage):
        pending.finish(response, wrong)
    assert pending.finish(response, right).send == bobs.receive


def test_a_preshared_key_of_zeros_is_none(alice, bob):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    response, bobs = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(PresharedKey.none(), fresh())
    assert pending.finish(response, None).send == bobs.receive


def test_an_initiation_to_another_key_is_refused(alice, bob):
    body, _ = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    with pytest.raises(MalformedMessage):
        receive_initiation(fresh(), body, Suite.CHACHA20POLY1305)


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
class TestPointsOfLowOrder:
    """Their shared secrets are all zero and known to everyone, so the handshake is aborted (whitepaper §5.4)."""

    def test_nothing_is_sent_to_such_a_static_key(self, alice, point):
        with pytest.raises(ConfigError, match="low order"):
            initiate(alice, PublicKey(point), Suite.CHACHA20POLY1305, STAMP, fresh())

    def test_an_initiation_with_such_an_ephemeral_key_is_refused(self, bob, point):
        with pytest.raises(MalformedMessage, match="low order"):
            receive_initiation(bob, point + bytes(76), Suite.CHACHA20POLY1305)

    def test_an_initiation_with_such_a_static_key_is_refused(self, bob, point):
        """Eve can compute such an initiation up to the timestamp: she knows `es`, which encrypts her static key."""
        body = eves_initiation(bob.public, point)
        with pytest.raises(MalformedMessage, match="low order"):
            receive_initiation(bob, body, Suite.CHACHA20POLY1305)

    def test_a_response_with_such_an_ephemeral_key_is_refused_and_changes_nothing(self, alice, bob, point):
        body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
        with pytest.raises(MalformedMessage, match="low order"):
            pending.finish(point + bytes(16))
        response, _ = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, fresh())
        pending.finish(response)


def eves_initiation(to: PublicKey, static: bytes) -> bytes:
    """Return an initiation with the encrypted static key `static`, made with the library alone and a zero `ss`."""
    import warnings

    from noise.connection import Keypair, NoiseConnection

    from ravenvpn.crypto.handshake import PROLOGUE

    eve = NoiseConnection.from_name(Suite.CHACHA20POLY1305.noise_name)
    eve.set_as_initiator()
    eve.set_prologue(PROLOGUE)
    eve.set_psks(psk=bytes(32))
    eve.set_keypair_from_private_bytes(Keypair.STATIC, fresh().raw)
    eve.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, to.raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eve.start_handshake()
    eve.noise_protocol.handshake_state.s.public_bytes = static
    return bytes(eve.write_message(STAMP))


def test_a_given_up_handshake_reads_no_response_and_holds_no_key(alice, bob):
    ephemeral = fresh()
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, ephemeral)
    response, _ = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, fresh())
    pending.wipe()
    pending.wipe()
    assert is_wiped(ephemeral)
    with pytest.raises(MalformedMessage):
        pending.finish(response)


def test_both_ephemeral_keys_are_wiped_once_there_are_session_keys(alice, bob):
    alices, bobs = fresh(), fresh()
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, alices)
    response, _ = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, bobs)
    assert is_wiped(bobs)
    assert not is_wiped(alices)
    pending.finish(response)
    assert is_wiped(alices)


def is_wiped(key: PrivateKey) -> bool:
    try:
        return not key.raw
    except ValueError:
        return True


def test_strangers_do_not_fill_the_memory_for_static_secrets(bob):
    """Initiations of any host with the public key authenticate, but only a response caches the static secret."""
    before = bob.remembered
    for _ in range(3):
        body, _ = initiate(fresh(), bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
        received = receive_initiation(bob, body, Suite.CHACHA20POLY1305)
    assert bob.remembered == before
    received.respond(None, fresh())
    assert bob.remembered == before + 1


def test_nothing_secret_shows_in_a_repr(alice, bob):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    received = receive_initiation(bob, body, Suite.CHACHA20POLY1305)
    _, keys = received.respond(None, fresh())
    shown = f"{keys!r} {keys} {pending!r} {received!r}"
    assert "hidden" in repr(keys)
    for secret in (keys.send, keys.receive, alice.raw, bob.raw):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


@pytest.mark.parametrize("stamp", [b"", bytes(11), bytes(13)])
def test_a_timestamp_has_twelve_bytes(alice, bob, stamp):
    with pytest.raises(ValueError, match="12 bytes"):
        initiate(alice, bob.public, Suite.CHACHA20POLY1305, stamp, fresh())


def test_a_pending_handshake_takes_any_number_of_bogus_responses(alice, bob):
    body, pending = initiate(alice, bob.public, Suite.CHACHA20POLY1305, STAMP, fresh())
    for _ in range(50):
        refuse(pending, fresh().public.raw + os.urandom(16))
    response, bobs = receive_initiation(bob, body, Suite.CHACHA20POLY1305).respond(None, fresh())
    assert pending.finish(response).send == bobs.receive


def refuse(pending: PendingInitiation, response: bytes) -> None:
    with pytest.raises(MalformedMessage):
        pending.finish(response)
