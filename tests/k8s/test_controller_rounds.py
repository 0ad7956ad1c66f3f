"""Rounds of deciding and writing: nothing that was decided is forgotten."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from controller_world import EVERYTHING, Cluster, gateway, node, tunnel

from ravenvpn.k8s.controller.decide import Decision
from ravenvpn.k8s.controller.reconcile import ReconcileQueue
from ravenvpn.k8s.controller.writer import NotLeading


class Writer:
    """Not leading at first, as for a moment in which the Lease was renewed late."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def carry_out(self, decision: Decision) -> None:
        self.asked.append(decision.name)
        if len(self.asked) == 1:
            raise NotLeading


async def test_a_write_that_came_too_late_for_the_lease_is_tried_again() -> None:
    cluster = Cluster(gateway("factory", [tunnel("edge-1")]), node("edge-1", "factory"))
    writer: Any = Writer()
    rounds = ReconcileQueue(cluster.view, writer, "test", lambda _: (), draw=lambda: 0.0, wall=time.time)
    wake = asyncio.Event()
    await rounds.look(EVERYTHING, wake.set)
    await asyncio.wait_for(wake.wait(), 5)
    assert cluster.view.touched == {"factory"}
    await rounds.look(EVERYTHING, wake.set)
    await asyncio.sleep(0)
    assert writer.asked == ["factory", "factory"]
    rounds.close()
