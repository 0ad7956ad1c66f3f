"""What a device hands over to its successor: a versioned blob beside the data plane's (docs/protocol.md).

It holds what could not be learned again in time: who the peers are and under which ids the data plane knows them,
the newest timestamps accepted and sent (§5.1: or a replay would pass), and when the sessions were made. Not in it:
handshakes in progress and cookies, which are made anew, and our private key. It holds preshared keys, so it is as
secret as the data plane's blob and lives as short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

import msgspec

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint, PeerId, Role, Source, Timing
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import Peer, PeerSettings
from ravenvpn.tunnel.timers import NEVER, Timers

FORMAT = "ravenvpn-tunnel"
VERSION = 1

_SUITES = {suite.value: suite for suite in Suite}


class FrozenTunnelPeer(msgspec.Struct, frozen=True, array_like=True):
    """One peer. Keys are raw bytes, instants seconds of CLOCK_BOOTTIME, None where there is none."""

    id: int
    name: str
    public_keys: tuple[bytes, ...]
    preshared_key: bytes | None
    endpoints: tuple[tuple[str, int, int], ...]
    persistent_keepalive: float
    suites: tuple[str, ...]
    roaming: bool
    warm: bool
    confirmed: tuple[str, int, int] | None
    source: tuple[str, int] | None
    established: bool
    keypairs: tuple[int, ...]
    keyed_with: bytes | None
    greatest: tuple[tuple[bytes, bytes], ...]
    stamped_ns: int
    handshake_sent: float | None
    session: tuple[int, float] | None  # our role in the newest session, and its birth
    last_handshake_ns: int
    rx_bytes: int
    tx_bytes: int


class Image(msgspec.Struct, frozen=True):
    format: str
    version: int
    frozen_at: float
    up: bool
    public_key: bytes | None  # ours; sessions do not outlive a change of it
    frozen_peers: tuple[FrozenTunnelPeer, ...]

    def peers(self, timing: Timing, jitter: Callable[[], float]) -> Iterator[Peer]:
        for one in self.frozen_peers:
            yield _restored(one, timing, Timers(timing, jitter), self.frozen_at)


def pack(peers: Iterable[Peer], public_key: PublicKey | None, up: bool, now: float) -> bytes:
    frozen = tuple(_frozen(peer) for peer in peers)
    ours = public_key.raw if public_key else None
    return msgspec.msgpack.encode(Image(FORMAT, VERSION, now, up, ours, frozen))


def parse(blob: bytes, now: float) -> Image:
    """ValueError if it is not one of ours, of another version, damaged, or newer than this clock (another boot)."""
    try:
        image = msgspec.msgpack.decode(blob, type=Image)
    except msgspec.MsgspecError as problem:
        raise ValueError(f"not a frozen tunnel: {problem}") from None
    if image.format != FORMAT or image.version != VERSION:
        raise ValueError(f"a frozen tunnel of another kind: {image.format} {image.version}")
    if image.frozen_at > now:
        raise ValueError("a frozen tunnel from another boot")
    try:
        # Everything is looked at before anything is taken over.
        restored = list(image.peers(Timing(), float))
    except (KeyError, ValueError) as problem:
        raise ValueError(f"a damaged frozen tunnel: {problem}") from None
    indices = [index for peer in restored for index in peer.keypairs]
    names = [peer.settings.name for peer in restored]
    keys = [key for peer in restored for key in set(peer.settings.public_keys)]
    ids = [peer.id for peer in restored]
    for what in (indices, names, keys, ids):
        if len(set(what)) != len(what):
            raise ValueError("a damaged frozen tunnel: something is there twice")
    return image


def _frozen(peer: Peer) -> FrozenTunnelPeer:
    settings, where, timers = peer.settings, peer.where, peer.timers
    at = where.confirmed
    return FrozenTunnelPeer(
        id=peer.id,
        name=settings.name,
        public_keys=tuple(key.raw for key in settings.public_keys),
        preshared_key=settings.preshared_key.raw if settings.preshared_key else None,
        endpoints=tuple((one.host, one.port, one.scope_id) for one in settings.endpoints),
        persistent_keepalive=settings.persistent_keepalive,
        suites=tuple(sorted(suite.value for suite in settings.suites)),
        roaming=settings.roaming,
        warm=settings.warm,
        confirmed=(at.host, at.port, at.scope_id) if at else None,
        source=(where.source.host, where.source.ifindex) if where.source else None,
        established=peer.alive,
        keypairs=tuple(sorted(peer.keypairs)),
        keyed_with=peer.keyed_with.raw if peer.keyed_with else None,
        greatest=tuple((key.raw, stamp) for key, stamp in peer.greatest.items()),
        stamped_ns=peer.stamped_ns,
        handshake_sent=timers.handshake_sent if timers.handshake_sent != NEVER else None,
        session=timers.session,
        last_handshake_ns=peer.last_handshake_ns,
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
    )


def _restored(one: FrozenTunnelPeer, timing: Timing, timers: Timers, frozen_at: float) -> Peer:
    settings = PeerSettings(
        name=one.name,
        public_keys=tuple(PublicKey(raw) for raw in one.public_keys),
        preshared_key=PresharedKey(one.preshared_key) if one.preshared_key is not None else None,
        endpoints=tuple(_endpoint(*endpoint) for endpoint in one.endpoints),
        persistent_keepalive=one.persistent_keepalive,
        suites=frozenset(_SUITES[name] for name in one.suites),
        roaming=one.roaming,
        warm=one.warm,
    )
    timers.configured(settings.persistent_keepalive, settings.warm, frozen_at)
    timers.resumed(
        one.handshake_sent if one.handshake_sent is not None else NEVER,
        (Role(one.session[0]), one.session[1]) if one.session else None,
    )
    peer = Peer(PeerId(one.id), settings, timing, timers)
    peer.where.configure(settings.endpoints)
    if one.confirmed is not None:
        peer.where.heard_from(_endpoint(*one.confirmed), Source(*one.source) if one.source else None, roaming=True)
    peer.keypairs = set(one.keypairs)
    peer.alive = peer.reported_alive = one.established and bool(peer.keypairs)
    if peer.keypairs:
        peer.phase = HandshakeState.ESTABLISHED if one.established else HandshakeState.RESPONDED
    peer.keyed_with = PublicKey(one.keyed_with) if one.keyed_with is not None else None
    peer.greatest = {PublicKey(raw): stamp for raw, stamp in one.greatest}
    peer.stamped_ns = one.stamped_ns
    peer.last_handshake_ns = one.last_handshake_ns
    peer.rx_bytes, peer.tx_bytes = one.rx_bytes, one.tx_bytes
    return peer


def _endpoint(host: str, port: int, scope_id: int) -> Endpoint:
    ip_address(host)  # ValueError if it is none
    return Endpoint(host, port, scope_id)
