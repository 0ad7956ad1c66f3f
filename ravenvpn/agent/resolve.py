"""DNS names of endpoints: resolved, refreshed, and the last answer kept while the resolver fails.

A gateway's public address may be a DNS name (a home with a changing address, a load balancer). An answer stays in
force until a newer one replaces it, so that a failing resolver does not take a working tunnel down.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)

REFRESH = 60.0  # seconds between look-ups; getaddrinfo(3) returns no TTL, and dynamic DNS commonly sets a minute
RETRY = 5.0  # seconds after a failed look-up
MAX_ADDRESSES = 8  # addresses used of one name; each is one more endpoint to try before a handshake succeeds


def is_literal(host: str) -> bool:
    """Return whether `host` is an IPv4 or IPv6 address and needs no resolver."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class _ResolvedName:
    """One watched name."""

    addresses: tuple[str, ...] = ()  # the last good answer, in the resolver's order
    task: asyncio.Task[None] | None = None  # refreshes it; cancelled when the name is no longer watched
    failing: bool = False  # the last look-up failed


class Resolver:
    """Resolve a set of names again and again on the running loop.

    `on_change` is called on the loop whenever the addresses of a name differ from those before, in whatever order.
    `refresh` and `retry` are seconds between look-ups, after a good and after a failed one.
    """

    def __init__(self, on_change: Callable[[], None], *, refresh: float = REFRESH, retry: float = RETRY) -> None:
        self._on_change, self._refresh, self._retry = on_change, refresh, retry
        self._entries: dict[str, _ResolvedName] = {}

    def set_names(self, names: Iterable[str]) -> None:
        """Resolve exactly these names from now on; literal addresses among them are ignored. Needs a running loop."""
        wanted = {name for name in names if not is_literal(name)}
        for name in self._entries.keys() - wanted:
            task = self._entries.pop(name).task
            if task is not None:
                task.cancel()
        for name in wanted - self._entries.keys():
            entry = self._entries[name] = _ResolvedName()
            entry.task = asyncio.get_running_loop().create_task(self._refresh_forever(name, entry))

    def lookup(self, host: str) -> tuple[str, ...]:
        """Return the addresses of `host`: itself if literal, else both families in the resolver's order.

        Empty for a name that was never resolved; no look-up happens here."""
        if is_literal(host):
            return (host,)
        entry = self._entries.get(host)
        return entry.addresses if entry else ()

    def failing(self) -> list[str]:
        """Return the names whose last look-up failed, sorted."""
        return sorted(name for name, entry in self._entries.items() if entry.failing)

    def close(self) -> None:
        """Cancel all look-ups and drop all answers."""
        self.set_names(())

    async def _refresh_forever(self, name: str, entry: _ResolvedName) -> None:
        """Keep one entry current until cancelled. getaddrinfo(3) blocks, so the loop runs it in its thread pool."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                answers = await loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            except (OSError, UnicodeError) as error:
                if not entry.failing:
                    log.warning(
                        "endpoint %s cannot be resolved: %s; its last addresses stay in use; check DNS on this host",
                        name,
                        error,
                    )
                entry.failing = True
                await asyncio.sleep(self._retry)
                continue
            entry.failing = False
            addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))[:MAX_ADDRESSES]
            # Round robin DNS changes the order at every answer, which is no reason to call peers anew.
            if set(addresses) != set(entry.addresses):
                log.info("endpoint %s resolves to %s", name, ", ".join(addresses))
                entry.addresses = addresses
                self._on_change()
            await asyncio.sleep(self._refresh)
