"""Endpoints that are names: looked up, looked up again, and kept when the resolver is silent.

A gateway's public address may be a DNS name (a home with a changing address, a load balancer). An answer that once
was good stays in force until a newer one replaces it: a dead resolver must not take a working tunnel down.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)

REFRESH = 60.0  # seconds; getaddrinfo tells no TTL, and a minute is what dynamic DNS services commonly set
RETRY = 5.0  # after a failure
MAX_ADDRESSES = 8  # of one name; more candidates than this would only make a hand-over slower


def is_literal(host: str) -> bool:
    """Whether `host` is an address, of either family, and needs no resolver."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class _ResolvedName:
    addresses: tuple[str, ...] = ()
    task: asyncio.Task[None] | None = None
    failing: bool = False


class Resolver:
    """Keeps the addresses of the names it was told to watch; `on_change` is called when an answer differs."""

    def __init__(self, on_change: Callable[[], None], *, refresh: float = REFRESH, retry: float = RETRY) -> None:
        self._on_change, self._refresh, self._retry = on_change, refresh, retry
        self._entries: dict[str, _ResolvedName] = {}

    def watch(self, names: Iterable[str]) -> None:
        """Watch exactly these names from now on. Needs a running loop."""
        wanted = {name for name in names if not is_literal(name)}
        for name in self._entries.keys() - wanted:
            task = self._entries.pop(name).task
            if task is not None:
                task.cancel()
        for name in wanted - self._entries.keys():
            entry = self._entries[name] = _ResolvedName()
            entry.task = asyncio.get_running_loop().create_task(self._follow(name, entry))

    def addresses(self, host: str) -> tuple[str, ...]:
        """What `host` stands for right now: itself if literal, both families in the resolver's order otherwise."""
        if is_literal(host):
            return (host,)
        entry = self._entries.get(host)
        return entry.addresses if entry else ()

    def failing(self) -> list[str]:
        """Names that could not be resolved at the last try."""
        return sorted(name for name, entry in self._entries.items() if entry.failing)

    def close(self) -> None:
        self.watch(())

    async def _follow(self, name: str, entry: _ResolvedName) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                answers = await loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            except (OSError, UnicodeError) as error:
                if not entry.failing:
                    log.warning("cannot resolve %s: %s", name, error)
                entry.failing = True
                await asyncio.sleep(self._retry)
                continue
            entry.failing = False
            addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))[:MAX_ADDRESSES]
            if set(addresses) != set(entry.addresses):
                log.info("%s is %s", name, ", ".join(addresses))
                entry.addresses = addresses
                self._on_change()
            await asyncio.sleep(self._refresh)
