"""The collections the controller follows, and whether what is known of them is good enough to act on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from ravenvpn.k8s.client import BLOCK_AFFINITIES, CONFIG_MAPS, GATEWAYS, NODES, PEERS, SERVICES, Client
from ravenvpn.k8s.controller.cache import ClusterCache, ObjectKind
from ravenvpn.k8s.controller.decode import RAVEN_CFG
from ravenvpn.k8s.controller.service_addresses import TYPE_LABEL
from ravenvpn.k8s.controller.writer import NAMESPACE, SLICES
from ravenvpn.k8s.resource import Resource
from ravenvpn.k8s.watch import Connection, Reflector
from ravenvpn.mesh.model import GATEWAY_LABEL

# Seconds since a watch broke off after which a replica does not stand for the Lease, and after which it gives it up.
PATIENCE = 10.0
PATIENCE_OF_LEADER = 60.0
ESSENTIAL = (ObjectKind.GATEWAY, ObjectKind.NODE)


@dataclass(frozen=True, slots=True)
class Informer:
    """A collection and the part of it that matters."""

    resource: Resource
    labels: str = ""
    fields: str = ""


FOLLOWED = {
    ObjectKind.GATEWAY: Informer(GATEWAYS),
    # A Node that loses the label leaves the selection, which is an event of its own.
    ObjectKind.NODE: Informer(NODES, labels=GATEWAY_LABEL),
    ObjectKind.PEER: Informer(PEERS),
    ObjectKind.CONFIG: Informer(CONFIG_MAPS.within(NAMESPACE), fields=f"metadata.name={RAVEN_CFG}"),
    ObjectKind.SERVICE: Informer(SERVICES.within(NAMESPACE), labels=f"{GATEWAY_LABEL},{TYPE_LABEL}"),
    ObjectKind.SLICE: Informer(SLICES, labels=f"{GATEWAY_LABEL},{TYPE_LABEL}"),
    ObjectKind.BLOCK: Informer(BLOCK_AFFINITIES),
}


class Informers:
    """Fills the view, and calls `on_change` whenever it grew or the connection changed."""

    def __init__(
        self,
        client: Client,
        view: ClusterCache,
        on_change: Callable[[], None],
        *,
        draw: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._view, self._on_change = client, view, on_change
        self._draw, self._wall = draw, wall
        self._reflectors: dict[ObjectKind, Reflector] = {}
        self._complete: set[ObjectKind] = set()
        self._tasks: asyncio.TaskGroup | None = None

    def connections(self) -> dict[ObjectKind, Connection]:
        return {kind: reflector.connection for kind, reflector in self._reflectors.items()}

    def fit(self, patience: float = PATIENCE) -> bool:
        """Whether what matters most is known, and fresh: a replica that sees nothing must not lead."""
        return all(kind in self._complete and self._lost_for(kind) < patience for kind in ESSENTIAL)

    @property
    def settled(self) -> bool:
        """Whether everything is known that can be: the rest may be forbidden here, or not exist."""
        return self.fit() and all(
            kind in self._complete or reflector.connection.error for kind, reflector in self._reflectors.items()
        )

    def _lost_for(self, kind: ObjectKind) -> float:
        lost = self._reflectors[kind].connection.lost_since
        return 0.0 if lost is None else self._wall() - lost

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for kind in ObjectKind:
                if kind is not ObjectKind.BLOCK:
                    self._begin(kind)

    def follow_blocks(self) -> None:
        """Calico's resources are served here."""
        if ObjectKind.BLOCK not in self._reflectors and self._tasks is not None:
            self._begin(ObjectKind.BLOCK)

    def _begin(self, kind: ObjectKind) -> None:
        assert self._tasks is not None
        followed = FOLLOWED[kind]
        self._reflectors[kind] = Reflector(
            self._client,
            followed.resource,
            labels=followed.labels,
            fields=followed.fields,
            draw=self._draw,
            wall=self._wall,
            on_connection=self._on_change,
        )
        self._tasks.create_task(self._follow(kind), name=f"follow {followed.resource}")

    async def _follow(self, kind: ObjectKind) -> None:
        async with aclosing(self._reflectors[kind].follow()) as batches:
            async for batch in batches:
                self._view.take(kind, batch.changed, batch.deleted)
                if batch.complete:
                    self._complete.add(kind)
                self._on_change()
