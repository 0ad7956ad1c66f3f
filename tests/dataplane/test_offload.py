"""Superpackets: splitting, joining, and that splitting reverses joining."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from dataplane.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    SYN,
    URG,
    VirtioHeader,
    ip,
    is_valid,
    superpacket,
    tcp,
    udp,
)
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.dataplane.coalesce import Coalescer
from ravenvpn.dataplane.segmentation import count_packets, is_ip, split

V4 = ("10.1.0.1", "10.2.0.1")
V6 = ("fd01::1", "fd02::1")


def cut(frame: bytes) -> list[bytes] | None:
    """Return the result of `split`, copied while the frame's buffer is valid."""
    buffer = bytearray(frame) + bytes(16)
    view = memoryview(buffer)
    assert is_ip(buffer, len(frame))
    at_most = count_packets(buffer, len(frame))
    packets = split(buffer, view, len(frame))
    if packets is None:
        return None
    found = [bytes(view[start : start + length]) for start, length in packets]
    assert len(found) <= at_most
    return found


def coalesced(packets: list[bytes], *, tcp: bool = True, udp: bool = True) -> Coalescer:
    buffer = bytearray(b"".join(packets))
    coalescer = Coalescer(buffer, memoryview(buffer), tcp=tcp, udp=udp)
    at = 0
    for packet in packets:
        coalescer.extend(at, at + len(packet), None) or coalescer.add(at, len(packet), None)
        at += len(packet)
    return coalescer


def join(packets: list[bytes], *, tcp: bool = True, udp: bool = True) -> list[bytes]:
    """Return the frames that a batch of packets is written as."""
    coalescer = coalesced(packets, tcp=tcp, udp=udp)
    return [b"".join(coalescer.frame(item)) for item in coalescer.items]


def payload(size: int, seed: int = 1) -> bytes:
    return bytes((seed * 7 + i * 31) & 0xFF for i in range(size))


