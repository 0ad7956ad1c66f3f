"""The times at which routes appear and disappear, from rtnetlink notifications."""

from __future__ import annotations

import math
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator

from ravenvpn.lab.host import LabNode
from ravenvpn.mesh.hoststate import TABLE_REMOTE

PATIENCE = 5.0

# linux/rtnetlink.h
_RTMGRP_IPV4_ROUTE = 0x40
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTA_DST, _RTA_TABLE = 1, 15
_UNICAST = 1


class RouteWatch:
    """Record when IPv4 routes of table 9127 appear on and vanish from nodes: (node, prefix, there) → time."""

    def __init__(self, nodes: Iterable[LabNode]) -> None:
        self._sockets = {node.name: node.socket(socket.AF_NETLINK, socket.SOCK_RAW) for node in nodes}
        self._stop = threading.Event()
        self._told = threading.Condition()
        self._seen: dict[tuple[str, str, bool], float] = {}
        for sock in self._sockets.values():
            sock.bind((0, _RTMGRP_IPV4_ROUTE))
            sock.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="routes")

    def __enter__(self) -> RouteWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()

    def wait(self, node: str, prefix: str, there: bool, since: float) -> float:
        """Return the seconds from `since` to that change. Raises AssertionError if it does not happen in time."""
        key = (node, prefix, there)
        with self._told:
            told = self._told.wait_for(lambda: self._seen.get(key, 0.0) >= since, PATIENCE)
            assert told, f"{node}: {prefix} did not {'appear' if there else 'vanish'} within {PATIENCE} s"
            return self._seen[key] - since

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for name, sock in self._sockets.items():
                selector.register(sock, selectors.EVENT_READ, name)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    data = self._sockets[key.data].recv(1 << 16)
                    now = time.monotonic()
                    with self._told:
                        for prefix, there in _routes(data):
                            self._seen[key.data, prefix, there] = now
                        self._told.notify_all()


def _routes(data: bytes) -> Iterator[tuple[str, bool]]:
    at = 0
    while at + 16 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 6], "little")
        body = data[at + 16 : at + length]
        at += (length + 3) & ~3
        if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or body[7] != _UNICAST:
            continue
        attributes, bits = {}, body[1]
        rest = body[12:]
        while len(rest) >= 4:
            size = int.from_bytes(rest[:2], "little")
            attributes[int.from_bytes(rest[2:4], "little")] = rest[4:size]
            rest = rest[(size + 3) & ~3 :]
        if int.from_bytes(attributes.get(_RTA_TABLE, b""), "little") == TABLE_REMOTE and _RTA_DST in attributes:
            yield f"{socket.inet_ntoa(attributes[_RTA_DST])}/{bits}", kind == _RTM_NEWROUTE


def percentile(values: list[float], share: float) -> float:
    """Return the quantile by nearest rank: for a hundred values and 0.99 it is the second largest."""
    return sorted(values)[math.ceil(len(values) * share) - 1]
