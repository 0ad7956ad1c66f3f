"""Several controllers: one leads at a time, and when it dies nobody notices but the Lease.

The API server's audit log is the witness: each process has a service account of its own, and none writes a Gateway
once another has written the Lease.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import pytest
import yaml
from control_plane import DEPLOY, ControlPlane
from controller_cluster import (
    KEY,
    RIGHTS,
    ControllerProcess,
    Region,
    administering,
    define,
    defined,
    eventually,
    pair,
)

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import CRDS, GATEWAYS, LEASES, NODES, Page
from ravenvpn.rfc3339 import format_micro_time

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # the first waits for its control plane besides

LEASE = "raven-vpn-controller"
QUICK = ("--lease-duration=4", "--renew-deadline=2", "--retry-period=0.5")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with defined(tmp_path_factory.mktemp("replicas")) as plane:
        yield plane


@pytest.fixture
async def region(plane: ControlPlane) -> AsyncIterator[Region]:
    async with administering(plane) as region:
        try:
            yield region
        finally:
            await region.drop(LEASES.within("kube-system"), LEASE)


class Write(NamedTuple):
    """A request as the audit log has it; the time is when it was answered."""

    at: float
    user: str
    resource: str


class Replicas:
    """Starts controllers, each under an account of its own with the rights of the one in deploy/."""

    def __init__(self, plane: ControlPlane, *arguments: str) -> None:
        self._plane, self._arguments = plane, arguments
        self._subject = secrets.token_hex(3)
        self.running: list[tuple[str, ControllerProcess]] = []
        self.all: list[str] = []

    def start(self) -> ControllerProcess:
        account = f"controller-{self._subject}-{len(self.all)}"
        documents = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _named(account)}]
        for document in yaml.safe_load_all(RIGHTS.read_text()):
            if document["kind"].endswith("Binding"):
                metadata = {**document["metadata"], "name": f"{document['metadata']['name']}-{account}"}
                subject = {"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}
                documents.append({**document, "metadata": metadata, "subjects": [subject]})
        self._plane.kubectl("apply", "--filename=-", input=yaml.safe_dump_all(documents))
        process = ControllerProcess(self._plane, *self._arguments, account=account, name=account)
        self.running.append((account, process))
        self.all.append(account)
        return process

    async def leader(self, within: float = 60.0) -> tuple[str, ControllerProcess]:
        async def look() -> tuple[str, ControllerProcess] | None:
            return next((one for one in self.running if one[1].leads), None)

        found = await eventually(look, lambda one: one is not None, within)
        assert found is not None
        return found

    def kill(self, process: ControllerProcess) -> None:
        process.kill()
        self.running = [one for one in self.running if one[1] is not process]

    def stop(self) -> None:
        for _, process in self.running:
            process.stop()
        self.running = []

    def writes(self) -> list[Write]:
        """Of Gateways and of the Lease, those that the API server took, in the order in which they were done."""
        found = []
        for event in self._plane.requests():
            user = event["user"]["username"].rpartition(":")[2]
            resource = event.get("objectRef", {}).get("resource")
            taken = event.get("responseStatus", {}).get("code") in (200, 201)
            wrote = event["verb"] in ("create", "update", "patch")
            if user in self.all and resource in ("gateways", "leases") and wrote and taken:
                found.append(Write(datetime.fromisoformat(event["stageTimestamp"]).timestamp(), user, resource))
        return sorted(found)

    def of_gateways(self, user: str = "") -> list[Write]:
        return [write for write in self.writes() if write.resource == "gateways" and user in ("", write.user)]

    def assert_one_writer_at_a_time(self, terms: int) -> None:
        """Whoever wrote a Gateway was the last who had written the Lease."""
        holder, wrote = "", set()
        for write in self.writes():
            if write.resource == "leases":
                holder = write.user
            else:
                assert write.user == holder, f"{write} while {holder} held the Lease"
                wrote.add(write.user)
        assert len(wrote) >= terms


def _named(name: str) -> dict[str, str]:
    return {"name": name, "namespace": "kube-system"}


class Witness:
    """Sees every version of a Gateway's status that there ever was."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self.versions = 0
        self.actives: set[tuple[tuple[str, str], ...]] = set()
        self.ready: set[str] = set()
        self.elected_since: set[str] = set()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        pages = [page async for page in self._client.list(GATEWAYS)]
        task = asyncio.create_task(self._watch(pages[-1]))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self, page: Page) -> None:
        portions = self._client.watch(GATEWAYS, resource_version=page.resource_version)
        async with aclosing(portions):
            async for events in portions:
                for kind, obj in events:
                    if kind == "MODIFIED" and obj["metadata"]["name"] == self._name:
                        self._see(obj["status"])

    def _see(self, status: dict[str, Any]) -> None:
        self.versions += 1
        self.actives.add(tuple((e["nodeName"], e["config"]["ravenvpn.io/epoch"]) for e in status["activeEndpoints"]))
        self.ready.add(next(c["status"] for c in status["conditions"] if c["type"] == "Ready"))
        self.elected_since |= {c["lastTransitionTime"] for c in status["conditions"]}