class TestSplit:
    """Compare the result of splitting with packets that are built one by one."""

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    @pytest.mark.parametrize("size", [1400, 1401, 2800, 4201, 60_000], ids=str)
    @pytest.mark.parametrize("options", [b"", bytes.fromhex("0101080a0000000100000002")], ids=["bare", "timestamps"])
    def test_tcp(self, addresses, size, options):
        """Sequence numbers, IPv4 IDs, lengths and checksums advance. A remainder makes a shorter last packet."""
        data = payload(size)
        fields = {"tcp_options": options, "ack": 77, "window": 321, "tos": 2}
        whole = tcp(*addresses, data, sequence=0xFFFF_F000, identification=0xFFFE, **fields)
        expected = [
            tcp(
                *addresses,
                data[at : at + 1400],
                sequence=(0xFFFF_F000 + at) & 0xFFFF_FFFF,
                identification=(0xFFFE + i) & 0xFFFF,
                **fields,
            )
            for i, at in enumerate(range(0, size, 1400))
        ]
        assert cut(superpacket(whole, 1400)) == expected

    def test_fin_and_psh_only_on_the_last_cwr_only_on_the_first(self):
        whole = tcp(*V4, payload(300), flags=ACK | PSH | FIN | CWR | ECE)
        flags = [packet[33] for packet in cut(superpacket(whole, 100))]
        assert flags == [ACK | CWR | ECE, ACK | ECE, ACK | PSH | FIN | ECE]

    def test_a_superpacket_of_one_keeps_its_flags(self):
        whole = tcp(*V6, payload(100), flags=ACK | PSH | FIN | CWR)
        assert cut(superpacket(whole, 100)) == [whole]

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    def test_udp(self, addresses):
        data = payload(1000)
        whole = udp(*addresses, data, identification=5)
        expected = [
            udp(*addresses, data[at : at + 300], identification=5 + i) for i, at in enumerate(range(0, 1000, 300))
        ]
        assert cut(superpacket(whole, 300)) == expected

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    def test_a_udp_checksum_of_zero_is_sent_as_all_ones(self, addresses):
        """RFC 768; RFC 8200 §8.1."""
        # One word of payload is chosen so that the packet's sum is 0xFFFF and its complement zero.
        seed = udp(*addresses, bytes(2))
        missing = struct.unpack_from("!H", seed, (20 if addresses is V4 else 40) + 6)[0]
        chosen = struct.pack("!H", missing)
        (packet,) = cut(superpacket(udp(*addresses, chosen), 2))
        assert packet[-4:] == b"\xff\xff" + chosen

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    def test_a_tcp_checksum_of_zero_stays_zero(self, addresses):
        transport = 20 if addresses is V4 else 40
        missing = tcp(*addresses, bytes(2))[transport + 16 : transport + 18]
        whole = tcp(*addresses, missing)
        assert whole[transport + 16 : transport + 18] == b"\0\0"
        assert cut(superpacket(whole, 2)) == [whole]

    def test_the_ecn_bit_of_the_type_changes_nothing(self):
        whole = tcp(*V4, payload(300))
        assert cut(superpacket(whole, 100, gso_type=0x81)) == cut(superpacket(whole, 100))

    def test_ipv4_options_are_copied(self):
        whole = tcp(*V4, payload(300), options=b"\x94\x04\0\0")
        packets = cut(superpacket(whole, 100))
        assert [len(packet) for packet in packets] == [144, 144, 144]
        assert all(is_valid(packet) and packet[20:24] == b"\x94\x04\0\0" for packet in packets)

    def test_ipv6_extension_headers_are_copied(self):
        inner = tcp(*V6, payload(300))
        extension = bytes([6, 0, 1, 4, 0, 0, 0, 0])  # destination options, then TCP
        whole = ip(*V6, 60, extension + inner[40:])
        frame = bytearray(superpacket(inner, 100, csum_start=48)[:10] + whole)
        frame[10 + 48 + 16 : 10 + 48 + 18] = superpacket(inner, 100)[10 + 40 + 16 : 10 + 40 + 18]
        packets = cut(bytes(frame))
        # Without the extension header these are valid TCP packets of 100 bytes each.
        bare = [ip(*V6, 6, packet[48:]) for packet in packets]
        assert [packet[40:48] for packet in packets] == [extension] * 3
        assert all(is_valid(packet) for packet in bare)
        assert b"".join(packet[60:] for packet in bare) == payload(300)

    @pytest.mark.parametrize(
        "packet",
        [tcp(*V4, b"odd"), tcp(*V6, b"even"), udp(*V4, b"odd"), udp(*V6, b"x")],
        ids=["tcp4", "tcp6", "udp4", "udp6"],
    )
    def test_a_partial_checksum_is_completed(self, packet):
        """GSO_NONE with NEEDS_CSUM: the field contains the pseudo-header's sum."""
        frame = superpacket(packet, 0, gso_type=0)
        assert frame[10:] != packet
        assert cut(frame) == [packet]

    def test_a_plain_packet_is_left_alone(self):
        packet = tcp(*V4, b"x")[:-1] + b"y"  # its checksum is wrong; the receiver verifies it
        assert cut(bytes(10) + packet) == [packet]

    @pytest.mark.parametrize(
        ("what", "frame"),
        [
            ("no segment size", superpacket(tcp(*V4, payload(300)), 0, gso_type=1)),
            ("UDP fragmentation offload", superpacket(udp(*V4, payload(300)), 100, gso_type=3)),
            ("a type nobody knows", superpacket(tcp(*V4, payload(300)), 100, gso_type=6)),
            ("no partial checksum", superpacket(tcp(*V4, payload(300)), 100, flags=0)),
            ("IPv6 said to be IPv4", superpacket(tcp(*V6, payload(300)), 100, gso_type=1)),
            ("IPv4 said to be IPv6", superpacket(tcp(*V4, payload(300)), 100, gso_type=4)),
            ("UDP said to be TCP", superpacket(udp(*V4, payload(300)), 100, gso_type=1, csum_offset=16)),
            ("TCP said to be UDP", superpacket(tcp(*V4, payload(300)), 100, gso_type=5, csum_offset=6)),
            ("a checksum elsewhere", superpacket(tcp(*V4, payload(300)), 100, csum_offset=6)),
            ("a transport header inside the IP header", superpacket(tcp(*V4, payload(300)), 100, csum_start=12)),
            ("a transport header behind the end", superpacket(tcp(*V4, payload(300)), 100, csum_start=60_000)),
            ("nothing to cut", superpacket(tcp(*V4), 100)),
            ("more segments than there can be", superpacket(tcp(*V4, payload(30_000)), 1)),
            ("a length that is not the frame's", superpacket(tcp(*V4, payload(300)), 100) + b"more"),
            ("a fragment", superpacket(tcp(*V4, payload(300), fragment=0x2000), 100)),
            ("a checksum field behind the end", superpacket(udp(*V4), 0, gso_type=0, csum_offset=7)),
            ("a checksum over the IP header", superpacket(udp(*V4), 0, gso_type=0, csum_start=0)),
        ],
        ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
    )
    def test_contradictions_are_refused(self, what, frame):
        assert cut(frame) is None, what

    def test_a_tcp_header_longer_than_the_packet_is_refused(self):
        frame = bytearray(superpacket(tcp(*V4, payload(10)), 5))
        frame[10 + 20 + 12] = 0xF0
        assert cut(bytes(frame)) is None

    def test_a_tcp_header_shorter_than_tcp_is_refused(self):
        frame = bytearray(superpacket(tcp(*V4, payload(10)), 5))
        frame[10 + 20 + 12] = 0x40
        assert cut(bytes(frame)) is None


