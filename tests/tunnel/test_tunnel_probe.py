"""The probe: its frame byte by byte, its packet, and the measurements of a prober."""

from __future__ import annotations

import itertools
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.dataplane.contract import PeerId
from ravenvpn.errors import MalformedMessage
from ravenvpn.tunnel.probing.frame import (
    MAX_VERDICTS,
    Forwarding,
    ForwardingVerdict,
    Probe,
    ProbeKind,
    ProbePacket,
    unwrap,
    wrap,
)
from ravenvpn.tunnel.probing.prober import REPLIES_PER_SECOND, PathFacts, ProbeDrop, Prober
from ravenvpn.tunnel.probing.schedule import ProbeSchedule

ALICE, BOB, CAROL = (IPv6Address(f"fd00:1:2:1::{n}") for n in (0xA, 0xB, 0xC))
REQUEST = Probe(ProbeKind.REQUEST, 7, 0xCAFEBABE, 1_000_000_001, epoch=3, role=2)

# Written by hand from docs/protocol.md.
REQUEST_BYTES = bytes.fromhex(
    "01 01 0028"  # version, request, length 40
    "00000007 cafebabe"  # sequence, session
    "000000003b9aca01"  # sent
    "0000000000000000"  # held
    "0000000000000003 00000002"  # epoch, role
)
VERDICT_BYTES = bytes.fromhex("0001 0009 0123456789abcdef 02")
SIZE_BYTES = bytes.fromhex("0002 0004 00000578")


def test_a_request_is_forty_bytes() -> None:
    assert REQUEST.pack() == REQUEST_BYTES
    assert Probe.parse(REQUEST_BYTES) == REQUEST


def test_extensions_follow_the_header_and_are_counted_in_its_length() -> None:
    frame = Probe(
        ProbeKind.REPLY,
        7,
        0xCAFEBABE,
        1_000_000_001,
        epoch=3,
        role=2,
        verdicts=(ForwardingVerdict(0x0123456789ABCDEF, Forwarding.DOES_NOT),),
        size=1400,
    )
    expected = b"\x01\x02" + (61).to_bytes(2, "big") + REQUEST_BYTES[4:] + VERDICT_BYTES + SIZE_BYTES
    assert frame.pack() == expected
    assert Probe.parse(expected) == frame


def test_padding_follows_the_frame() -> None:
    padded = REQUEST.pack(pad_to=100)
    assert padded == REQUEST_BYTES + bytes(60)
    assert Probe.parse(padded) == REQUEST


def test_an_extension_of_a_later_version_is_skipped() -> None:
    later = b"\x01\x01" + (40 + 6 + 13).to_bytes(2, "big") + REQUEST_BYTES[4:] + b"\x7f\x00\x00\x02ab" + VERDICT_BYTES
    assert Probe.parse(later).verdicts == (ForwardingVerdict(0x0123456789ABCDEF, Forwarding.DOES_NOT),)


def test_a_verdict_of_a_later_version_is_unknown() -> None:
    later = b"\x01\x01" + (53).to_bytes(2, "big") + REQUEST_BYTES[4:] + VERDICT_BYTES[:-1] + b"\x63"
    assert Probe.parse(later).verdicts == (ForwardingVerdict(0x0123456789ABCDEF, Forwarding.UNKNOWN),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        REQUEST_BYTES[:-1],
        b"\x02" + REQUEST_BYTES[1:],  # unknown version
        b"\x01\x03" + REQUEST_BYTES[2:],  # unknown kind
        b"\x01\x01\x00\x27" + REQUEST_BYTES[4:],  # shorter than its header
        b"\x01\x01\x00\x29" + REQUEST_BYTES[4:],  # longer than the received data
        b"\x01\x01\x00\x2a" + REQUEST_BYTES[4:] + b"\0\1",  # half an extension
        b"\x01\x01\x00\x2d" + REQUEST_BYTES[4:] + b"\0\1\0\x09\0",  # an extension that exceeds the frame
        b"\x01\x01\x00\x2d" + REQUEST_BYTES[4:] + b"\0\1\0\1\0",  # an incomplete verdict
        b"\x01\x01\x00\x2d" + REQUEST_BYTES[4:] + b"\0\2\0\1\0",  # a size of one byte
        b"\x01\x01\x04\xd1" + REQUEST_BYTES[4:] + bytes(2000),  # larger than any frame
    ],
)
def test_an_inconsistent_frame_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Probe.parse(data)


