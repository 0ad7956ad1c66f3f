"""The configuration protocol: literal requests of wg(8) 1.0, and the answers of wireguard-go (device/uapi.go)."""

import errno
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.keys import PresharedKey, PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.tunnel.uapi import (
    MAX_LINE,
    Conversation,
    DeviceChange,
    Get,
    PeerChange,
    UapiDevice,
    UapiError,
    UapiPeer,
    format_errno,
    format_state,
    parse_endpoint,
)

PRIVATE = "e8" * 31 + "68"  # already clamped
PUBLIC = "ab" * 32
OTHER = "cd" * 32


def interface_index(zone: str) -> int:
    if zone == "eth7":
        return 7
    raise OSError("no such interface")


def ask(text: str | bytes) -> list[object]:
    data = text.encode() if isinstance(text, str) else text
    return list(Conversation(interface_index).receive(data))


def ask_set(*lines: str) -> object:
    (request,) = ask("set=1\n" + "".join(line + "\n" for line in lines) + "\n")
    return request


def refused(*lines: str) -> int:
    request = ask_set(*lines)
    assert isinstance(request, UapiError)
    return request.code


def test_a_whole_set_as_wg_writes_it():
    assert ask_set(
        f"private_key={PRIVATE}",
        "listen_port=51820",
        "fwmark=4660",
        "replace_peers=true",
        f"public_key={PUBLIC}",
        f"preshared_key={'01' * 32}",
        "endpoint=[2001:db8::1]:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=fd00::/8",
        f"public_key={OTHER}",
        "remove=true",
    ) == DeviceChange(
        private_key=PrivateKey.from_hex(PRIVATE),
        listen_port=51820,
        fwmark=0x1234,
        replace_peers=True,
        peers=[
            PeerChange(
                PublicKey.from_hex(PUBLIC),
                preshared_key=PresharedKey.from_hex("01" * 32),
                endpoint=Endpoint("2001:db8::1", 51820),
                persistent_keepalive=25,
                replace_allowed_ips=True,
                allowed_ips=[(True, ip_network("10.0.0.0/8")), (True, ip_network("fd00::/8"))],
            ),
            PeerChange(PublicKey.from_hex(OTHER), remove=True),
        ],
    )


def test_an_empty_set_is_accepted():
    assert ask("set=1\n\n") == [DeviceChange()]


def test_a_private_key_of_zeros_is_a_removal():
    change = ask_set("private_key=" + "0" * 64)
    assert isinstance(change, DeviceChange)
    assert change.private_key is None
    assert change.clear_private_key


def test_an_allowed_ip_can_be_removed_by_a_minus():
    change = ask_set(f"public_key={PUBLIC}", "allowed_ip=-10.1.0.0/16", "allowed_ip=10.2.0.0/16")
    assert isinstance(change, DeviceChange)
    assert change.peers[0].allowed_ips == [(False, ip_network("10.1.0.0/16")), (True, ip_network("10.2.0.0/16"))]


def test_an_allowed_ip_is_masked():
    change = ask_set(f"public_key={PUBLIC}", "allowed_ip=10.1.2.3/16")
    assert isinstance(change, DeviceChange)
    assert change.peers[0].allowed_ips == [(True, ip_network("10.1.0.0/16"))]


def test_replace_allowed_ips_discards_those_before_it():
    change = ask_set(f"public_key={PUBLIC}", "allowed_ip=10.1.0.0/16", "replace_allowed_ips=true")
    assert isinstance(change, DeviceChange)
    assert change.peers[0].allowed_ips == []


@pytest.mark.parametrize(
    "line",
    [
        "private_key=",
        "private_key=" + "0" * 63,
        "private_key=" + "zz" * 32,
        "private_key=" + " a" * 32,
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=+1",
        "listen_port= 1",
        "listen_port=1_0",
        "listen_port=٣",
        "listen_port=",
        "fwmark=4294967296",
        "fwmark=0x10",
        "replace_peers=false",
        "replace_peers=1",
        "endpoint=192.0.2.1:1",  # a peer's key before the first public_key
        "Listen_port=1",
        "=",
    ],
)
def test_a_bad_line_about_the_device_is_invalid(line):
    assert refused(line) == errno.EINVAL


@pytest.mark.parametrize(
    "line",
    [
        "public_key=00",
        "preshared_key=" + "0" * 65,
        "endpoint=",
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:",
        "endpoint=192.0.2.1:0",
        "endpoint=192.0.2.1:65536",
        "endpoint=192.0.2.256:1",
        "endpoint=[192.0.2.1]:1",
        "endpoint=2001:db8::1:1",
        "endpoint=[2001:db8::1:1",
        "endpoint=[fe80::1%nowhere]:1",
        "endpoint=[fe80::1%4294967296]:1",
        "endpoint=192.0.2.1%eth7:1",
        "endpoint=example.com:1",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "replace_allowed_ips=yes",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0/255.0.0.0",
        "allowed_ip=10.0.0.0/",
        "allowed_ip=/8",
        "allowed_ip=--10.0.0.0/8",
        "allowed_ip=fd00::/129",
        "allowed_ip=fe80::1%eth7/64",
        "protocol_version=2",
        "update_only=1",
        "remove=no",
        "listen_port=1",  # a key of the device after a peer
    ],
)
def test_a_bad_line_about_a_peer_is_invalid(line):
    assert refused(f"public_key={PUBLIC}", line) == errno.EINVAL


def test_a_line_without_a_value_is_a_protocol_error():
    assert refused("listen_port") == errno.EPROTO


def test_one_bad_line_refuses_the_whole_set_and_the_conversation_goes_on():
    assert [
        request.code if isinstance(request, UapiError) else request
        for request in ask(f"set=1\nlisten_port=1\npublic_key={PUBLIC}\nremove=maybe\nfoo\n\nset=1\nfwmark=7\n\n")
    ] == [errno.EINVAL, DeviceChange(fwmark=7)]