def stream(addresses=V4, *, sizes, flags=(), start=1000, first_id=50, **fields) -> list[bytes]:
    """Return packets of one TCP flow in sequence. `flags` are by position, ACK by default."""
    packets, sequence = [], start
    for i, size in enumerate(sizes):
        flag = flags[i] if i < len(flags) else ACK
        packets.append(
            tcp(
                *addresses,
                payload(size, i),
                sequence=sequence,
                flags=flag,
                identification=(first_id + i) & 0xFFFF,
                **fields,
            )
        )
        sequence += size
    return packets


class TestJoin:
    """Single packets are written unchanged, behind a header without offload requests."""

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    def test_a_flow_becomes_one_superpacket(self, addresses):
        packets = stream(addresses, sizes=[100, 100, 100, 40], flags=[ACK, ACK, ACK, ACK | PSH], first_id=0xFFFE)
        (frame,) = join(packets)
        header = VirtioHeader.of(frame)
        transport = 20 if addresses is V4 else 40
        assert header == VirtioHeader(
            flags=1,
            gso_type=1 if addresses is V4 else 4,
            hdr_len=transport + 20,
            gso_size=100,
            csum_start=transport,
            csum_offset=16,
        )
        whole = tcp(
            *addresses, b"".join(p[transport + 20 :] for p in packets), sequence=1000, flags=ACK | PSH,
            identification=0xFFFE,
        )  # fmt: skip
        assert frame == superpacket(whole, 100, hdr_len=transport + 20)
        assert cut(frame) == packets

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    def test_udp_of_one_size_is_joined_and_a_shorter_one_ends_it(self, addresses):
        packets = [udp(*addresses, payload(size, i)) for i, size in enumerate([80, 80, 30, 80])]
        first, second = join(packets)
        whole = udp(*addresses, payload(80, 0) + payload(80, 1) + payload(30, 2))
        assert first == superpacket(whole, 80, hdr_len=28 if addresses is V4 else 48)
        assert second == bytes(10) + packets[3]

    def test_sixteen_interleaved_flows_are_all_joined(self):
        flows = [stream(sizes=[100] * 4, ports=(5000 + i, 80)) for i in range(16)]
        interleaved = [packet for column in zip(*flows, strict=True) for packet in column]
        frames = join(interleaved)
        assert len(frames) == 16
        assert [cut(frame) for frame in frames] == flows

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    @pytest.mark.parametrize(
        "change",
        [
            {"ack": 2}, {"window": 499}, {"tos": 2}, {"ttl": 63}, {"sequence": 1101}, {"sequence": 1099},
            {"ports": (1000, 2001)}, {"tcp_options": b"\1\1\1\1"}, {"flags": ACK | URG}, {"flags": ACK | ECE},
            {"flags": ACK | CWR}, {"flags": ACK | FIN}, {"flags": ACK | SYN}, {"flags": 0},
        ],
        ids=str,
    )  # fmt: skip
    def test_what_differs_is_not_joined(self, addresses, change):
        fields = {"sequence": 1100, "identification": 51} | change
        packets = [
            tcp(*addresses, payload(100), sequence=1000, identification=50),
            tcp(*addresses, payload(100), **fields),
        ]
        assert join(packets) == [bytes(10) + packet for packet in packets]

    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    @pytest.mark.parametrize("at", [0, 1])
    def test_other_timestamps_are_not_joined(self, addresses, at):
        options = [bytes.fromhex(f"0101080a0000000{n}00000002") for n in (1, 1, 1)]
        options[at + 1 :] = [bytes.fromhex("0101080a0000000100000003")] * (2 - at)
        packets = [
            tcp(*addresses, payload(10), sequence=1 + 10 * n, identification=n, tcp_options=option)
            for n, option in enumerate(options)
        ]
        assert [cut(frame) for frame in join(packets)] == [packets[: at + 1], packets[at + 1 :]]

    @pytest.mark.parametrize("change", [{"label": 5}, {"tos": 0x20}], ids=str)
    def test_ipv6_labels_and_classes_are_compared(self, change):
        packets = [tcp(*V6, payload(9), sequence=1), tcp(*V6, payload(9), sequence=10, **change)]
        assert len(join(packets)) == 2

    def test_dont_fragment_is_compared(self):
        packets = [tcp(*V4, payload(9), sequence=1), tcp(*V4, payload(9), sequence=10, fragment=0, identification=1)]
        assert len(join(packets)) == 2

    def test_without_dont_fragment_ids_must_be_in_order(self):
        """With DF the IDs have no meaning (RFC 6864)."""
        one, two = (tcp(*V4, payload(9), sequence=1 + 9 * i, fragment=0, identification=7) for i in range(2))
        next_one = tcp(*V4, payload(9), sequence=10, fragment=0, identification=8)
        assert len(join([one, two])) == 2
        assert len(join([one, next_one])) == 1
        free = [tcp(*V4, payload(9), sequence=1 + 9 * i, identification=7) for i in range(2)]
        assert len(join(free)) == 1

    def test_nothing_is_joined_after_psh(self):
        packets = stream(sizes=[100] * 4, flags=[ACK, ACK | PSH])
        frames = join(packets)
        assert [cut(frame) for frame in frames] == [packets[:2], packets[2:]]

    def test_nothing_is_joined_after_a_short_one(self):
        packets = stream(sizes=[100, 50, 100, 100])
        assert [cut(frame) for frame in join(packets)] == [packets[:2], packets[2:]]

    def test_a_larger_one_begins_anew(self):
        packets = stream(sizes=[50, 100, 100])
        assert [cut(frame) for frame in join(packets)] == [packets[:1], packets[1:]]

    def test_a_pure_ack_is_not_overtaken(self):
        data = stream(sizes=[100, 100])
        packets = [data[0], tcp(*V4, sequence=1100, ack=9), data[1]]
        assert join(packets) == [bytes(10) + packet for packet in packets]

    @pytest.mark.parametrize("position", [0, 1])
    @pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
    def test_a_corrupt_payload_passes_alone(self, addresses, position):
        """In a joined frame NEEDS_CSUM marks the checksum as not yet computed: the kernel would not verify it."""
        packets = stream(addresses, sizes=[100, 100])
        packets[position] = packets[position][:-1] + b"!"
        assert join(packets) == [bytes(10) + packet for packet in packets]

    @pytest.mark.parametrize("position", [0, 1])
    def test_a_corrupt_ip_header_passes_alone(self, position):
        packets = stream(sizes=[100, 100])
        broken = bytearray(packets[position])
        broken[10] ^= 1
        packets[position] = bytes(broken)
        assert join(packets) == [bytes(10) + packet for packet in packets]

    def test_udp_without_checksum_passes_alone(self):
        packets = [bytearray(udp(*V4, payload(50, i))) for i in range(2)]
        for packet in packets:
            packet[26:28] = b"\0\0"
        assert join([bytes(packet) for packet in packets]) == [bytes(10) + packet for packet in packets]

    def test_fragments_pass_untouched_and_end_every_flow(self):
        data = stream(sizes=[100, 100, 100])
        fragment = ip(*V4, 17, payload(64), fragment=0x2000)
        first_v6 = ip(*V6, 44, bytes([17, 0, 0, 1, 0, 0, 0, 9]) + payload(64))
        packets = [data[0], fragment, data[1], first_v6, data[2]]
        assert join(packets) == [bytes(10) + packet for packet in packets]

    @pytest.mark.parametrize("protocol", [1, 47, 58, 132], ids=str)
    def test_other_protocols_pass(self, protocol):
        packets = [ip(*V4, protocol, payload(40)), ip(*V6, protocol, payload(40))]
        assert join(packets) == [bytes(10) + packet for packet in packets]

    def test_ipv4_options_pass(self):
        packets = stream(sizes=[100, 100], options=b"\x94\x04\0\0")
        assert join(packets) == [bytes(10) + packet for packet in packets]

    def test_no_superpacket_exceeds_64_segments_or_65535_bytes(self):
        small = stream(sizes=[10] * 130)
        assert [len(cut(frame)) for frame in join(small)] == [64, 64, 2]
        large = stream(sizes=[1400] * 60)
        frames = join(large)
        assert [len(cut(frame)) for frame in frames] == [46, 14]
        assert all(len(frame) - 10 <= 65535 for frame in frames)

    def test_each_kind_can_be_switched_off(self):
        packets = stream(sizes=[100, 100]) + [udp(*V4, payload(50, i)) for i in range(2)]
        assert len(join(packets, tcp=False)) == 3
        assert len(join(packets, udp=False)) == 3

    def test_a_refused_superpacket_can_be_taken_apart(self):
        for packets in (
            stream(sizes=[100, 100, 30]),
            stream(V6, sizes=[100, 100, 30]),
            [udp(*V4, payload(50, i)) for i in range(3)],
        ):
            coalescer = coalesced(packets)
            (item,) = coalescer.items
            coalescer.frame(item)
            assert [b"".join(parts) for parts in coalescer.plain(item)] == [bytes(10) + packet for packet in packets]


