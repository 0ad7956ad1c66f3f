"""The three key slots of a peer, compared with a model of the rules in wireguard-go and the Linux kernel."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.crypto.aead import Suite
from ravenvpn.dataplane.contract import KeypairRetired, KeyPromoted, NewKeypair, PeerId, Role, Timing
from ravenvpn.dataplane.events import CounterSet, EventQueue
from ravenvpn.dataplane.keypairs import KeypairTable
from ravenvpn.dataplane.peers import DataPlanePeer


@dataclass
class Model:
    """The slots by name, and the indices of retired keys."""

    previous: int | None = None
    current: int | None = None
    next: int | None = None
    retired: set[int] = field(default_factory=set)

    def leave(self, index: int | None) -> None:
        if index is not None:
            self.retired.add(index)

    def initiator(self, index: int) -> None:
        if self.next is not None:
            self.leave(self.previous)
            self.leave(self.current)
            self.previous, self.next = self.next, None
        else:
            self.leave(self.previous)
            self.previous = self.current
        self.current = index

    def responder(self, index: int) -> None:
        self.leave(self.next)
        self.leave(self.previous)
        self.next, self.previous = index, None

    def confirmed(self) -> None:
        self.leave(self.previous)
        self.previous, self.current, self.next = self.current, self.next, None

    def dropped(self) -> None:
        for index in (self.previous, self.current, self.next):
            self.leave(index)
        self.previous = self.current = self.next = None


@given(st.lists(st.sampled_from(["initiator", "responder", "confirmed", "dropped"]), max_size=20))
def test_slots_rotate_as_in_the_reference(events):
    queue = EventQueue(CounterSet())
    table, peer, model = KeypairTable(queue, Timing()), DataPlanePeer(PeerId(1)), Model()
    for index, event in enumerate(events):
        keypair = NewKeypair(
            Suite.CHACHA20POLY1305,
            Role.INITIATOR if event == "initiator" else Role.RESPONDER,
            index, 1000 + index, bytes(32), bytes(32), 1.0,
        )  # fmt: skip
        expected = []
        if event in ("initiator", "responder"):
            table.install(peer, keypair)
            getattr(model, event)(index)
        elif event == "dropped":
            table.drop_all(peer)
            model.dropped()
        elif peer.next is not None:
            expected = [KeyPromoted(PeerId(1), model.next)]
            table.promote(peer.next)
            model.confirmed()
        slots = {
            name: None if (found := getattr(peer, name)) is None else found.keys.local_index
            for name in ("previous", "current", "next")
        }
        assert slots == {"previous": model.previous, "current": model.current, "next": model.next}
        assert set(table.by_index) == {index for index in slots.values() if index is not None}
        reported = queue.drain(0)
        assert {e.local_index for e in reported if isinstance(e, KeypairRetired)} == model.retired
        assert [e for e in reported if isinstance(e, KeyPromoted)] == expected
        model.retired.clear()


def test_a_keypair_does_not_show_its_keys():
    keypair = NewKeypair(Suite.AES256GCM, Role.INITIATOR, 1, 2, b"send-key" * 4, b"recv-key" * 4, 1.0)
    assert "send-key" not in repr(keypair)
    assert "recv-key" not in repr(keypair)
