"""The blob that a frozen body leaves and a new one takes over. Both bodies write and read the same bytes.

A msgpack map (https://github.com/msgpack/msgpack/blob/master/spec.md), version 1. Integers are unsigned unless said,
`bin` is msgpack binary, times are float seconds of CLOCK_BOOTTIME:

    format      str    "ravenvpn-dataplane"
    version     int    1
    boot_id     str    /proc/sys/kernel/random/boot_id; the clock and the counters mean nothing after another boot
    frozen_at   float
    peers       array of maps:
        id          int
        endpoint    nil or [host str, port int, scope_id int]
        source      nil or [host str, ifindex int]
        roaming     bool
        rx_bytes, tx_bytes, rx_packets, tx_packets   int
        facts       [data_sent, any_sent, data_received, any_received, unanswered_since, unacknowledged_since] floats
        staged      array of [packet bin, outer_df bool], oldest first
        sessions    array of maps:
            slot            str    "previous", "current" or "next", at most one each
            suite           str    as in Peer.spec.suites
            role            int    0 initiator, 1 responder
            local_index, remote_index    int, 32 bits
            send_key, receive_key        bin, 32 bytes
            birth           float
            counter         int    next to send with, 64 bits
            sends           bool   false if it may only receive
            renewal_asked   bool   a handshake was asked for on receiving
            greatest        int    signed: greatest counter received, −1 if none
            window          bin    1,024 bytes, replay bitmap: 128 little-endian words of 64 bits; counter c is
                                   bit (c mod 64) of word (c div 64) mod 128

Unknown keys are ignored, all keys above are required. Routes, acceptance, own address and MTU are not in it: they
follow from the plan, which the new process makes anyway.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import KEY_BYTES
from ravenvpn.dataplane.contract import Endpoint, NewKeypair, PeerId, Role, Source
from ravenvpn.dataplane.keypairs import SLOTS, Keypair
from ravenvpn.dataplane.peers import DataPlanePeer, Staged, socket_address
from ravenvpn.dataplane.replay import ReplayWindow

FORMAT: Final = "ravenvpn-dataplane"
VERSION: Final = 1

# How far counters skip on thawing. A blob thawed twice by mistake must not repeat what was sent after the first
# time: no machine of ours seals more than 2^23 messages a second, and the clock goes on between the two.
SKIP: Final = 1 << 16
SKIP_PER_SECOND: Final = 1 << 23


class FrozenKeypair(msgspec.Struct):
    """One keypair in its slot. The module docstring gives every field's meaning."""

    slot: str
    suite: str
    role: int
    local_index: int
    remote_index: int
    send_key: bytes
    receive_key: bytes
    birth: float
    counter: int
    sends: bool
    renewal_asked: bool
    greatest: int
    window: bytes

    def __repr__(self) -> str:
        return f"FrozenSession({self.slot}, {self.local_index:#010x})"

    def keypair(self) -> NewKeypair:
        """ValueError if it is not one."""
        if self.slot not in SLOTS or len(self.send_key) != KEY_BYTES or len(self.receive_key) != KEY_BYTES:
            raise ValueError("the blob holds a session that is none")
        if not 0 <= self.counter < 1 << 64 or not -1 <= self.greatest < 1 << 64:
            raise ValueError("the blob holds a counter of more than 64 bits")
        return NewKeypair(
            suite_named(self.suite),
            Role(self.role),
            self.local_index,
            self.remote_index,
            self.send_key,
            self.receive_key,
            self.birth,
        )


class FrozenDataPlanePeer(msgspec.Struct):
    """One peer without its prefixes. The module docstring gives every field's meaning."""

    id: int
    endpoint: tuple[str, int, int] | None
    source: tuple[str, int] | None
    roaming: bool
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    facts: tuple[float, float, float, float, float, float]
    staged: list[tuple[bytes, bool]]
    sessions: list[FrozenKeypair]

    def __repr__(self) -> str:
        return f"FrozenPeer({self.id}, {self.sessions})"


class Frozen(msgspec.Struct):
    """The whole blob."""

    format: str
    version: int
    boot_id: str
    frozen_at: float
    peers: list[FrozenDataPlanePeer]


class _Preamble(msgspec.Struct):
    format: str
    version: int
    boot_id: str


def pack(peers: list[DataPlanePeer], *, boot_id: str, now: float) -> bytes:
    """As secret as the keys in it."""
    return msgspec.msgpack.encode(Frozen(FORMAT, VERSION, boot_id, now, [_freeze(peer) for peer in peers]))


