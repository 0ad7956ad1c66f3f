"""MACs and cookies between Alice, who initiates, and Bob, who is under load."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.cookie import CookieChecker, CookieStamper, packed_source
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.errors import MalformedMessage

BOB = PublicKey(bytes(range(32)))
HEAD = b"\x01\0\0\0\x2a\x2b\x2c\x2d" + bytes(range(108))  # all of an initiation before mac1
ALICES_ADDRESS = packed_source("203.0.113.7", 51820)


@pytest.fixture
def bob() -> CookieChecker:
    return CookieChecker(BOB, random.Random(1).randbytes)


@pytest.fixture
def alice() -> CookieStamper:
    return CookieStamper(BOB)


def test_mac1_shows_that_the_sender_knows_the_receivers_key(alice, bob):
    message = alice.stamp(HEAD, now=0.0)
    assert message[:116] == HEAD
    assert len(message) == 148
    assert bob.mac1_is_valid(message)
    assert not CookieChecker(PublicKey(bytes(32)), bytes).mac1_is_valid(message)


def test_every_flipped_bit_before_or_in_mac1_is_seen(alice, bob):
    message = alice.stamp(HEAD, now=0.0)
    for position in range(132):
        changed = bytearray(message)
        changed[position] ^= 1 << (position % 8)
        assert not bob.mac1_is_valid(bytes(changed))


def test_mac2_is_zero_without_a_cookie_and_does_not_count_as_one(alice, bob):
    message = alice.stamp(HEAD, now=0.0)
    assert message[132:] == bytes(16)
    assert not bob.mac2_is_valid(message, ALICES_ADDRESS, now=0.0)


def test_a_cookie_reply_makes_the_next_message_pass_under_load(alice, bob):
    reply = bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0)
    assert (len(reply), reply[:8]) == (64, b"\x03\0\0\0\x2a\x2b\x2c\x2d")
    alice.receive_reply(reply, now=0.1)
    message = alice.stamp(HEAD, now=5.0)
    assert bob.mac1_is_valid(message)
    assert bob.mac2_is_valid(message, ALICES_ADDRESS, now=5.0)


@pytest.mark.parametrize(
    "elsewhere", [("203.0.113.8", 51820), ("203.0.113.7", 51821), ("::ffff:203.0.113.7", 51820)], ids=str
)
def test_a_cookie_is_good_from_one_address_and_port_only(alice, bob, elsewhere):
    alice.receive_reply(bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0), now=0.1)
    message = alice.stamp(HEAD, now=5.0)
    assert bob.mac2_is_valid(message, ALICES_ADDRESS, now=5.0)
    assert not bob.mac2_is_valid(message, packed_source(*elsewhere), now=5.0)


def test_every_flipped_bit_of_a_message_with_mac2_is_seen(alice, bob):
    alice.receive_reply(bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0), now=0.1)
    message = alice.stamp(HEAD, now=5.0)
    for position in range(148):
        changed = bytearray(message)
        changed[position] ^= 1 << (position % 8)
        assert not bob.mac2_is_valid(bytes(changed), ALICES_ADDRESS, now=5.0)


def test_alice_stops_using_a_cookie_five_seconds_before_its_two_minutes(alice, bob):
    alice.receive_reply(bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0), now=0.0)
    assert alice.stamp(HEAD, now=114.9)[132:] != bytes(16)
    assert alice.stamp(HEAD, now=115.0)[132:] == bytes(16)


def test_a_cookie_that_was_given_up_does_not_come_back(alice, bob):
    alice.receive_reply(bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0), now=0.0)
    alice.stamp(HEAD, now=200.0)
    assert alice.stamp(HEAD, now=1.0)[132:] == bytes(16)


def test_bob_forgets_his_cookies_after_two_minutes(alice, bob):
    alice.receive_reply(bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=10.0), now=10.1)
    message = alice.stamp(HEAD, now=100.0)
    assert bob.mac2_is_valid(message, ALICES_ADDRESS, now=129.9)
    assert not bob.mac2_is_valid(message, ALICES_ADDRESS, now=130.0)
    assert not bob.mac2_is_valid(message, ALICES_ADDRESS, now=129.9)


def test_the_times_can_be_shortened():
    bob = CookieChecker(BOB, random.Random(1).randbytes, refresh_time=2.0)
    alice = CookieStamper(BOB, refresh_time=2.0, latency=0.5)
    alice.receive_reply(bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0), now=0.0)
    message = alice.stamp(HEAD, now=1.4)
    assert bob.mac2_is_valid(message, ALICES_ADDRESS, now=1.9)
    assert alice.stamp(HEAD, now=1.5)[132:] == bytes(16)
    assert not bob.mac2_is_valid(message, ALICES_ADDRESS, now=2.0)


def test_every_flipped_bit_of_a_cookie_reply_is_refused_and_changes_nothing(alice, bob):
    reply = bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0)
    for position in [*range(4), *range(8, 64)]:
        changed = bytearray(reply)
        changed[position] ^= 1 << (position % 8)
        with pytest.raises(MalformedMessage):
            alice.receive_reply(bytes(changed), now=0.1)
    alice.receive_reply(reply, now=0.1)
    assert bob.mac2_is_valid(alice.stamp(HEAD, now=1.0), ALICES_ADDRESS, now=1.0)


@given(reply=st.binary(max_size=80) | st.binary(min_size=60, max_size=60).map(lambda tail: b"\x03\0\0\0" + tail))
def test_random_bytes_raise_nothing_but_malformed_message(reply: bytes):
    alice = CookieStamper(BOB)
    alice.stamp(HEAD, now=0.0)
    with pytest.raises(MalformedMessage):
        alice.receive_reply(reply, now=0.0)


def test_a_reply_to_nothing_is_refused(alice, bob):
    reply = bob.reply(CookieStamper(BOB).stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0)
    with pytest.raises(MalformedMessage, match="nothing"):
        alice.receive_reply(reply, now=0.1)


def test_a_reply_to_an_older_message_is_refused(alice, bob):
    """A reply is bound to the mac1 of the last message, the only one that is stored."""
    late = bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0)
    alice.stamp(HEAD[:-1] + b"!", now=5.0)
    with pytest.raises(MalformedMessage, match="authenticate"):
        alice.receive_reply(late, now=5.1)


def test_a_replayed_reply_is_refused(alice, bob):
    reply = bob.reply(alice.stamp(HEAD, now=0.0), ALICES_ADDRESS, now=0.0)
    alice.receive_reply(reply, now=0.1)
    with pytest.raises(MalformedMessage):
        alice.receive_reply(reply, now=100.0)


def test_no_two_replies_use_one_nonce(alice, bob):
    message = alice.stamp(HEAD, now=0.0)
    nonces = {bob.reply(message, ALICES_ADDRESS, now=0.0)[8:32] for _ in range(10)}
    assert len(nonces) == 10


def test_a_source_is_address_and_port_in_network_byte_order():
    assert packed_source("203.0.113.7", 0x1234).hex() == "cb007107" + "1234"
    assert packed_source("2001:db8::7", 1).hex() == "20010db8000000000000000000000007" + "0001"
    assert packed_source("fe80::1%eth0", 1) == packed_source("fe80::1", 1)
