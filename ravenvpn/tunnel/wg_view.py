"""The tunnel as wg(8) shows and changes it: peers named by their keys, and allowed IPs in both directions at once."""

from __future__ import annotations

import dataclasses
import errno

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.errors import HostError
from ravenvpn.prefixes import Prefix
from ravenvpn.tunnel.driver import Tunnel
from ravenvpn.tunnel.named_peers import NamedPeers
from ravenvpn.tunnel.peer import WIREGUARD_ONLY, PeerSettings
from ravenvpn.tunnel.uapi import DeviceChange, PeerChange, UapiDevice, UapiError, UapiPeer


def state_of(tunnel: Tunnel) -> UapiDevice:
    """Return the answer to a get. A peer with two keys (key rotation) is shown under the one we initiate to."""
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
                allowed_ips=tunnel.peers.allowed_ips.prefixes(peer.settings.name),
            )
            for peer in tunnel.peers.statuses()
        ],
    )


def apply(tunnel: Tunnel, change: DeviceChange, suites: frozenset[Suite] = WIREGUARD_ONLY) -> None:
    """Apply a set. `suites` is what every peer is assumed to announce.

    Raises UapiError, and then nothing has changed: the steps that can fail come first.
    """
    if change.listen_port is not None or change.fwmark is not None:
        try:
            tunnel.listen(change.listen_port, change.fwmark)
        except HostError as error:
            # The errno of wireguard-go for both.
            raise UapiError(errno.EADDRINUSE, str(error)) from error
    if change.private_key is not None or change.clear_private_key:
        tunnel.set_private_key(change.private_key)
    own = None if tunnel.private_key is None else tunnel.private_key.public
    if change.replace_peers:
        for name in list(tunnel.peers.settings):
            tunnel.peers.remove(name)
    elif own is not None and _name(own) in tunnel.peers.settings:
        tunnel.peers.remove(_name(own))
    for peer in change.peers:
        # A peer with our own key is skipped, so that all nodes may share one list of peers.
        if peer.public_key != own:
            _apply_peer(tunnel.peers, peer, suites)


def _apply_peer(peers: NamedPeers, change: PeerChange, suites: frozenset[Suite]) -> None:
    """Apply one peer's block of a set; nothing here can fail, since the parser checked every value."""
    name = _name(change.public_key)
    settings = peers.settings.get(name)
    if change.remove:
        if settings is not None:
            peers.remove(name)
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
    peers.set(settings)
    # As a candidate alone the endpoint would not replace the one that the peer was last seen at.
    if change.endpoint is not None:
        peers.set_endpoint(name, change.endpoint)
    if change.replace_allowed_ips:
        for prefix in peers.allowed_ips.prefixes(name):
            _withdraw(peers, name, prefix)
    for add, prefix in change.allowed_ips:
        if add:
            _assign(peers, name, prefix)
        else:
            _withdraw(peers, name, prefix)


def _assign(peers: NamedPeers, name: str, prefix: Prefix) -> None:
    """Give both directions of `prefix` to this peer; another peer that had it loses it."""
    peers.route(prefix, (name,))
    for other in peers.allowed_ips.accepted_from(prefix) - {name}:
        peers.accept(other, remove=(prefix,))
    peers.accept(name, add=(prefix,))


def _withdraw(peers: NamedPeers, name: str, prefix: Prefix) -> None:
    """Take both directions of `prefix` from this peer; no effect, and no error, if it does not have it."""
    if peers.allowed_ips.routed_to(prefix) == (name,):
        peers.route(prefix, ())
    if name in peers.allowed_ips.accepted_from(prefix):
        peers.accept(name, remove=(prefix,))


def _name(key: PublicKey) -> str:
    """Return the name of a peer that wg(8) configured: its key in base64."""
    return str(key)
