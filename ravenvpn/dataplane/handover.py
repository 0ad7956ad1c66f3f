"""The hand-over format: the blob that `freeze` returns and `thaw` reads. Both bodies write and read the same bytes.

For session hand-over on restart; the tunnel has no caller yet.

A msgpack map (https://github.com/msgpack/msgpack/blob/master/spec.md), version 1. Integers are unsigned unless said,
`bin` is msgpack binary, times are float seconds of CLOCK_BOOTTIME:

    format      str    "ravenvpn-dataplane"
    version     int    1
    boot_id     str    /proc/sys/kernel/random/boot_id; the clock has another origin after a reboot
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
            renewal_asked   bool   a handshake was requested on receiving
            greatest        int    signed: greatest counter received, −1 if none
            window          bin    1,024 bytes, replay bitmap: 128 little-endian words of 64 bits; counter c is
                                   bit (c mod 64) of word (c div 64) mod 128

Unknown keys are ignored, all keys above are required. Routes, acceptance, own address and MTU are not part of it:
they follow from the plan, which the new process makes anyway.
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

# How far counters skip ahead on thawing: SKIP messages, and SKIP_PER_SECOND for each second since freezing. A blob
# that is thawed twice by mistake must not repeat a nonce that was used after the first time. The clock advances
# between the two, and no machine seals 2^23 messages a second.
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
        return f"FrozenKeypair({self.slot}, {self.local_index:#010x})"

    def keypair(self) -> NewKeypair:
        """Return the keypair without its state. Raises ValueError if a field is out of range."""
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
        return f"FrozenDataPlanePeer({self.id}, {self.sessions})"


class Frozen(msgspec.Struct):
    """The whole blob. The module docstring gives every field's meaning."""

    format: str
    version: int
    boot_id: str
    frozen_at: float
    peers: list[FrozenDataPlanePeer]


class _Preamble(msgspec.Struct):
    """The fields that are read first, whatever the version."""

    format: str
    version: int
    boot_id: str


def pack(peers: list[DataPlanePeer], *, boot_id: str, now: float) -> bytes:
    """Return the blob of these peers, which is as secret as the keys in it. `now` is on the body's clock."""
    return msgspec.msgpack.encode(Frozen(FORMAT, VERSION, boot_id, now, [_freeze(peer) for peer in peers]))


def parse(blob: bytes, *, boot_id: str) -> Frozen:
    """Return the content of a blob. Raises ValueError if it is no blob, of another version or boot, or damaged."""
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
    """Raise ValueError if a peer can not be restored beside the `known` peer ids and local `indices` in use."""
    peers: set[int] = set()
    seen = set(indices)
    for each in frozen.peers:
        if each.id in known or each.id in peers or each.id <= 0:
            raise ValueError(f"peer {each.id} is here already")
        peers.add(each.id)
        restore_peer(each, DataPlanePeer(PeerId(each.id)))
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
    """Return the counter to continue with; `now` and `frozen_at` are CLOCK_BOOTTIME seconds of the same boot."""
    return counter + SKIP + int(max(0.0, now - frozen_at) * SKIP_PER_SECOND)


def restore_peer(frozen: FrozenDataPlanePeer, peer: DataPlanePeer) -> None:
    """Restore everything but the keypairs into a new peer. Raises ValueError if a field is out of range."""
    if frozen.endpoint is not None:
        peer.set_address(*socket_address(Endpoint(*frozen.endpoint)))
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


def restore_keypair(frozen: FrozenKeypair, keypair: Keypair, *, frozen_at: float, now: float) -> None:
    """Restore the state of a keypair. Raises ValueError if the replay window is damaged."""
    keypair.window = ReplayWindow.thaw(frozen.greatest, frozen.window)
    keypair.counter = skipped(frozen.counter, frozen_at=frozen_at, now=now)
    keypair.sends, keypair.rekey_requested = frozen.sends, frozen.renewal_asked


def suite_named(name: str) -> Suite:
    """Return the suite of this name. Raises ValueError if there is none."""
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
        [_freeze_keypair(slot, keypair) for slot in SLOTS if (keypair := getattr(peer, slot)) is not None],
    )


def _freeze_keypair(slot: str, keypair: Keypair) -> FrozenKeypair:
    keys = keypair.keys
    greatest, window = keypair.window.freeze()
    return FrozenKeypair(
        slot,
        keys.suite.value,
        int(keys.role),
        keys.local_index,
        keys.remote_index,
        keys.send_key,
        keys.receive_key,
        keys.birth,
        keypair.counter,
        keypair.sends,
        keypair.rekey_requested,
        greatest,
        window,
    )
