"""Informers: watch the collections the controller needs, fill the cache, and say whether it may be acted on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller.cache import ClusterCache, ObjectKind
from ravenvpn.k8s.controller.decode import RAVEN_CFG
from ravenvpn.k8s.controller.decode_services import TYPE_LABEL
from ravenvpn.k8s.controller.options import NAMESPACE
from ravenvpn.k8s.resource import (
    BLOCK_AFFINITIES,
    CONFIG_MAPS,
    ENDPOINT_SLICES,
    GATEWAYS,
    NODES,
    PEERS,
    SERVICES,
    Resource,
)
from ravenvpn.k8s.watch import Connection, Reflector
from ravenvpn.mesh.model import GATEWAY_LABEL

# Seconds that a watch of an essential kind may be broken: a replica with an older cache does not stand for the Lease.
MAX_DISCONNECTED = 10.0
# The same for a leader, after which it gives up the Lease. Longer, because the API server may just be restarting and
# another replica would see the same.
MAX_DISCONNECTED_LEADER = 60.0
ESSENTIAL = (ObjectKind.GATEWAY, ObjectKind.NODE)  # without them nothing can be elected


@dataclass(frozen=True, slots=True)
class Informer:
    """A collection, and which of its objects the API server should send."""

    resource: Resource
    labels: str = ""  # label selector
    fields: str = ""  # field selector


INFORMERS = {
    ObjectKind.GATEWAY: Informer(GATEWAYS),
    # When a Node loses the label, it leaves the selection: the watch delivers DELETED.
    ObjectKind.NODE: Informer(NODES, labels=GATEWAY_LABEL),
    ObjectKind.PEER: Informer(PEERS),
    ObjectKind.CONFIG: Informer(CONFIG_MAPS.within(NAMESPACE), fields=f"metadata.name={RAVEN_CFG}"),
    ObjectKind.SERVICE: Informer(SERVICES.within(NAMESPACE), labels=f"{GATEWAY_LABEL},{TYPE_LABEL}"),
    ObjectKind.SLICE: Informer(ENDPOINT_SLICES.within(NAMESPACE), labels=f"{GATEWAY_LABEL},{TYPE_LABEL}"),
    ObjectKind.BLOCK: Informer(BLOCK_AFFINITIES),
}


class Informers:
    """One reflector for each kind. All run on one event loop.

    A kind that cannot be listed, because it is forbidden or not defined, is retried for ever and does not hold up the
    others.
    """

    def __init__(
        self,
        client: Client,
        cache: ClusterCache,
        on_change: Callable[[], None],
        *,
        draw: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`on_change` is called after each batch of changes and when a connection comes or goes; `draw` draws evenly
        from 0.0 to 1.0, for the back-off; `wall` returns seconds since 1970."""
        self._client, self._cache, self._on_change = client, cache, on_change
        self._draw, self._wall = draw, wall
        self._reflectors: dict[ObjectKind, Reflector] = {}
        self._listed: set[ObjectKind] = set()  # kinds whose first list is complete
        self._tasks: asyncio.TaskGroup | None = None

    def connections(self) -> dict[ObjectKind, Connection]:
        """Return the state of each watch, for /readyz and metrics."""
        return {kind: reflector.connection for kind, reflector in self._reflectors.items()}

    def healthy(self, max_disconnected: float = MAX_DISCONNECTED) -> bool:
        """Whether Gateways and Nodes are listed, and their watches were broken for less than `max_disconnected`
        seconds. A replica that cannot see the cluster must not lead."""
        return all(kind in self._listed and self._disconnected_for(kind) < max_disconnected for kind in ESSENTIAL)

    @property
    def synced(self) -> bool:
        """Whether every kind is listed, or failed at least once: it may be forbidden or not defined here."""
        return self.healthy() and all(
            kind in self._listed or reflector.connection.error for kind, reflector in self._reflectors.items()
        )

    def _disconnected_for(self, kind: ObjectKind) -> float:
        """Return for how many seconds the watch of this kind has been broken; 0.0 if it is connected or never was."""
        lost = self._reflectors[kind].connection.lost_since
        return 0.0 if lost is None else self._wall() - lost

    async def run(self) -> None:
        """Watch every kind but Calico's until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for kind in ObjectKind:
                if kind is not ObjectKind.BLOCK:
                    self._start(kind)

    def start_blocks(self) -> None:
        """Watch Calico's BlockAffinities too, once discovery found that they are served. Idempotent."""
        if ObjectKind.BLOCK not in self._reflectors and self._tasks is not None:
            self._start(ObjectKind.BLOCK)

    def _start(self, kind: ObjectKind) -> None:
        """Start the reflector of one kind as a task of the group in `run`."""
        assert self._tasks is not None
        informer = INFORMERS[kind]
        self._reflectors[kind] = Reflector(
            self._client,
            informer.resource,
            labels=informer.labels,
            fields=informer.fields,
            draw=self._draw,
            wall=self._wall,
            on_connection=self._on_change,
        )
        self._tasks.create_task(self._fill(kind), name=f"inform {informer.resource}")

    async def _fill(self, kind: ObjectKind) -> None:
        """Feed the batches of one reflector into the cache.

        A reflector retries by itself and ends only when cancelled.
        """
        async with aclosing(self._reflectors[kind].follow()) as batches:
            async for batch in batches:
                self._cache.apply(kind, batch.changed, batch.deleted)
                if batch.complete:
                    self._listed.add(kind)
                self._on_change()
