"""The ciphers and hashes, compared with the test vectors of their specifications and of Wycheproof."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from crypto_vectors import wycheproof
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.aead import InvalidTag, Suite, cipher, cpu_accelerates_aes, open_xchacha, seal_xchacha
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.errors import ConfigError, MalformedMessage

both_suites = pytest.mark.parametrize("suite", Suite)

# RFC 8439 §2.8.2, also used by the XChaCha draft.
SUNSCREEN = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."  # noqa: E501


def test_rfc_8439_chacha20_poly1305():
    """Test vector of §2.8.2."""
    key = bytes(range(0x80, 0xA0))
    nonce = bytes.fromhex("070000004041424344454647")
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = cipher(Suite.CHACHA20POLY1305, key).encrypt(nonce, SUNSCREEN, aad)
    assert sealed.hex() == (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116"
        "1ae10b594f09e26a7e902ecbd0600691"
    )


def test_draft_xchacha20_poly1305():
    """Test vector of draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    key = bytes(range(0x80, 0xA0))
    nonce = bytes(range(0x40, 0x58))
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = seal_xchacha(key, nonce, SUNSCREEN, aad)
    assert sealed.hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52e"
        "c0875924c1c7987947deafd8780acf49"
    )
    assert open_xchacha(key, nonce, sealed, aad) == SUNSCREEN


def test_rfc_7693_blake2s():
    """Test vector of appendix B."""
    assert hashlib.blake2s(b"abc").hexdigest() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"


@both_suites
def test_wycheproof_ciphers(suite: Suite):
    for facts in of_our_form(suite):
        test, ours = facts.test, cipher(suite, facts.key)
        if test["result"] == "valid":
            assert ours.decrypt(facts.nonce, facts.sealed, facts.aad) == facts.plaintext, test
            assert ours.encrypt(facts.nonce, facts.plaintext, facts.aad) == facts.sealed, test
        else:
            with pytest.raises((InvalidTag, ValueError)):
                ours.decrypt(facts.nonce, facts.sealed, facts.aad)


@both_suites
def test_wycheproof_ciphers_into_buffers(suite: Suite):
    """Sealing and opening into buffers, as the data plane does."""
    for facts in of_our_form(suite):
        test, ours = facts.test, cipher(suite, facts.key)
        room, plain = bytearray(len(facts.sealed)), bytearray(len(facts.plaintext))
        if test["result"] == "valid":
            assert ours.encrypt_into(facts.nonce, facts.plaintext, facts.aad, room) == len(room)
            assert room == facts.sealed
            assert ours.decrypt_into(facts.nonce, facts.sealed, facts.aad, plain) == len(plain)
            assert plain == facts.plaintext
        else:
            with pytest.raises((InvalidTag, ValueError)):
                ours.decrypt_into(facts.nonce, facts.sealed, facts.aad, plain)


def test_wycheproof_xchacha20_poly1305():
    for test in wycheproof("xchacha20poly1305"):
        facts = Sealed(test)
        if test["result"] == "valid":
            assert open_xchacha(facts.key, facts.nonce, facts.sealed, facts.aad) == facts.plaintext
            assert seal_xchacha(facts.key, facts.nonce, facts.plaintext, facts.aad) == facts.sealed
        else:
            with pytest.raises((InvalidTag, ValueError)):
                open_xchacha(facts.key, facts.nonce, facts.sealed, facts.aad)


class Sealed:
    def __init__(self, test: dict[str, Any]) -> None:
        self.test = test
        self.key, self.nonce, self.aad, self.plaintext, ciphertext, self.tag = (
            bytes.fromhex(test[name]) for name in ("key", "nonce", "aad", "plaintext", "ciphertext", "tag")
        )
        self.sealed = ciphertext + self.tag


def of_our_form(suite: Suite) -> list[Sealed]:
    """Return the vectors with nonces of 12 bytes, the only length that `Suite.nonce` makes."""
    return [facts for facts in map(Sealed, wycheproof(suite.value)) if len(facts.nonce) == 12]


def test_most_of_wycheproof_is_of_our_form():
    assert {suite.value: len(of_our_form(suite)) for suite in Suite} == {"chacha20poly1305": 316, "aes256gcm": 66}


