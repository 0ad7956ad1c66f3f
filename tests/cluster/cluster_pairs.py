"""Datagrams from every pod to every pod at once: which pairs reach each other, and with which source address.

All sockets belong to this process, one per pod and address family, so a round takes milliseconds and starts no
process.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from ravenvpn.lab.host import Pod

PORT = 9100
ROUND = 0.5  # seconds that a datagram may take before its pair counts as missing
_FRAME = struct.Struct("!IHHB")  # round, sender, receiver, family


class Pair(NamedTuple):
    sender: str
    receiver: str
    version: int


class Pairs:
    """Use as `with Pairs(pods) as pairs:`. `across` leaves out the pairs within a region."""

    def __init__(self, pods: Sequence[Pod], *, across: bool = False) -> None:
        self.port = PORT
        self._pods = pods
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        self._round = 0
        self.wanted = [
            (one, other, version)
            for (one, sender), (other, receiver) in itertools.permutations(enumerate(pods), 2)
            if not across or sender.node.region is not receiver.node.region
            for version in (4, 6)
        ]
        for number, pod in enumerate(pods):
            for version in (4, 6):
                made = pod.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
                made.bind((str(pod.v4 if version == 4 else pod.v6), PORT))
                made.setblocking(False)
                self._sockets[number, version] = made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for made in self._sockets.values():
            made.close()

    def missing(self) -> list[Pair]:
        """Send one datagram for each pair.

        Return the pairs whose datagram did not arrive with the sender's own address.
        """
        self._round += 1
        waiting = set(self.wanted)
        for one, other, version in self.wanted:
            target = self._pods[other]
            with contextlib.suppress(OSError):  # no route yet
                self._sockets[one, version].sendto(
                    _FRAME.pack(self._round, one, other, version),
                    (str(target.v4 if version == 4 else target.v6), PORT),
                )
            self._take_in(waiting, 0)
        deadline = time.monotonic() + ROUND
        while waiting and (left := deadline - time.monotonic()) > 0:
            self._take_in(waiting, left)
        return [Pair(self._pods[a].name, self._pods[b].name, version) for a, b, version in sorted(waiting)]

    def until_complete(
        self, patience: float, since: float | None = None, also: Callable[[], None] = lambda: None
    ) -> float:
        """Run rounds until one is complete.

        Return the seconds from `since` (or from now) to the end of that round.
        """
        begin = time.monotonic() if since is None else since
        while missing := self.missing():
            also()
            if time.monotonic() - begin > patience:
                raise AssertionError(
                    f"after {patience:g} s {len(missing)} of {len(self.wanted)} pairs are missing: "
                    + ", ".join(f"{p.sender} → {p.receiver} (IPv{p.version})" for p in missing[:12])
                )
        return time.monotonic() - begin

    def _take_in(self, waiting: set[tuple[int, int, int]], patience: float) -> None:
        readable, _, _ = select.select(list(self._sockets.values()), [], [], patience)
        for made in readable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        data, source = made.recvfrom(2048)
                    except ConnectionError:
                        continue  # ICMP error caused by an earlier datagram
                    except BlockingIOError:
                        break
                    number, one, other, version = _FRAME.unpack(data)
                    own = self._pods[one].v4 if version == 4 else self._pods[one].v6
                    if number == self._round and source[0] == str(own):
                        waiting.discard((one, other, version))
