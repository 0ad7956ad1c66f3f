"""Set requests of the configuration protocol, applied to a real tunnel without a TUN device."""

import asyncio
import errno
import os
import socket
from ipaddress import ip_network

import pytest

from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.tunnel.driver import Listeners, Tunnel
from ravenvpn.tunnel.linux.opener import open_resources
from ravenvpn.tunnel.linux.udp import bind
from ravenvpn.tunnel.uapi import Conversation, DeviceChange, UapiError, format_state
from ravenvpn.tunnel.wg_view import apply, state_of

PRIVATE = PrivateKey(bytes(range(32)))
ONE, TWO = (PrivateKey(bytes([number]) * 32).public for number in (1, 2))
PSK = "77" * 32


@pytest.fixture
def tunnel():
    made = Tunnel(open_resources())
    yield made
    made.stop()


def set_(tunnel: Tunnel, *lines: str) -> None:
    (change,) = Conversation(socket.if_nametoindex).receive(("set=1\n" + "\n".join(lines) + "\n\n").encode())
    assert isinstance(change, DeviceChange)
    apply(tunnel, change)


def get(tunnel: Tunnel) -> list[str]:
    return format_state(state_of(tunnel)).decode().splitlines()


def test_what_is_set_is_what_is_got(tunnel):
    set_(
        tunnel,
        f"private_key={PRIVATE.to_hex()}",
        "listen_port=4500",
        "fwmark=7",
        f"public_key={ONE.raw.hex()}",
        f"preshared_key={PSK}",
        "endpoint=192.0.2.1:51820",
        "persistent_keepalive_interval=25",
        "allowed_ip=fd00::/8",
        "allowed_ip=10.0.0.0/8",
    )
    assert get(tunnel) == [
        f"private_key={PRIVATE.to_hex()}",
        "listen_port=4500",
        "fwmark=7",
        f"public_key={ONE.raw.hex()}",
        f"preshared_key={PSK}",
        "protocol_version=1",
        "endpoint=192.0.2.1:51820",
        "last_handshake_time_sec=0",
        "last_handshake_time_nsec=0",
        "tx_bytes=0",
        "rx_bytes=0",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=fd00::/8",
        "errno=0",
        "",
    ]


def test_an_allowed_ip_is_routed_and_accepted_and_moves_as_one(tunnel):
    ten = ip_network("10.0.0.0/8")
    set_(tunnel, f"public_key={ONE.raw.hex()}", "allowed_ip=10.0.0.0/8")
    assert tunnel.peers.allowed_ips.routed_to(ten) == (str(ONE),)
    assert tunnel.peers.allowed_ips.accepted_from(ten) == {str(ONE)}
    set_(tunnel, f"public_key={TWO.raw.hex()}", "allowed_ip=10.0.0.0/8")
    assert tunnel.peers.allowed_ips.routed_to(ten) == (str(TWO),)
    assert tunnel.peers.allowed_ips.accepted_from(ten) == {str(TWO)}


def test_a_minus_does_not_remove_an_allowed_ip_of_another_peer(tunnel):
    ten = ip_network("10.0.0.0/8")
    set_(tunnel, f"public_key={ONE.raw.hex()}", "allowed_ip=10.0.0.0/8", "allowed_ip=fd00::/8")
    set_(tunnel, f"public_key={TWO.raw.hex()}", "allowed_ip=-10.0.0.0/8")
    assert tunnel.peers.allowed_ips.routed_to(ten) == (str(ONE),)
    set_(tunnel, f"public_key={ONE.raw.hex()}", "allowed_ip=-10.0.0.0/8")
    assert tunnel.peers.allowed_ips.prefixes(str(ONE)) == [ip_network("fd00::/8")]


def test_replace_allowed_ips_leaves_only_the_new_ones(tunnel):
    set_(tunnel, f"public_key={ONE.raw.hex()}", "allowed_ip=10.0.0.0/8", "allowed_ip=fd00::/8")
    set_(tunnel, f"public_key={ONE.raw.hex()}", "replace_allowed_ips=true", "allowed_ip=10.1.0.0/16")
    assert tunnel.peers.allowed_ips.prefixes(str(ONE)) == [ip_network("10.1.0.0/16")]


def test_update_only_adds_no_peer_and_changes_an_existing_one(tunnel):
    change = (f"public_key={ONE.raw.hex()}", "update_only=true", "persistent_keepalive_interval=9")
    set_(tunnel, *change)
    assert tunnel.peers.settings == {}
    set_(tunnel, f"public_key={ONE.raw.hex()}")
    set_(tunnel, *change)
    assert tunnel.peers.settings[str(ONE)].persistent_keepalive == 9


