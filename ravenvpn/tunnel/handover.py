"""Session hand-over: the state that a device passes to the next process, as a versioned blob (docs/protocol.md §4).

The blob stands beside the data plane's. It holds what cannot be learned again in time: the peers with the ids the
data plane uses for them, the newest timestamps accepted and sent (§5.1: without them a replay would be accepted), and
when the sessions were derived. It does not hold pending handshakes and cookies, which are made anew, and our private
key. It holds preshared keys, so it is as secret as the data plane's blob, and is deleted as soon.

For session hand-over on restart; no caller in the agent yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

import msgspec

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint, PeerId, Role, Source, Timing
from ravenvpn.tunnel.handshake.states import HandshakeState
from ravenvpn.tunnel.peer import Peer, PeerSettings, PeerView
from ravenvpn.tunnel.timers import NEVER, Timers

FORMAT = "ravenvpn-tunnel"
VERSION = 1

_SUITES = {suite.value: suite for suite in Suite}


class FrozenTunnelPeer(msgspec.Struct, frozen=True, array_like=True):
    """One peer, encoded as an array: the order of the fields is the format, and their names are not part of it.

    Keys are 32 raw bytes, instants seconds of CLOCK_BOOTTIME; None where there is none.
    """

    id: int  # the data plane's PeerId
    name: str
    public_keys: tuple[bytes, ...]
    preshared_key: bytes | None
    endpoints: tuple[tuple[str, int, int], ...]  # the candidates: host, port, scope id
    persistent_keepalive: float  # seconds, 0 for none
    suites: tuple[str, ...]  # Suite.value, sorted
    roaming: bool
    warm: bool
    confirmed: tuple[str, int, int] | None  # the endpoint the peer was last seen at
    source: tuple[str, int] | None  # our address and interface index that it was seen from
    has_session: bool
    keypairs: tuple[int, ...]  # local indices
    session_key: bytes | None  # the peer's key that the newest session was made with
    timestamps: tuple[tuple[bytes, bytes], ...]  # newest TAI64N accepted, by key of the peer
    last_timestamp_ns: int  # of our last initiation, Unix time
    handshake_sent: float | None
    session: tuple[int, float] | None  # our role in the newest session, and the instant it was derived
    last_handshake_ns: int  # Unix time, 0 = never
    rx_bytes: int  # of handshake messages
    tx_bytes: int


class Image(msgspec.Struct, frozen=True):
    """The whole blob, encoded as a map: the field names are part of the format."""

    format: str
    version: int
    frozen_at: float  # seconds of CLOCK_BOOTTIME
    up: bool  # whether the interface was up
    public_key: bytes | None  # ours; a change of it ends the sessions
    frozen_peers: tuple[FrozenTunnelPeer, ...]

    def peers(self, timing: Timing, jitter: Callable[[], float]) -> Iterator[Peer]:
        """Yield the peers with fresh timers. KeyError or ValueError for a field that cannot be."""
        for one in self.frozen_peers:
            yield _restored(one, timing, Timers(timing, jitter), self.frozen_at)


def pack(peers: Iterable[PeerView], public_key: PublicKey | None, up: bool, now: float) -> bytes:
    """Return the blob of these peers, with our public key and whether the interface is up. It is secret."""
    frozen = tuple(_frozen(peer) for peer in peers)
    ours = public_key.raw if public_key else None
    return msgspec.msgpack.encode(Image(FORMAT, VERSION, now, up, ours, frozen))


def parse(blob: bytes, now: float) -> Image:
    """Return the parsed blob. Raises ValueError if it is not one of ours, of another version, damaged, or newer than
    this clock (from another boot)."""
    try:
        image = msgspec.msgpack.decode(blob, type=Image)
    except msgspec.MsgspecError as problem:
        raise ValueError(f"not a frozen tunnel: {problem}") from None
    if image.format != FORMAT or image.version != VERSION:
        raise ValueError(f"a frozen tunnel of another format: {image.format} {image.version}")
    if image.frozen_at > now:
        raise ValueError("a frozen tunnel from another boot")
    try:
        # Check everything before anything is taken over.
        restored = list(image.peers(Timing(), float))
    except (KeyError, ValueError) as problem:
        raise ValueError(f"a damaged frozen tunnel: {problem}") from None
    indices = [index for peer in restored for index in peer.keypairs]
    names = [peer.settings.name for peer in restored]
    keys = [key for peer in restored for key in set(peer.settings.public_keys)]
    ids = [peer.id for peer in restored]
    for unique in (indices, names, keys, ids):
        if len(set(unique)) != len(unique):
            raise ValueError("a damaged frozen tunnel: it has a duplicate")
    return image


def _frozen(peer: PeerView) -> FrozenTunnelPeer:
    """Return the part of a peer's state that is handed over."""
    settings, endpoints, timers = peer.settings, peer.endpoints, peer.timers
    at = endpoints.confirmed
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
        source=(endpoints.source.host, endpoints.source.ifindex) if endpoints.source else None,
        has_session=peer.has_session,
        keypairs=tuple(sorted(peer.keypairs)),
        session_key=peer.session_key.raw if peer.session_key else None,
        timestamps=tuple((key.raw, stamp) for key, stamp in peer.timestamps.items()),
        last_timestamp_ns=peer.last_timestamp_ns,
        handshake_sent=timers.handshake_sent if timers.handshake_sent != NEVER else None,
        session=timers.session,
        last_handshake_ns=peer.last_handshake_ns,
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
    )


def _restored(one: FrozenTunnelPeer, timing: Timing, timers: Timers, frozen_at: float) -> Peer:
    """Return the peer with this state. Deadlines are computed anew from the instants, which count on across a
    restart: CLOCK_BOOTTIME is the same for both processes. KeyError or ValueError for a damaged field."""
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
    peer.endpoints.configure(settings.endpoints)
    if one.confirmed is not None:
        peer.endpoints.observe(_endpoint(*one.confirmed), Source(*one.source) if one.source else None, roaming=True)
    peer.keypairs = set(one.keypairs)
    peer.has_session = peer.session_reported = one.has_session and bool(peer.keypairs)
    if peer.keypairs:
        peer.state = HandshakeState.ESTABLISHED if one.has_session else HandshakeState.RESPONDED
    peer.session_key = PublicKey(one.session_key) if one.session_key is not None else None
    peer.timestamps = {PublicKey(raw): stamp for raw, stamp in one.timestamps}
    peer.last_timestamp_ns = one.last_timestamp_ns
    peer.last_handshake_ns = one.last_handshake_ns
    peer.rx_bytes, peer.tx_bytes = one.rx_bytes, one.tx_bytes
    return peer


def _endpoint(host: str, port: int, scope_id: int) -> Endpoint:
    ip_address(host)  # ValueError if it is none
    return Endpoint(host, port, scope_id)