def test_the_most_verdicts_fit_the_smallest_mtu() -> None:
    verdicts = tuple(ForwardingVerdict(n, Forwarding.FORWARDS) for n in range(MAX_VERDICTS))
    packet = wrap(ProbePacket(ALICE, BOB, Probe(ProbeKind.REQUEST, 1, 1, 1, verdicts=verdicts).pack()))
    assert len(packet) <= 1280
    assert Probe.parse(unwrap(packet).payload).verdicts == verdicts
    with pytest.raises(ValueError, match="128 verdicts"):
        Probe(ProbeKind.REQUEST, 1, 1, 1, verdicts=(*verdicts, ForwardingVerdict(0, Forwarding.UNKNOWN))).pack()


def test_the_packet_is_ipv6_and_udp_with_the_right_checksum() -> None:
    """The expected checksum was computed by hand."""
    packet = wrap(ProbePacket(IPv6Address("fd00::1"), IPv6Address("fd00::2"), b"\x01\x02\x03"))
    assert packet[:8] == bytes.fromhex("60000000 000b 11 40")
    assert packet[8:24] == bytes.fromhex("fd00" + "00" * 13 + "01")
    assert packet[40:46] == bytes.fromhex("2825 2825 000b")
    # fd00+0001+fd00+0002 + 000b+0011 + 2825+2825+000b + 0102+0300 = 2 4e76; 4e76 + 2 = 4e78; ~4e78 = b187
    assert packet[46:] == bytes.fromhex("b187 010203")
    assert unwrap(packet) == ProbePacket(IPv6Address("fd00::1"), IPv6Address("fd00::2"), b"\x01\x02\x03")


def test_a_checksum_that_comes_out_as_zero_is_sent_as_ones() -> None:
    """RFC 8200 §8.1: a UDP checksum of zero means "none", which IPv6 does not allow."""
    for word in range(0x10000):
        packet = wrap(ProbePacket(ALICE, BOB, word.to_bytes(2, "big")))
        assert packet[46:48] != b"\0\0"
        if packet[46:48] == b"\xff\xff":
            assert unwrap(packet).payload == word.to_bytes(2, "big")
            break
    else:
        pytest.fail("no payload of two bytes gives a zero sum")


