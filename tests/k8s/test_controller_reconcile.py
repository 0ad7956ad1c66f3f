"""The reconcile queue: a failed write is retried."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from controller_world import EVERYTHING, Cluster, gateway, node, tunnel

from ravenvpn.k8s.controller.decide import Decision
from ravenvpn.k8s.controller.reconcile import ReconcileQueue
from ravenvpn.k8s.controller.writer import NotLeading


class Writer:
    """Refuses the first write with NotLeading, as if the Lease had been renewed late."""

    def __init__(self) -> None:
        self.applied: list[str] = []

    async def apply(self, decision: Decision) -> None:
        self.applied.append(decision.name)
        if len(self.applied) == 1:
            raise NotLeading


async def test_a_write_refused_for_an_expired_lease_is_retried() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    writer: Any = Writer()
    queue = ReconcileQueue(cluster.cache, writer, "test", lambda _: (), draw=lambda: 0.0, wall=time.time)
    wake = asyncio.Event()
    await queue.reconcile(EVERYTHING, wake.set)
    await asyncio.wait_for(wake.wait(), 5)
    assert cluster.cache.dirty == {"factory"}
    await queue.reconcile(EVERYTHING, wake.set)
    await asyncio.sleep(0)
    assert writer.applied == ["factory", "factory"]
    queue.close()
