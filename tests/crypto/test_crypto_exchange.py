"""Handshakes and messages, compared byte for byte with an independent implementation (`vectors/README.md`)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from crypto_vectors import DOCUMENT, EXCHANGES, Exchange
from noise.functions.hash import hkdf

from ravenvpn.crypto import tai64n
from ravenvpn.crypto.aead import Suite, cipher
from ravenvpn.crypto.cookie import CookieChecker, CookieStamper, packed_source
from ravenvpn.crypto.handshake import hmac_blake2s, initiate, receive_initiation

each_exchange = pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
each_cookie = pytest.mark.parametrize("facts", DOCUMENT["cookies"], ids=lambda facts: facts["host"])


def test_the_vectors_cover_both_suites_with_and_without_a_preshared_key():
    assert [str(exchange) for exchange in EXCHANGES] == [
        "chacha20poly1305-no-psk",
        "chacha20poly1305-psk",
        "aes256gcm-no-psk",
        "aes256gcm-psk",
    ]


@each_exchange
def test_our_initiator_writes_and_reads_the_same_bytes(exchange: Exchange):
    body, pending = initiate(
        exchange.private("initiator_private"),
        exchange.public("responder_public"),
        exchange.suite,
        exchange.raw("timestamp"),
        exchange.private("initiator_ephemeral"),
    )
    assert body.hex() == exchange.initiation_body.hex()

    keys = pending.finish(exchange.response_body, exchange.psk)
    assert keys == (exchange.raw("initiator_sends_with"), exchange.raw("responder_sends_with"))


@each_exchange
def test_our_responder_reads_and_writes_the_same_bytes(exchange: Exchange):
    received = receive_initiation(exchange.private("responder_private"), exchange.initiation_body, exchange.suite)
    assert received.static == exchange.public("initiator_public")
    assert received.timestamp == exchange.raw("timestamp")

    body, keys = received.respond(exchange.psk, exchange.private("responder_ephemeral"))
    assert body.hex() == exchange.response_body.hex()
    assert keys == (exchange.raw("responder_sends_with"), exchange.raw("initiator_sends_with"))


@each_exchange
def test_a_remembered_static_secret_changes_no_byte(exchange: Exchange):
    ours, theirs = exchange.private("initiator_private"), exchange.public("responder_public")
    bodies = [
        initiate(ours, theirs, suite, exchange.raw("timestamp"), exchange.private("initiator_ephemeral"))[0]
        for suite in (*Suite, exchange.suite)
    ]
    assert bodies[-1] == exchange.initiation_body


@each_exchange
def test_the_marker_of_the_suite_is_the_first_reserved_byte(exchange: Exchange):
    assert exchange.raw("initiation")[1] == exchange.suite.marker
    assert Suite.of_marker(exchange.raw("initiation")[1]) is exchange.suite


@each_exchange
def test_an_initiation_of_the_other_suite_does_not_authenticate(exchange: Exchange):
    """The handshake hash contains the protocol's name, so an attacker gains nothing by flipping the marker."""
    (other,) = set(Suite) - {exchange.suite}
    with pytest.raises(Exception, match="authenticate"):
        receive_initiation(exchange.private("responder_private"), exchange.initiation_body, other)


@each_exchange
@pytest.mark.parametrize("sender", ["initiator", "responder"])
def test_transport_messages_open_and_seal_to_the_same_bytes(exchange: Exchange, sender: str):
    """Each cipher has its own byte order of the nonce (Noise §12); counters of several different bytes show it."""
    seal = cipher(exchange.suite, exchange.raw(f"{sender}_sends_with"))
    for message in exchange.facts[f"by_{sender}"]:
        nonce = exchange.suite.nonce(message["counter"])
        plaintext, sealed = bytes.fromhex(message["plaintext"]), bytes.fromhex(message["message"])[16:]
        assert seal.encrypt(nonce, plaintext, None) == sealed
        assert seal.decrypt(nonce, sealed, None) == plaintext


@each_exchange
def test_mac1_of_both_messages_is_the_same(exchange: Exchange):
    for message, receiver in (("initiation", "responder_public"), ("response", "initiator_public")):
        whole = exchange.raw(message)
        assert CookieStamper(exchange.public(receiver)).stamp(whole[:-32], now=0.0) == whole
        assert CookieChecker(exchange.public(receiver), bytes).mac1_is_valid(whole)


def random_of(facts: dict[str, str]):
    """Return a random source that gives the secret and the nonce of the vector."""
    lengths = {32: bytes.fromhex(facts["secret"]), 24: bytes.fromhex(facts["nonce"])}
    return lengths.__getitem__


@each_cookie
def test_a_cookie_reply_and_the_mac2_it_leads_to_are_the_same(facts):
    exchange = EXCHANGES[0]
    source = packed_source(facts["host"], facts["port"])
    checker = CookieChecker(exchange.public("responder_public"), random_of(facts))
    stamper = CookieStamper(exchange.public("responder_public"))
    message = stamper.stamp(exchange.raw("initiation")[:116], now=0.0)

    reply = checker.reply(message, source, now=0.0)
    assert reply.hex() == facts["reply"]

    stamper.receive_reply(reply, now=0.1)
    assert stamper.stamp(message[:116], now=5.0).hex() == facts["initiation_with_mac2"]
    assert checker.mac2_is_valid(bytes.fromhex(facts["initiation_with_mac2"]), source, now=5.0)


def test_the_vectors_timestamp_is_what_we_stamp_at_that_instant():
    """2026-01-02 03:04:05.360000000 UTC, with the low 24 bits of the nanoseconds cleared."""
    assert tai64n.stamp(1_767_323_045_360_000_000) == EXCHANGES[0].raw("timestamp")


@pytest.mark.parametrize("facts", DOCUMENT["derivations"])
def test_hkdf_over_blake2s_is_the_same(facts):
    outputs = hkdf(
        bytes.fromhex(facts["chaining_key"]), bytes.fromhex(facts["input"]), len(facts["outputs"]), hmac_blake2s
    )
    assert [output.hex() for output in outputs] == facts["outputs"]


def test_ephemeral_keys_make_every_exchange_different():
    """The four exchanges share their keys, so only suite and preshared key make their session keys differ."""
    keys = [exchange.raw("initiator_sends_with") for exchange in EXCHANGES]
    assert all(one != other for one, other in pairwise(sorted(keys)))