@given(st.data())
def test_a_packet_with_any_bit_flipped_is_malformed_or_has_other_addresses(data: st.DataObject) -> None:
    packet = wrap(ProbePacket(ALICE, BOB, REQUEST_BYTES))
    bit = data.draw(st.integers(0, len(packet) * 8 - 1))
    flipped = bytearray(packet)
    flipped[bit // 8] ^= 1 << bit % 8
    if bit // 8 in (0, 1, 2, 3, 7) and flipped[0] >> 4 == 6:
        return  # traffic class, flow label and hop limit are not covered by the checksum and not used
    with pytest.raises(MalformedMessage):
        unwrap(bytes(flipped))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_probe_or_malformed(data: bytes) -> None:
    for parse in (Probe.parse, unwrap):
        try:
            parse(data)
        except MalformedMessage:
            continue


@given(
    st.builds(
        Probe,
        st.sampled_from(ProbeKind),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.lists(
            st.builds(ForwardingVerdict, st.integers(0, 2**64 - 1), st.sampled_from(Forwarding)),
            max_size=MAX_VERDICTS,
        ).map(tuple),
        st.integers(0, 65575),
    ),
    st.integers(0, 2000),
)
def test_what_is_packed_is_parsed(probe: Probe, pad_to: int) -> None:
    assert Probe.parse(probe.pack(pad_to)) == probe


# The prober.


def pair(**options: object) -> tuple[Prober, Prober]:
    settings = {"session": 1, "start": 100.0, "interval": 1.0, **options}
    return Prober(ALICE, BOB, **settings), Prober(BOB, ALICE, **{**settings, "session": 2})  # type: ignore[arg-type]


def exchange(asking: Prober, answering: Prober, now: float, rtt: float) -> None:
    reply = answering.receive(asking.request(now), now + rtt / 2)
    assert reply is not None
    assert asking.receive(reply, now + rtt) is None


def test_a_round_trip_is_measured_and_smoothed() -> None:
    alice, bob = pair()
    assert alice.facts.rtt is None
    exchange(alice, bob, 100.0, 0.25)
    assert (alice.facts.rtt, alice.facts.rtt_variation) == (0.25, 0.125)
    exchange(alice, bob, 101.0, 0.5)
    # RFC 6298: 7/8 · 0.25 + 1/8 · 0.5, and 3/4 · 0.125 + 1/4 · |0.25 − 0.5|
    assert (alice.facts.rtt, alice.facts.rtt_variation) == (0.28125, 0.15625)
    assert alice.facts.answered_at == 101.5
    assert bob.facts.rtt is None


def test_the_time_a_reply_was_held_does_not_count() -> None:
    alice, _ = pair()
    request = Probe.parse(unwrap(alice.request(100.0)).payload)
    held = Probe(ProbeKind.REPLY, request.sequence, request.session, request.sent_ns, held_ns=750_000_000)
    alice.receive(wrap(ProbePacket(BOB, ALICE, held.pack())), 101.0)
    assert alice.facts.rtt == 0.25


def test_an_excessive_held_time_gives_no_negative_round_trip() -> None:
    alice, _ = pair()
    request = Probe.parse(unwrap(alice.request(100.0)).payload)
    held = Probe(ProbeKind.REPLY, request.sequence, request.session, request.sent_ns, held_ns=2**64 - 1)
    alice.receive(wrap(ProbePacket(BOB, ALICE, held.pack())), 101.0)
    assert alice.facts.rtt == 0.0


def test_both_ends_learn_role_epoch_and_verdicts_and_their_withdrawal() -> None:
    alice, bob = pair()
    missing = (ForwardingVerdict(5, Forwarding.DOES_NOT),)
    alice.announce(1, 10)
    bob.announce(2, 2**63, missing)
    exchange(alice, bob, 100.0, 0.1)
    assert (alice.facts.role, alice.facts.epoch, alice.facts.verdicts) == (2, 2**63, missing)
    assert (bob.facts.role, bob.facts.epoch, bob.facts.verdicts) == (1, 10, ())
    bob.announce(2, 2**63)
    exchange(alice, bob, 101.0, 0.1)
    assert alice.facts.verdicts == ()


def test_loss_is_the_share_of_lost_requests() -> None:
    alice, bob = pair()
    for second in range(4):
        exchange(alice, bob, 100.0 + second, 0.1)
    assert alice.facts.loss == 0.0
    assert alice.facts.answered_in_row == 4
    alice.request(104.0)
    assert (alice.facts.unanswered, alice.facts.asked_since) == (1, 104.0)
    alice.request(105.0)
    assert (alice.facts.unanswered, alice.facts.asked_since) == (2, 104.0)
    assert alice.facts.loss == 0.0  # the probe may still be answered
    alice.expire(107.0)
    assert alice.facts.loss == 1 / 5
    assert alice.facts.answered_in_row == 0
    exchange(alice, bob, 107.5, 0.1)
    assert (alice.facts.unanswered, alice.facts.asked_since, alice.facts.answered_in_row) == (0, None, 1)


def test_old_losses_leave_the_window() -> None:
    alice, bob = pair()
    for second in range(10):
        alice.request(100.0 + second)
    for second in range(32):
        exchange(alice, bob, 120.0 + second, 0.1)
    assert alice.facts.loss == 0.0


@pytest.mark.parametrize("change", ["sequence", "session", "sent_ns"])
def test_a_reply_to_no_request_of_ours_is_stale(change: str) -> None:
    alice, bob = pair()
    reply = Probe.parse(unwrap(bob.receive(alice.request(100.0), 100.1) or b"").payload)
    values = {name: getattr(reply, name) for name in ("kind", "sequence", "session", "sent_ns")}
    values[change] += 1
    alice.receive(wrap(ProbePacket(BOB, ALICE, Probe(**values).pack())), 100.2)
    assert alice.facts.rtt is None
    assert alice.drops[ProbeDrop.STALE] == 1


def test_a_reply_counts_once() -> None:
    alice, bob = pair()
    reply = bob.receive(alice.request(100.0), 100.1)
    assert reply is not None
    alice.receive(reply, 100.2)
    alice.receive(reply, 100.9)
    assert alice.facts.rtt == pytest.approx(0.2)
    assert alice.drops[ProbeDrop.STALE] == 1


def test_a_packet_with_the_address_of_another_peer_is_dropped() -> None:
    """A packet from Bob's session with Carol's inner address does not count as Carol's."""
    alice, _ = pair()
    forged = wrap(ProbePacket(CAROL, ALICE, REQUEST_BYTES))
    assert alice.receive(forged, 100.0) is None
    assert alice.drops[ProbeDrop.WRONG_ADDRESS] == 1
    assert alice.facts == PathFacts()


@given(st.binary(max_size=300))
def test_a_prober_never_raises_for_what_a_packet_holds(data: bytes) -> None:
    alice, _ = pair()
    assert alice.receive(data, 100.0) is None
    assert alice.drops[ProbeDrop.MALFORMED] == 1


def test_a_peer_gets_at_most_fifty_replies_a_second() -> None:
    alice, bob = pair()
    answers = [bob.receive(alice.request(100.0), 100.5) for _ in range(80)]
    assert sum(answer is not None for answer in answers) == REPLIES_PER_SECOND == 50
    assert bob.drops[ProbeDrop.RATE_LIMITED] == 30
    assert bob.receive(alice.request(101.0), 101.0) is not None


def test_a_reply_without_verdicts_is_never_larger_than_its_request() -> None:
    alice, bob = pair()
    request = alice.request(100.0, size=1400)
    reply = bob.receive(request, 100.1)
    assert (len(request), len(reply or b"")) == (1400, 48 + 40 + 8)


def test_the_answered_and_the_lost_sizes_are_recorded() -> None:
    alice, bob = pair()
    bob.announce(1, 1, [ForwardingVerdict(1, Forwarding.DOES_NOT)])
    alice.receive(bob.request(99.0), 99.0)
    for size in (1400, 1300):
        reply = bob.receive(alice.request(100.0, size=size), 100.1)
        alice.receive(reply or b"", 100.2)
    alice.request(101.0, size=1480)
    alice.request(101.0, size=1440)
    alice.expire(104.0)
    assert (alice.facts.largest, alice.facts.too_large) == (1400, 1440)
    assert alice.facts.loss is None  # size probes do not count as loss
    assert bob.facts.verdicts == alice.facts.verdicts[:0]
    alice.begin_size_search()
    assert (alice.facts.largest, alice.facts.too_large) == (0, 0)


@pytest.mark.parametrize("size", [87, 65576])
def test_a_size_no_probe_can_have_is_refused(size: int) -> None:
    alice, _ = pair()
    with pytest.raises(ValueError, match=str(size)):
        alice.request(100.0, size=size)


# All probers.


def test_many_probers_share_one_deadline_and_are_spread_over_the_interval() -> None:
    counter = itertools.count()
    probers = ProbeSchedule(ALICE, lambda n: ((next(counter) * 7919) % 65536).to_bytes(4, "big")[-n:])
    for number in range(1, 101):
        probers.probe(PeerId(number), IPv6Address(int(BOB) + number), 5.0, 100.0)
    asked: list[PeerId] = []
    moments = set()
    while (due := probers.next_due()) is not None and due < 105.0:
        packets = probers.pop_requests(due)
        moments.add(due)
        asked += [peer for peer, _ in packets]
    assert sorted(set(asked)) == list(range(1, 101))
    assert len(moments) >= 100


def test_a_peer_that_only_answers_has_no_deadline() -> None:
    probers = ProbeSchedule(ALICE, bytes)
    probers.probe(PeerId(1), BOB, None, 100.0)
    assert probers.next_due() is None
    probers.probe(PeerId(1), BOB, 5.0, 100.0)
    assert probers.next_due() == 100.0
    ((peer, packet),) = probers.pop_requests(100.0)
    assert peer == 1
    assert unwrap(packet).destination == BOB
    assert probers.next_due() == 103.0  # the time at which the answer counts as lost
    assert probers.pop_requests(103.0) == []
    assert probers.facts(PeerId(1)).loss == 1.0
    assert probers.next_due() == 105.0


def test_an_unknown_peer_gets_no_reply() -> None:
    probers = ProbeSchedule(ALICE, bytes)
    assert probers.receive(PeerId(9), wrap(ProbePacket(BOB, ALICE, REQUEST_BYTES)), 100.0) is None
    probers.probe(PeerId(9), BOB, None, 100.0)
    assert probers.receive(PeerId(9), wrap(ProbePacket(BOB, ALICE, REQUEST_BYTES)), 100.0) is not None
    probers.remove(PeerId(9))
    assert probers.receive(PeerId(9), wrap(ProbePacket(BOB, ALICE, REQUEST_BYTES)), 100.0) is None


@pytest.mark.parametrize(
    ("interval", "family", "expected"),
    [(1.0, 4, 26_956_800), (5.0, 4, 5_391_360), (25.0, 4, 1_078_272), (5.0, 6, 6_082_560)],
)
def test_what_probing_costs_a_day(interval: float, family: int, expected: int) -> None:
    """96 bytes (88 with padding), 32 of WireGuard, and 28 or 48 of UDP and IP, for request and reply."""
    outer = 96 + 32 + {4: 28, 6: 48}[family]
    assert len(wrap(ProbePacket(ALICE, BOB, REQUEST_BYTES))) == 88
    assert round(86400 / interval * 2 * outer) == expected