@st.composite
def batches(draw) -> list[bytes]:
    """Several interleaved flows with gaps, flags, corruptions and fragments."""
    flows = draw(st.integers(1, 4))
    next_sequence = [1000] * flows
    next_id = [1] * flows
    packets = []
    for _ in range(draw(st.integers(1, 24))):
        flow = draw(st.integers(0, flows - 1))
        addresses = V4 if flow % 2 else V6
        kind = draw(st.sampled_from(["tcp"] * 8 + ["udp"] * 4 + ["fragment", "icmp", "gap", "corrupt"]))
        size = draw(st.sampled_from([0, 1, 99, 100, 100, 100, 100]))
        data = payload(size, len(packets))
        if kind == "udp":
            packet = udp(*addresses, data, ports=(1, flow))
        elif kind == "fragment":
            packet = ip(*V4, 6, data, fragment=0x2001)
        elif kind == "icmp":
            packet = ip(*addresses, 1, data)
        else:
            if kind == "gap":
                next_sequence[flow] += 100
            flags = draw(st.sampled_from([ACK] * 6 + [ACK | PSH, ACK | FIN, ACK | ECE]))
            fragment = 0x4000 if flow < 2 else 0
            packet = tcp(
                *addresses, data, ports=(2, flow), sequence=next_sequence[flow], flags=flags,
                identification=next_id[flow], fragment=fragment,
            )  # fmt: skip
            next_sequence[flow] += size
            next_id[flow] += 1
            if kind == "corrupt":
                packet = packet[:-1] + bytes([packet[-1] ^ 0x55])
        packets.append(packet)
    return packets