def test_settings_that_a_block_does_not_name_stay(tunnel):
    set_(tunnel, f"public_key={ONE.raw.hex()}", f"preshared_key={PSK}", "endpoint=192.0.2.1:1", "allowed_ip=::/0")
    set_(tunnel, f"public_key={ONE.raw.hex()}", "persistent_keepalive_interval=9")
    settings = tunnel.peers.settings[str(ONE)]
    assert settings.preshared_key is not None
    assert settings.endpoints == (Endpoint("192.0.2.1", 1),)
    assert tunnel.peers.allowed_ips.prefixes(str(ONE)) == [ip_network("::/0")]
    set_(tunnel, f"public_key={ONE.raw.hex()}", f"preshared_key={'0' * 64}")
    assert tunnel.peers.settings[str(ONE)].preshared_key is None


def test_replace_peers_leaves_only_the_new_ones(tunnel):
    set_(tunnel, f"public_key={ONE.raw.hex()}")
    set_(tunnel, "replace_peers=true", f"public_key={TWO.raw.hex()}")
    assert list(tunnel.peers.settings) == [str(TWO)]


def test_remove_of_an_unknown_peer_is_no_error(tunnel):
    set_(tunnel, f"public_key={ONE.raw.hex()}")
    set_(tunnel, f"public_key={TWO.raw.hex()}", "remove=true", f"public_key={ONE.raw.hex()}", "remove=true")
    assert tunnel.peers.settings == {}


def test_a_peer_with_our_own_key_is_skipped_and_an_existing_one_is_removed(tunnel):
    set_(tunnel, f"public_key={PRIVATE.public.raw.hex()}", f"public_key={ONE.raw.hex()}")
    set_(tunnel, f"private_key={PRIVATE.to_hex()}")
    assert list(tunnel.peers.settings) == [str(ONE)]
    set_(tunnel, f"public_key={PRIVATE.public.raw.hex()}")
    assert list(tunnel.peers.settings) == [str(ONE)]


def test_a_set_with_a_key_of_zeros_removes_our_key(tunnel):
    set_(tunnel, f"private_key={PRIVATE.to_hex()}")
    set_(tunnel, f"private_key={'0' * 64}")
    assert get(tunnel) == [f"listen_port={tunnel.listen_port}", "errno=0", ""]


async def test_a_port_in_use_refuses_the_whole_set(tunnel):
    tunnel.start()
    taken = bind(0)
    before = tunnel.listen_port
    with pytest.raises(UapiError) as refused:
        set_(
            tunnel,
            f"private_key={PRIVATE.to_hex()}",
            f"listen_port={taken.port}",
            "fwmark=9" if os.geteuid() == 0 else "fwmark=0",
            f"public_key={ONE.raw.hex()}",
        )
    assert refused.value.code == errno.EADDRINUSE
    assert (tunnel.listen_port, tunnel.fwmark, tunnel.private_key, tunnel.peers.settings) == (before, 0, None, {})
    taken.close()
    tunnel.stop()


async def test_an_endpoint_set_by_wg_overrides_roaming():
    """As in WireGuard, the configured endpoint is used until the peer's next authenticated packet."""
    up = asyncio.Event()
    tunnel = Tunnel(open_resources(), listeners=Listeners(on_session_event=lambda _: up.set()))
    other = Tunnel(open_resources())
    for one, private in ((tunnel, PRIVATE), (other, PrivateKey(bytes([1]) * 32))):
        one.start()
        one.set_private_key(private)
    set_(tunnel, f"public_key={ONE.raw.hex()}", "endpoint=192.0.2.1:1")
    set_(other, f"public_key={PRIVATE.public.raw.hex()}", f"endpoint=127.0.0.1:{tunnel.listen_port}")
    other.peers.initiate(str(PRIVATE.public))
    await asyncio.wait_for(up.wait(), 5)
    assert tunnel.peers.statuses()[0].endpoint == Endpoint("127.0.0.1", other.listen_port)
    set_(tunnel, f"public_key={ONE.raw.hex()}", "endpoint=192.0.2.1:1")
    assert tunnel.peers.statuses()[0].endpoint == Endpoint("192.0.2.1", 1)
    tunnel.stop()
    other.stop()