@asynccontextmanager
async def churn(region: Region, node: str) -> AsyncIterator[None]:
    """The plain node comes, goes and changes its address: every change is a status to write."""

    async def forever() -> None:
        for i in range(1_000_000):
            addresses = [{"type": "InternalIP", "address": f"10.0.1.{2 + i % 200}"}]
            await region.client.merge(NODES, node, {"status": {"addresses": addresses}}, subresource="status")
            await asyncio.sleep(0.1)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def leaders_die(plane: ControlPlane, region: Region, times: int, *arguments: str) -> float:
    """Kill the leader `times` times under churn; returns the longest time without a write, in seconds."""
    replicas = Replicas(plane, *arguments)
    try:
        for process in (replicas.start(), replicas.start()):
            await process.started()
        name, one, two = await pair(region)
        await eventually(lambda: region.active(name), [one], within=40)
        witness = Witness(region.client, name)
        async with witness.watching(), churn(region, two):
            for _ in range(times):
                account, leader = await replicas.leader()
                seen = witness.versions
                await eventually(_count(lambda: witness.versions), lambda found, seen=seen: found > seen)
                replicas.kill(leader)
                another = replicas.start()
                following, _ = await replicas.leader()
                assert following != account
                await another.started()
            seen = witness.versions
            await eventually(_count(lambda: witness.versions), lambda found: found > seen)
        replicas.assert_one_writer_at_a_time(times + 1)
        assert witness.actives == {((one, "1"),)}
        assert witness.ready == {"True"}
        assert len(witness.elected_since) == 1, "no condition ever turned"
        return max(later.at - earlier.at for earlier, later in itertools.pairwise(replicas.of_gateways()))
    finally:
        replicas.stop()


def _count(look: Callable[[], int]) -> Callable[[], Any]:
    async def counted() -> int:
        return look()

    return counted


async def test_a_leader_killed_five_times_flaps_nothing_and_never_do_two_write(
    plane: ControlPlane, region: Region
) -> None:
    gap = await leaders_die(plane, region, 5, *QUICK)
    print(f"longest time without a write, Lease of 4 s: {gap:.1f} s")


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_leader_killed_twenty_times_flaps_nothing_and_never_do_two_write(
    plane: ControlPlane, region: Region
) -> None:
    gap = await leaders_die(plane, region, 20)
    print(f"longest time without a write, Lease of 15 s: {gap:.1f} s")
    assert gap < 25


async def test_a_leader_that_slept_through_its_lease_writes_nothing_more(plane: ControlPlane, region: Region) -> None:
    replicas = Replicas(plane, *QUICK)
    try:
        for process in (replicas.start(), replicas.start()):
            await process.started()
        name, one, two = await pair(region)
        await eventually(lambda: region.active(name), [one], within=40)
        async with churn(region, two):
            sleeper, process = await replicas.leader()
            process.signal(signal.SIGSTOP)
            replicas.running.remove((sleeper, process))
            try:
                awake, _ = await replicas.leader()
                await eventually(_count(lambda: len(replicas.of_gateways(awake))), lambda n: n > 2)
                before = len(replicas.of_gateways(sleeper))
            finally:
                process.signal(signal.SIGCONT)
                replicas.running.append((sleeper, process))
            await eventually(_readyz(process), lambda text: f"leader: {awake}" in text)
            await asyncio.sleep(1.0)
        assert len(replicas.of_gateways(sleeper)) == before
        replicas.assert_one_writer_at_a_time(2)
    finally:
        replicas.stop()


def _readyz(process: ControllerProcess) -> Callable[[], Any]:
    async def look() -> str:
        return process.get("/readyz")[1]

    return look