def flow_of(packet: bytes) -> tuple:
    """Return addresses, protocol and ports; for fragments and other protocols addresses and protocol."""
    if packet[0] >> 4 == 4:
        fragment = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF
        ports = packet[20:24] if packet[9] in (6, 17) and not fragment else b""
        return ip_address(packet[12:16]), packet[9], ports
    return ip_address(packet[8:24]), packet[6], packet[40:44] if packet[6] in (6, 17) else b""


def without_id(packet: bytes) -> bytes:
    """Zero the ID of an IPv4 packet with DF: it has no meaning, and splitting may assign a new one."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        return packet[:4] + packet[6:10] + packet[12:]
    return packet


@given(batches())
def test_cutting_undoes_joining(packets):
    """Every packet comes out once, unchanged, and in its flow's order."""
    out = [packet for frame in join(packets) for packet in cut(frame)]
    flows = {flow_of(packet) for packet in packets}
    assert len(out) == len(packets)
    for flow in flows:
        before = [without_id(packet) for packet in packets if flow_of(packet) == flow]
        after = [without_id(packet) for packet in out if flow_of(packet) == flow]
        assert after == before


@given(st.binary(max_size=120), st.binary(min_size=10, max_size=10))
def test_no_frame_raises(packet, header):
    frame = bytearray(header + packet) + bytes(16)
    if is_ip(frame, 10 + len(packet)):
        packets = split(frame, memoryview(frame), 10 + len(packet))
        assert packets is None or sum(1 for _ in packets) >= 1
