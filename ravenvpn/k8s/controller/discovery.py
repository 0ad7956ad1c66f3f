"""Discovery: facts about the cluster that are read now and then instead of watched.

These are the name of the mesh, whether Calico's resources are served, which fields the served definition of the
Gateway has in its status, and when yurt-manager last renewed its Lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ravenvpn.backoff import Backoff
from ravenvpn.errors import ClusterError
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller import decode
from ravenvpn.k8s.lease import read
from ravenvpn.k8s.resource import BLOCK_AFFINITIES, CRDS, GATEWAYS, LEASES, NAMESPACES, ApiError
from ravenvpn.mesh.model import DEFAULT_MESH

log = logging.getLogger(__name__)

# Seconds between two reads. Definitions change when an operator installs something; the Lease is renewed every few
# seconds by a running yurt-manager.
DEFINITION_INTERVAL = 60.0
LEASE_INTERVAL = 15.0
GATEWAY_DEFINITION = f"{GATEWAYS.plural}.{GATEWAYS.group}"
SYSTEM_NAMESPACE = "kube-system"  # its UID names the mesh, and yurt-manager's Lease is in it


class Discovery:
    """Reads the facts as long as `run` runs; each attribute is None until it was read once."""

    def __init__(self, client: Client, on_change: Callable[[], None], draw: Callable[[], float]) -> None:
        """`on_change` is called when a fact differs from the last read; `draw` draws evenly from 0.0 to 1.0."""
        self.extra_fields: frozenset[str] | None = (
            None  # those of `decode.EXTRA_FIELDS` that the Gateway's status has
        )
        self.calico: bool | None = None  # Calico's resources are served
        self.mesh: str | None = None  # name of the mesh
        self.lease_renewed: float | None = None  # of yurt-manager's Lease, seconds since 1970; None: it has no Lease
        self.lease_known = False  # the Lease was read, or the API server said that it does not exist or is forbidden
        self.poll_lease = False  # set by the controller while the Lease matters; reading it costs a request
        self._client, self._on_change, self._draw = client, on_change, draw

    @property
    def complete(self) -> bool:
        """Whether every fact was read at least once, the Lease excepted."""
        return self.extra_fields is not None and self.calico is not None and self.mesh is not None

    async def run(self) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll_definitions(), name="discovery")
            tasks.create_task(self._poll_lease(), name="yurt-manager's Lease")

    async def _poll_definitions(self) -> None:
        """Read the definitions every `DEFINITION_INTERVAL` seconds, with back-off while the API server refuses."""
        backoff = Backoff(self._draw)
        while True:
            before = (self.extra_fields, self.calico, self.mesh)
            try:
                await self._read_definitions()
                backoff.reset()
                wait = DEFINITION_INTERVAL
            except ApiError as error:
                wait = backoff.delay(error.retry_after or 0.0)
                log.warning("discovery of the served resources failed: %s; next attempt in %.0f s", error, wait)
            if before != (self.extra_fields, self.calico, self.mesh):
                self._on_change()
            await asyncio.sleep(wait)

    async def _read_definitions(self) -> None:
        """Read all facts but the Lease.

        Raises ApiError if the API server does not answer; facts that were read before it stay.
        """
        if self.mesh is None:
            self.mesh = await self._mesh_name()
        self.calico = bool(await self._client.served(BLOCK_AFFINITIES.group))
        try:
            fields = decode.extra_status_fields(await self._client.get(CRDS, GATEWAY_DEFINITION))
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            # Not defined: there are no Gateways to write. Forbidden: a field that is not served would be pruned, and
            # the controller would write it again for ever.
            fields = frozenset()
            if error.status == 403 and self.extra_fields is None:
                log.warning(
                    "reading CustomResourceDefinition %s is forbidden: %s; no conditions are written to Gateways; "
                    "grant get on it to the controller's service account",
                    GATEWAY_DEFINITION,
                    error,
                )
        if fields != self.extra_fields:
            has = ", ".join(sorted(fields)) or "no conditions, so none are written"
            log.info("the served definition of the Gateway has in its status: %s", has)
        self.extra_fields = fields

    async def _mesh_name(self) -> str:
        """Return the UID of namespace kube-system, from which agents derive the same name."""
        try:
            namespace = await self._client.get(NAMESPACES, SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            log.warning(
                "namespace %s cannot be read: %s; the mesh gets the name %s, which only conflicts depend on here",
                SYSTEM_NAMESPACE,
                error,
                DEFAULT_MESH,
            )
            return DEFAULT_MESH
        return str(namespace["metadata"]["uid"])

    async def _poll_lease(self) -> None:
        """Read the Lease every `LEASE_INTERVAL` seconds while `poll_lease` is set."""
        while True:
            if self.poll_lease:
                before = self.lease_renewed
                await self.read_lease()
                if self.lease_renewed != before:
                    self._on_change()
            await asyncio.sleep(LEASE_INTERVAL)

    async def read_lease(self) -> bool:
        """Read when yurt-manager last renewed its Lease; False if the API server did not answer.

        A Lease that does not exist, may not be read, or is malformed counts as not renewed.
        """
        try:
            document = await self._client.get(LEASES.within(SYSTEM_NAMESPACE), decode.YURT_MANAGER)
            self.lease_renewed = decode.time_or_zero(read(document).renewed)
        except ApiError as error:
            if error.status not in (403, 404):
                return False
            self.lease_renewed = None
        except ClusterError as error:
            log.warning("Lease %s/%s: %s; it counts as not renewed", SYSTEM_NAMESPACE, decode.YURT_MANAGER, error)
            self.lease_renewed = None
        self.lease_known = True
        return True