def test_wycheproof_x25519():
    """Implementations may refuse vectors marked "acceptable". `agree` computes them unless the result is all zero."""
    refused = 0
    for test in wycheproof("x25519"):
        ours, theirs = PrivateKey.from_hex(test["private"]), PublicKey.from_hex(test["public"])
        if test["shared"] == "00" * 32:
            refused += 1
            with pytest.raises(MalformedMessage):
                ours.agree(theirs)
        else:
            assert ours.agree(theirs).hex() == test["shared"], test
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [("chacha20poly1305", 256, 69), ("aes256gcm", 76, 29), ("xchacha20poly1305", 246, 69)],
)
def test_all_of_wycheproof_is_there(name: str, valid: int, invalid: int):
    results = [test["result"] for test in wycheproof(name)]
    assert (results.count("valid"), results.count("invalid"), len(results)) == (valid, invalid, valid + invalid)


def test_all_of_wycheproof_for_x25519_is_there():
    assert len(wycheproof("x25519")) == 518


def test_facts_of_the_suites():
    """Sources: whitepaper §6.1 for WireGuard's suite, docs/architecture/data-plane.md for AES."""
    chacha, aes = Suite.CHACHA20POLY1305, Suite.AES256GCM
    assert (chacha.value, aes.value) == ("chacha20poly1305", "aes256gcm")
    assert chacha.noise_name == b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
    assert aes.noise_name == b"Noise_IKpsk2_25519_AESGCM_BLAKE2s"
    assert (chacha.marker, aes.marker) == (0, 1)
    assert (chacha.rekey_after_messages, aes.rekey_after_messages) == (1152921504606846976, 268435456)
    assert (chacha.reject_after_messages, aes.reject_after_messages) == (18446744073709543423, 536870912)
    assert Suite("aes256gcm") is aes
    assert [Suite.of_marker(marker) for marker in (0, 1, 2, 255)] == [chacha, aes, None, None]


def test_nonces_of_the_suites():
    assert Suite.CHACHA20POLY1305.nonce(0x0102030405060708).hex() == "000000000807060504030201"
    assert Suite.AES256GCM.nonce(0x0102030405060708).hex() == "000000000102030405060708"
    assert Suite.CHACHA20POLY1305.nonce(2**64 - 1).hex() == "00000000" + "ff" * 8
    with pytest.raises(OverflowError):
        Suite.AES256GCM.nonce(2**64)


@both_suites
@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_key_of_another_length_is_refused(suite: Suite, length: int):
    """AES-GCM itself accepts 16 and 24 bytes as keys of AES-128 and AES-192."""
    with pytest.raises(ValueError, match="32 bytes"):
        cipher(suite, bytes(length))


@given(
    suite=st.sampled_from(Suite),
    key=st.binary(min_size=32, max_size=32),
    counter=st.integers(0, 2**64 - 1),
    plaintext=st.binary(max_size=300),
    data=st.data(),
)
def test_what_is_sealed_opens_and_nothing_else_does(suite, key, counter, plaintext, data):
    seal, nonce = cipher(suite, key), suite.nonce(counter)
    sealed = bytearray(len(plaintext) + 16)
    seal.encrypt_into(nonce, plaintext, None, sealed)
    opened = bytearray(len(plaintext))
    assert seal.decrypt_into(nonce, sealed, None, opened) == len(plaintext)
    assert opened == plaintext

    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidTag):
        seal.decrypt_into(nonce, sealed, None, opened)


X86 = "processor\t: {}\nmodel name\t: some CPU\nflags\t\t: fpu vme {} avx2\nbugs\t\t: spectre_v1 aes\n\n"
ARM = "processor\t: {}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {} crc32\nCPU implementer\t: 0x41\n\n"


@pytest.mark.parametrize(
    ("cpuinfo", "accelerated"),
    [
        (X86.format(0, "aes pclmulqdq") * 2, True),
        (X86.format(0, "aes"), False),
        (X86.format(0, "pclmulqdq"), False),
        (X86.format(0, "vaes vpclmulqdq"), False),
        (X86.format(0, "aes pclmulqdq") + X86.format(1, ""), False),
        (ARM.format(0, "aes pmull sha2"), True),
        (ARM.format(0, "sha2"), False),
        ("processor: 0\nisa: rv64imafdc\n", False),
        ("", False),
    ],
)
def test_aes_is_accelerated_only_where_every_cpu_says_so(cpuinfo: str, accelerated: bool):
    assert cpu_accelerates_aes(cpuinfo) is accelerated


def test_a_private_key_of_zeros_is_refused():
    with pytest.raises(ConfigError, match="no key"):
        PrivateKey(bytes(32))
