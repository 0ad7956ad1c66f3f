"""Keys as values: formats, clamping, hiding, wiping."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.keys import MAX_REMEMBERED, PresharedKey, PrivateKey, PublicKey
from ravenvpn.errors import ConfigError, MalformedMessage

# From the manual page of wg(8).
PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="

every_kind = pytest.mark.parametrize("kind", [PublicKey, PrivateKey, PresharedKey])
secrets = pytest.mark.parametrize("kind", [PrivateKey, PresharedKey])
raw_keys = st.binary(min_size=32, max_size=32).filter(any)


def test_rfc_7748_diffie_hellman():
    """Test vector of §6.1, Bob's side."""
    bob = PrivateKey.from_hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice = PublicKey.from_hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public.raw.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert bob.agree(alice).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def test_a_private_key_is_clamped_as_wg_shows_it():
    """The public key is what wg(8) 1.0 prints for this private key."""
    key = PrivateKey.from_base64("//////////////////////////////////////////8=")
    assert key.to_base64() == "+P///////////////////////////////////////38="
    assert str(key.public) == "hHwNLDdSNPNl5mCVUYejc1oPdhPRYJ06ak2MU66qWiI="


@given(raw_keys)
def test_clamping_changes_no_public_key_and_clamps_once(raw: bytes):
    once = PrivateKey(raw)
    assert PrivateKey(once.raw) == once
    assert PrivateKey(once.raw).public == once.public
    assert once.raw[0] % 8 == 0
    assert once.raw[31] & 0xC0 == 0x40


@every_kind
@given(raw=raw_keys)
def test_base64_and_hex_come_back_as_they_went(kind, raw: bytes):
    key = kind(raw)
    text = str(key) if kind is PublicKey else key.to_base64()
    assert len(text) == 44
    assert kind.from_base64(text) == key
    assert kind.from_hex(key.raw.hex()) == key


@every_kind
@pytest.mark.parametrize(
    "text",
    [
        "",
        PUBLIC[:-1],
        PUBLIC + "=",
        PUBLIC + "\n",
        " " + PUBLIC[:-1],
        PUBLIC[:-2] + "==",  # 31 bytes
        PUBLIC[:-1] + "A",  # 33 bytes
        PUBLIC[:-2] + "h=",  # bits beyond the 256th are set
        PUBLIC.replace("4", "-"),  # the URL-safe alphabet
        PUBLIC.replace("4", "é"),
        PUBLIC.replace("4", "\0"),
        "=" * 44,
    ],
)
def test_what_is_not_wgs_base64_is_refused_without_repeating_it(kind, text):
    with pytest.raises(ConfigError) as caught:
        kind.from_base64(text)
    assert PUBLIC[:8] not in str(caught.value)


@every_kind
@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "0x" + "11" * 31, "11 " * 21 + "1", "gg" * 32, "é" * 64])
def test_what_is_not_hex_is_refused(kind, text):
    with pytest.raises(ConfigError):
        kind.from_hex(text)


def test_errors_name_the_kind_of_key():
    with pytest.raises(ConfigError, match="a private key in base64 has 44 characters, not 3"):
        PrivateKey.from_base64("abc")
    with pytest.raises(ConfigError, match="this preshared key is not hexadecimal"):
        PresharedKey.from_hex("zz" * 32)


@every_kind
@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_has_32_bytes(kind, length):
    with pytest.raises(ValueError, match="32 bytes"):
        kind(bytes(length))


def test_no_key_is_not_a_private_key_but_a_preshared_one():
    with pytest.raises(ConfigError, match="no key"):
        PrivateKey(bytes(32))
    assert PresharedKey(bytes(32)) == PresharedKey.none()
    assert PresharedKey.none().is_none
    assert not PresharedKey.generate(os.urandom).is_none


def test_keys_come_from_the_randomness_given():
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return bytes(range(1, count + 1))

    assert PrivateKey.generate(random) == PrivateKey(bytes(range(1, 33)))
    assert PresharedKey.generate(random) == PresharedKey(bytes(range(1, 33)))
    assert asked == [32, 32]


def test_a_public_key_shows_itself():
    key = PublicKey.from_base64(PUBLIC)
    assert str(key) == f"{key}" == PUBLIC
    assert repr(key) == f"PublicKey('{PUBLIC}')"
    assert PrivateKey.from_base64(PRIVATE).public.raw != key.raw


@secrets
def test_a_secret_shows_nothing(kind):
    key = kind.from_base64(PRIVATE)
    for shown in (repr(key), str(key), f"{key}", f"{[key]}", f"{key!a}"):
        assert "hidden" in shown
        assert PRIVATE[:6] not in shown
        assert key.raw.hex()[:6] not in shown
    assert key.to_base64() == PRIVATE


@secrets
def test_a_secret_is_neither_copied_nor_pickled(kind):
    key = kind.from_base64(PRIVATE)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            attempt(key)


@every_kind
def test_keys_are_equal_by_value_within_their_kind(kind):
    one, same, other = kind.from_base64(PRIVATE), kind.from_base64(PRIVATE), kind(bytes([8] * 32))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    assert one != one.raw
    assert all(one != another.from_base64(PRIVATE) for another in {PublicKey, PrivateKey, PresharedKey} - {kind})


@secrets
def test_a_wiped_secret_is_gone(kind):
    key = kind.from_base64(PRIVATE)
    held = key._raw
    key.wipe()
    key.wipe()
    assert held == bytes(32)
    for attempt in (lambda: key.raw, key.to_base64, key.to_hex, lambda: hash(key)):
        with pytest.raises(ValueError, match="wiped"):
            attempt()
    assert key != kind.from_base64(PRIVATE)


def test_a_wiped_private_key_agrees_on_nothing_and_forgets_its_secrets():
    ours, theirs = PrivateKey.from_base64(PRIVATE), PublicKey.from_base64(PUBLIC)
    ours.remember(theirs)
    (held,) = ours._remembered.values()
    assert any(held)
    ours.wipe()
    assert held == bytes(32)
    assert ours.remembered == 0
    with pytest.raises(ValueError, match="wiped"):
        ours.agree(theirs)


def test_a_remembered_secret_is_the_same_secret():
    ours, theirs = PrivateKey.from_base64(PRIVATE), PublicKey.from_base64(PUBLIC)
    computed = ours.agree(theirs)
    ours.remember(theirs)
    ours.remember(theirs)
    assert ours.agree(theirs) == computed
    assert ours.remembered == 1
    (held,) = ours._remembered.values()
    ours.forget(theirs)
    ours.forget(theirs)
    assert held == bytes(32)
    assert ours.agree(theirs) == computed


def test_memory_for_secrets_is_bounded_and_the_oldest_goes():
    ours = PrivateKey.generate(os.urandom)
    peers = [PublicKey(os.urandom(32)) for _ in range(MAX_REMEMBERED + 2)]
    for peer in peers:
        ours.remember(peer)
    assert ours.remembered == MAX_REMEMBERED == 4096
    assert list(ours._remembered) == peers[2:]


def test_a_point_of_low_order_is_refused_and_not_remembered():
    ours = PrivateKey.from_base64(PRIVATE)
    with pytest.raises(MalformedMessage, match="low order"):
        ours.remember(PublicKey(bytes(32)))
    assert ours.remembered == 0
