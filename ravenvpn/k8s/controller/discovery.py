"""What the controller has to know of the cluster besides the objects it follows: asked now and then, not watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ravenvpn.backoff import Backoff
from ravenvpn.errors import ClusterError
from ravenvpn.k8s.client import CRDS, LEASES, NAMESPACES, ApiError, Client
from ravenvpn.k8s.controller import decode
from ravenvpn.k8s.lease import read
from ravenvpn.mesh.model import DEFAULT_MESH

log = logging.getLogger(__name__)

# Seconds between two looks.
DEFINITION_INTERVAL = 60.0
LEASE_INTERVAL = 15.0
GATEWAY_DEFINITION = "gateways.raven.openyurt.io"
CALICO = "crd.projectcalico.org"


class Discovery:
    """`added`: what of `facts.ADDED` the served Gateway has, None before anybody said. `on_change` is called when an
    answer differs from the last."""

    def __init__(self, client: Client, on_change: Callable[[], None], draw: Callable[[], float]) -> None:
        self.added: frozenset[str] | None = None
        self.calico: bool | None = None  # whether its resources are served
        self.mesh: str | None = None
        self.lease_renewed: float | None = None
        self.lease_known = False
        self.look_at_lease = False  # set where there is reason to
        self._client, self._on_change, self._draw = client, on_change, draw

    @property
    def known(self) -> bool:
        return self.added is not None and self.calico is not None and self.mesh is not None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_forever(), name="surroundings")
            tasks.create_task(self._watch_lease(), name="yurt-manager's Lease")

    async def _ask_forever(self) -> None:
        backoff = Backoff(self._draw)
        while True:
            before = (self.added, self.calico, self.mesh)
            try:
                await self._ask()
                backoff.reset()
                wait = DEFINITION_INTERVAL
            except ApiError as error:
                log.warning("what is served here cannot be found out: %s", error)
                wait = backoff.delay(error.retry_after or 0.0)
            if before != (self.added, self.calico, self.mesh):
                self._on_change()
            await asyncio.sleep(wait)

    async def _ask(self) -> None:
        if self.mesh is None:
            self.mesh = await self._mesh_name()
        self.calico = bool(await self._client.served(CALICO))
        try:
            declared = decode.added_fields(await self._client.get(CRDS, GATEWAY_DEFINITION))
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            declared = (
                frozenset()
            )  # without a definition there is nobody to write conditions of; forbidden: stay careful
            if error.status == 403 and self.added is None:
                log.warning("conditions are left out: %s", error)
        if declared != self.added:
            has = ", ".join(sorted(declared)) or "no conditions: none are written"
            log.info("the status of the served Gateway has %s", has)
        self.added = declared

    async def _mesh_name(self) -> str:
        """The UID of namespace kube-system, as agents have it."""
        try:
            namespace = await self._client.get(NAMESPACES, "kube-system")
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            log.warning("the mesh has no name of its own: %s", error)
            return DEFAULT_MESH
        return str(namespace["metadata"]["uid"])

    async def _watch_lease(self) -> None:
        while True:
            if self.look_at_lease:
                before = self.lease_renewed
                await self.ask_for_lease()
                if self.lease_renewed != before:
                    self._on_change()
            await asyncio.sleep(LEASE_INTERVAL)

    async def ask_for_lease(self) -> bool:
        """When yurt-manager renewed its Lease; whether that could be found out."""
        try:
            document = await self._client.get(LEASES.within("kube-system"), decode.YURT_MANAGER)
            self.lease_renewed = decode.time_or_epoch(read(document).renewed)
        except ApiError as error:
            if error.status not in (403, 404):
                return False
            self.lease_renewed = None
        except ClusterError as error:
            log.warning("%s", error)
            self.lease_renewed = None
        self.lease_known = True
        return True
