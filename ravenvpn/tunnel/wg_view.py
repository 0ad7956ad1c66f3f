"""A tunnel as wg(8) sees it: peers named by their keys, and allowed IPs that are routed and accepted alike."""

from __future__ import annotations

import dataclasses
import errno

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.errors import HostError
from ravenvpn.prefixes import Prefix
from ravenvpn.tunnel.driver import Tunnel
from ravenvpn.tunnel.peer import WIREGUARD_ONLY, PeerSettings
from ravenvpn.tunnel.uapi import DeviceChange, PeerChange, UapiDevice, UapiError, UapiPeer


def state_of(tunnel: Tunnel) -> UapiDevice:
    """What a get shows. A peer with two keys (rotation) appears under the one we call."""
    return UapiDevice(
        private_key=tunnel.private_key,
        listen_port=tunnel.listen_port,
        fwmark=tunnel.fwmark,
        peers=[
            UapiPeer(
                peer.settings.public_keys[0],
                preshared_key=peer.settings.preshared_key,
                endpoint=peer.endpoint,
                last_handshake_ns=peer.last_handshake_ns,
                tx_bytes=peer.tx_bytes,
                rx_bytes=peer.rx_bytes,
                persistent_keepalive=round(peer.settings.persistent_keepalive),
                allowed_ips=tunnel.allowed_ips.of(peer.settings.name),
            )
            for peer in tunnel.peers()
        ],
    )


def apply(tunnel: Tunnel, change: DeviceChange, suites: frozenset[Suite] = WIREGUARD_ONLY) -> None:
    """Do what a set asks. `suites` is what every peer is taken to announce. Raises UapiError, and then nothing
    has changed: what can fail comes first."""
    if change.listen_port is not None or change.fwmark is not None:
        try:
            tunnel.listen(change.listen_port, change.fwmark)
        except HostError as error:
            # wireguard-go's answer to either.
            raise UapiError(errno.EADDRINUSE, str(error)) from error
    if change.private_key is not None or change.clear_private_key:
        tunnel.set_private_key(change.private_key)
    own = None if tunnel.private_key is None else tunnel.private_key.public
    if change.replace_peers:
        for name in list(tunnel.settings):
            tunnel.remove_peer(name)
    elif own is not None and _name(own) in tunnel.settings:
        tunnel.remove_peer(_name(own))
    for peer in change.peers:
        # A peer with our own key is passed over, so that all nodes may share one list of peers.
        if peer.public_key != own:
            _apply_peer(tunnel, peer, suites)


def _apply_peer(tunnel: Tunnel, change: PeerChange, suites: frozenset[Suite]) -> None:
    name = _name(change.public_key)
    settings = tunnel.settings.get(name)
    if change.remove:
        if settings is not None:
            tunnel.remove_peer(name)
        return
    if settings is None:
        if change.update_only:
            return
        settings = PeerSettings(name, public_keys=(change.public_key,), suites=suites)
    if change.preshared_key is not None:
        psk = None if change.preshared_key.is_none else change.preshared_key
        settings = dataclasses.replace(settings, preshared_key=psk)
    if change.persistent_keepalive is not None:
        settings = dataclasses.replace(settings, persistent_keepalive=float(change.persistent_keepalive))
    if change.endpoint is not None:
        settings = dataclasses.replace(settings, endpoints=(change.endpoint,))
    tunnel.set_peer(settings)
    if change.endpoint is not None:
        tunnel.set_endpoint(name, change.endpoint)
    if change.replace_allowed_ips:
        for prefix in tunnel.allowed_ips.of(name):
            _withdraw(tunnel, name, prefix)
    for add, prefix in change.allowed_ips:
        if add:
            _assign(tunnel, name, prefix)
        else:
            _withdraw(tunnel, name, prefix)


def _assign(tunnel: Tunnel, name: str, prefix: Prefix) -> None:
    """Both directions of `prefix` are this peer's from now on, and nobody else's."""
    tunnel.route(prefix, (name,))
    for other in tunnel.allowed_ips.accepted_from(prefix) - {name}:
        tunnel.accept(other, remove=(prefix,))
    tunnel.accept(name, add=(prefix,))


def _withdraw(tunnel: Tunnel, name: str, prefix: Prefix) -> None:
    """Take it from this peer; that it has not got it is no mistake."""
    if tunnel.allowed_ips.routed_to(prefix) == (name,):
        tunnel.route(prefix, ())
    if name in tunnel.allowed_ips.accepted_from(prefix):
        tunnel.accept(name, remove=(prefix,))


def _name(key: PublicKey) -> str:
    return str(key)
