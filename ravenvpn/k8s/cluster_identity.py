"""Identity of a cluster: the UID of its namespace kube-system, which no two clusters share.

The UID names the mesh unless the configuration does, and tells a cluster that was set up anew behind the same address
from the one before (the convention of cluster-api, OpenTelemetry's `k8s.cluster.uid` and others).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from ravenvpn.backoff import Backoff
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import NAMESPACES, ApiError

log = logging.getLogger(__name__)


class OtherClusterError(Exception):
    """The API server at our address belongs to another cluster than before."""


class ClusterIdentity:
    """Reads the UID of the cluster behind `client`."""

    def __init__(self, client: Client, draw: Callable[[], float]) -> None:
        """`draw` draws evenly from 0.0 to 1.0, for the jitter between attempts."""
        self._client, self._draw = client, draw
        self._retry_now = asyncio.Event()
        self.uid = ""  # as last read; "" before the first answer
        self.error = ""  # why the last attempt of `read` failed; "" after a success

    def retry_now(self) -> None:
        """End the delay before the next attempt of `read`."""
        self._retry_now.set()

    async def read(self) -> str:
        """Return the UID; retries with back-off until the API server answers. Each new error is logged once."""
        backoff = Backoff(self._draw)
        while True:
            self._retry_now.clear()
            try:
                self.uid = await self._request()
                self.error = ""
                return self.uid
            except ApiError as error:
                if str(error) != self.error:
                    log.warning("namespace kube-system cannot be read: %s; retrying", error)
                self.error = str(error)
                delay = backoff.delay(error.retry_after or 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._retry_now.wait()

    async def verify(self) -> None:
        """Raise OtherClusterError if the UID is not the one that `read` returned, ApiError without an answer.

        To be called whenever a server answers again that was away.
        """
        if await self._request() != self.uid:
            raise OtherClusterError

    async def _request(self) -> str:
        """Read the UID, once. ApiError "Malformed" if the namespace has none."""
        uid = (await self._client.get(NAMESPACES, "kube-system")).get("metadata", {}).get("uid")
        if not isinstance(uid, str) or not uid:
            raise ApiError("namespace kube-system has no UID", reason="Malformed")
        return uid