async def test_a_leader_that_is_told_to_go_leaves_the_lease_to_the_next_at_once(
    plane: ControlPlane, region: Region
) -> None:
    replicas = Replicas(plane)  # with the Lease of 15 s, which nobody waits for
    try:
        for process in (replicas.start(), replicas.start()):
            await process.started()
        account, leader = await replicas.leader()
        began = time.monotonic()
        assert leader.stop() == 0
        replicas.running.remove((account, leader))
        await replicas.leader()
        assert time.monotonic() - began < 12
        lease = await region.client.get(LEASES.within("kube-system"), LEASE)
        assert lease["spec"]["leaseTransitions"] == 1
    finally:
        replicas.stop()


async def test_an_api_server_that_dies_and_comes_back_ends_nothing_and_moves_nothing(
    plane: ControlPlane, region: Region
) -> None:
    with ControllerProcess(plane, *QUICK, name="patient") as running:
        await running.started()
        name, one, two = await pair(region)
        await eventually(lambda: region.active(name), [one], within=40)
        before = await region.status(name)
        plane.kill()
        await eventually(_readyz(running), lambda text: "this replica leads" not in text)
        plane.start()
        await eventually(_readyz(running), lambda text: "this replica leads" in text, within=90)
        assert await region.status(name) == before
        await region.ready(one, False)
        await eventually(lambda: region.active(name), [two], within=60)
    assert "Traceback" not in running.log.read_text()


async def test_a_lease_that_client_go_holds_is_respected(plane: ControlPlane, region: Region) -> None:
    """Any holder counts, whatever wrote it."""
    spec = {
        "holderIdentity": "somebody_else",
        "leaseDurationSeconds": 3600,
        "acquireTime": format_micro_time(time.time()),
        "renewTime": format_micro_time(time.time()),
        "leaseTransitions": 7,
    }
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}, "spec": spec}
    await region.client.create(LEASES.within("kube-system"), body)
    with ControllerProcess(plane, name="standby") as standby:
        await eventually(_readyz(standby), lambda text: text.startswith("ok\nleader: somebody_else"), within=60)
        name, _, _ = await pair(region)
        await asyncio.sleep(3.0)
        assert await region.status(name) == {}


async def test_told_to_elect_it_does_whoever_else_writes(plane: ControlPlane, region: Region) -> None:
    with ControllerProcess(plane, "--elect=own", name="own") as own:
        await own.started()
        name, one, two = await pair(region)
        theirs = {"nodes": [], "activeEndpoints": [{"nodeName": two, "type": "tunnel"}]}
        await eventually(lambda: region.active(name), [one])
        await region.client.merge(
            GATEWAYS, name, {"status": theirs}, subresource="status", field_manager="yurt-manager"
        )
        # Whom they chose stays, as it is ready; what the nodes hold is put right.
        await eventually(lambda: _nodes(region, name), [one, two])
        assert await region.active(name) == [two]


async def _nodes(region: Region, name: str) -> list[str]:
    return [info["nodeName"] for info in (await region.status(name))["nodes"]]


async def test_told_to_defer_it_writes_no_status(plane: ControlPlane, region: Region) -> None:
    with ControllerProcess(plane, "--elect=defer", name="defer") as deferring:
        name, _, _ = await pair(region)
        await eventually(_readyz(deferring), lambda text: "steps back: told to leave" in text, within=60)
        await asyncio.sleep(1.0)
        assert await region.status(name) == {}


async def test_on_upstreams_definition_no_conditions_are_written_and_nothing_fails(
    plane: ControlPlane, region: Region
) -> None:
    definition = yaml.safe_load((DEPLOY / "crds" / "gateways.yaml").read_text())
    present = await region.client.get(CRDS, "gateways.raven.openyurt.io")
    definition["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"]
    for served in definition["spec"]["versions"]:
        properties = served["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
        for added in ("conditions", "nodeCount"):
            properties.pop(added, None)
    await region.client.replace(CRDS, definition)
    try:
        with ControllerProcess(plane, "--no-leader-elect", name="upstream") as running:
            await running.started()
            name, one, two = await pair(region)
            await eventually(lambda: region.active(name), [one])
            await region.ready(one, False)
            await eventually(lambda: region.active(name), [two])
            assert set(await region.status(name)) == {"nodes", "activeEndpoints"}
            assert "no conditions: none are written" in running.log.read_text()
            # What the server prunes would differ for ever, and be written for ever.
            before = (await region.client.get(GATEWAYS, name))["metadata"]["resourceVersion"]
            await region.ready(one, True)
            await region.peer(f"{name}-9", "elsewhere", KEY)
            await asyncio.sleep(1.0)
            assert (await region.client.get(GATEWAYS, name))["metadata"]["resourceVersion"] == before
            assert 'outcome="refused"' not in running.get("/metrics")[1]
    finally:
        define(plane)