def test_a_get_among_sets():
    requests = ask("get=1\n\nset=1\nfwmark=1\n\nget=1\n\n")
    assert [type(request) for request in requests] == [Get, DeviceChange, Get]


def test_a_get_that_goes_on_is_invalid():
    (request, *_) = ask("get=1\nx")
    assert isinstance(request, UapiError)
    assert request.code == errno.EINVAL


@pytest.mark.parametrize("text", ["hello\n", "get=2\n\n", "set=1\r\n\r\n", "\n", "\x00\xff\n"])
def test_an_unknown_request_ends_the_conversation_without_an_answer(text):
    conversation = Conversation(interface_index)
    assert conversation.receive(text.encode("latin1")) == []
    assert conversation.over
    assert conversation.receive(b"get=1\n\n") == []


def test_an_endless_line_is_refused_and_not_kept():
    conversation = Conversation(interface_index)
    assert conversation.receive(b"set=1\n") == []
    assert conversation.receive(b"a" * MAX_LINE) == []
    (request,) = conversation.receive(b"aa")
    assert isinstance(request, UapiError)
    assert request.code == errno.EIO
    assert conversation.over


def test_an_endless_set_is_refused():
    conversation = Conversation(interface_index)
    line = b"fwmark=1" + b" " * 60_000 + b"\n"
    conversation.receive(b"set=1\n")
    answers = [request for _ in range(300) for request in conversation.receive(line)]
    assert [answer.code for answer in answers if isinstance(answer, UapiError)] == [errno.EIO]
    assert conversation.over


def test_an_unfinished_set_is_no_request():
    assert ask(f"set=1\npublic_key={PUBLIC}\nremove=true\n") == []


@given(st.data())
def test_requests_do_not_depend_on_how_the_bytes_are_split(data):
    text = f"get=1\n\nset=1\nlisten_port=1\npublic_key={PUBLIC}\nallowed_ip=10.0.0.0/8\n\nset=1\nx\n\n".encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    conversation = Conversation(interface_index)
    requests = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        requests += conversation.receive(text[start:end])
    assert [type(request) for request in requests] == [Get, DeviceChange, UapiError]


KEYS = ["private_key", "listen_port", "fwmark", "replace_peers", "public_key", "remove", "update_only", "endpoint"]
KEYS += ["preshared_key", "persistent_keepalive_interval", "replace_allowed_ips", "allowed_ip", "protocol_version"]
VALUES = ["true", "1", PUBLIC, "0" * 64, "10.0.0.0/8", "-fd00::/8", "192.0.2.1:5", "[fe80::1%eth7]:5", "-", "%"]


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=90)).map(
                lambda line: line.encode("utf-8", "surrogatepass")
            ),
            st.sampled_from([b"set=1", b"get=1", b""]),
        ),
        max_size=30,
    )
)
def test_any_bytes_of_a_client_become_requests_or_refusals(lines):
    for request in Conversation(interface_index).receive(b"set=1\n" + b"\n".join(lines) + b"\n\n"):
        assert isinstance(request, Get | DeviceChange | UapiError)


def test_reprs_show_no_secret():
    change = ask_set(f"private_key={PRIVATE}", f"public_key={PUBLIC}", f"preshared_key={'01' * 32}")
    assert "e8e8" not in repr(change)
    assert "0101" not in repr(change)
    bad = ask_set("private_key=" + "e8" * 31 + "zz")
    assert isinstance(bad, UapiError)
    assert "e8e8" not in str(bad)


def test_the_answer_to_a_get():
    state = UapiDevice(
        private_key=PrivateKey.from_hex(PRIVATE),
        listen_port=51820,
        fwmark=7,
        peers=[
            UapiPeer(
                PublicKey.from_hex(PUBLIC),
                endpoint=Endpoint("2001:db8::1", 4500),
                last_handshake_ns=1_700_000_000_000_000_123,
                tx_bytes=148,
                rx_bytes=92,
                persistent_keepalive=25,
                allowed_ips=[ip_network("10.0.0.0/8"), ip_network("fd00::/8")],
            )
        ],
    )
    assert format_state(state).decode() == (
        f"private_key={PRIVATE}\n"
        "listen_port=51820\n"
        "fwmark=7\n"
        f"public_key={PUBLIC}\n"
        f"preshared_key={'0' * 64}\n"
        "protocol_version=1\n"
        "endpoint=[2001:db8::1]:4500\n"
        "last_handshake_time_sec=1700000000\n"
        "last_handshake_time_nsec=123\n"
        "tx_bytes=148\n"
        "rx_bytes=92\n"
        "persistent_keepalive_interval=25\n"
        "allowed_ip=10.0.0.0/8\n"
        "allowed_ip=fd00::/8\n"
        "errno=0\n"
        "\n"
    )


def test_an_empty_device_answers_errno_0_only():
    assert format_state(UapiDevice()) == b"errno=0\n\n"


def test_an_errno_is_negative_on_the_wire():
    assert format_errno(errno.EINVAL) == b"errno=-22\n\n"


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:51820", Endpoint("192.0.2.1", 51820)),
        ("[2001:DB8::1]:1", Endpoint("2001:db8::1", 1)),
        ("[fe80::1%eth7]:1", Endpoint("fe80::1", 1, 7)),
        ("[fe80::1%3]:1", Endpoint("fe80::1", 1, 3)),
        ("[::ffff:192.0.2.1]:1", Endpoint("192.0.2.1", 1)),
    ],
)
def test_endpoints(text, endpoint):
    assert parse_endpoint(text, interface_index) == endpoint