def parse(blob: bytes, *, boot_id: str) -> Frozen:
    """ValueError if it is not ours, of another version or boot, or damaged."""
    try:
        preamble = msgspec.msgpack.decode(blob, type=_Preamble)
        if preamble.format != FORMAT:
            raise ValueError("this is no blob of a data plane")
        if preamble.version != VERSION:
            raise ValueError(f"the blob has version {preamble.version}, this program reads {VERSION}")
        if preamble.boot_id != boot_id:
            raise ValueError("the blob is from before the last boot")
        return msgspec.msgpack.decode(blob, type=Frozen)
    except msgspec.DecodeError as error:
        raise ValueError(f"the blob is damaged: {error}") from error


def check(frozen: Frozen, *, known: Collection[int], indices: Collection[int]) -> None:
    """ValueError if anything in it can't be revived beside the peers and local indices that are there already."""
    peers: set[int] = set()
    seen = set(indices)
    for each in frozen.peers:
        if each.id in known or each.id in peers or each.id <= 0:
            raise ValueError(f"peer {each.id} is here already")
        peers.add(each.id)
        revive(each, DataPlanePeer(PeerId(each.id)))
        if len({one.slot for one in each.sessions}) != len(each.sessions):
            raise ValueError("the blob holds a slot twice")
        for one in each.sessions:
            keypair = one.keypair()
            ReplayWindow.thaw(one.greatest, one.window)
            for index in (keypair.local_index, keypair.remote_index):
                if not 0 <= index < 1 << 32:
                    raise ValueError(f"an index has 32 bits: {index:#x}")
            if keypair.local_index in seen:
                raise ValueError(f"local index {keypair.local_index:#010x} is in use")
            seen.add(keypair.local_index)


def skipped(counter: int, *, frozen_at: float, now: float) -> int:
    """The counter to go on with; `now` on the clock of `frozen_at`."""
    return counter + SKIP + int(max(0.0, now - frozen_at) * SKIP_PER_SECOND)


def revive(frozen: FrozenDataPlanePeer, peer: DataPlanePeer) -> None:
    """Everything but the sessions, into a fresh peer. ValueError if it makes no sense."""
    if frozen.endpoint is not None:
        peer.move(*socket_address(Endpoint(*frozen.endpoint)))
        if frozen.source is not None:
            source = Source(*frozen.source)
            if not 0 <= source.ifindex < 1 << 31:
                raise ValueError(f"no interface index: {source.ifindex}")
            peer.set_source(source)
    peer.roaming = frozen.roaming
    peer.rx_bytes, peer.tx_bytes = frozen.rx_bytes, frozen.tx_bytes
    peer.rx_packets, peer.tx_packets = frozen.rx_packets, frozen.tx_packets
    (
        peer.data_sent,
        peer.any_sent,
        peer.data_received,
        peer.any_received,
        peer.unanswered_since,
        peer.unacknowledged_since,
    ) = frozen.facts
    peer.staged.extend(Staged(packet, outer_df) for packet, outer_df in frozen.staged)


def revive_session(frozen: FrozenKeypair, session: Keypair, *, frozen_at: float, now: float) -> None:
    """State beyond the keypair. ValueError if the window is damaged."""
    session.window = ReplayWindow.thaw(frozen.greatest, frozen.window)
    session.counter = skipped(frozen.counter, frozen_at=frozen_at, now=now)
    session.sends, session.renewal_asked = frozen.sends, frozen.renewal_asked


def suite_named(name: str) -> Suite:
    """ValueError if there is none."""
    for suite in Suite:
        if suite.value == name:
            return suite
    raise ValueError(f"the blob names a suite that is not known here: {name}")


def _freeze(peer: DataPlanePeer) -> FrozenDataPlanePeer:
    facts, endpoint, source = peer.report(), peer.endpoint, peer.source
    return FrozenDataPlanePeer(
        peer.id,
        None if endpoint is None else (endpoint.host, endpoint.port, endpoint.scope_id),
        None if source is None else (source.host, source.ifindex),
        peer.roaming,
        peer.rx_bytes,
        peer.tx_bytes,
        peer.rx_packets,
        peer.tx_packets,
        (
            facts.data_sent,
            facts.any_sent,
            facts.data_received,
            facts.any_received,
            facts.unanswered_since,
            facts.unacknowledged_since,
        ),
        [(staged.packet, staged.outer_df) for staged in peer.staged],
        [_freeze_session(slot, session) for slot in SLOTS if (session := getattr(peer, slot)) is not None],
    )


def _freeze_session(slot: str, session: Keypair) -> FrozenKeypair:
    keypair = session.keypair
    greatest, window = session.window.freeze()
    return FrozenKeypair(
        slot,
        keypair.suite.value,
        int(keypair.role),
        keypair.local_index,
        keypair.remote_index,
        keypair.send_key,
        keypair.receive_key,
        keypair.birth,
        session.counter,
        session.sends,
        session.renewal_asked,
        greatest,
        window,
    )
