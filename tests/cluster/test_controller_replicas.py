"""Several replicas of the controller: one leads at a time, and a change of the leader changes no Gateway.

The API server's audit log is the evidence. Each process has its own service account, and no process writes a Gateway
after another one has written the Lease.
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
    PERMISSIONS,
    ControllerProcess,
    Region,
    administering,
    define,
    defined,
    eventually,
    pair,
)

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.controller.options import ControllerOptions
from ravenvpn.k8s.resource import CRDS, GATEWAYS, LEASES, NODES, Page
from ravenvpn.rfc3339 import format_micro_time

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # the first test also waits for its control plane

LEASE = ControllerOptions(identity="").lease_name
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
    """A successful write in the audit log."""

    at: float  # time of the answer, seconds since 1970
    user: str  # service account
    resource: str


class Replicas:
    """Start controllers, each under its own service account with the permissions in deploy/."""

    def __init__(self, plane: ControlPlane, *arguments: str) -> None:
        self._plane, self._arguments = plane, arguments
        self._subject = secrets.token_hex(3)
        self.running: list[tuple[str, ControllerProcess]] = []  # service account and process
        self.all: list[str] = []  # service accounts, also of killed ones

    def start(self) -> ControllerProcess:
        account = f"controller-{self._subject}-{len(self.all)}"
        documents = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _named(account)}]
        for document in yaml.safe_load_all(PERMISSIONS.read_text()):
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
        async def leading() -> tuple[str, ControllerProcess] | None:
            return next((one for one in self.running if one[1].leads), None)

        found = await eventually(leading, lambda one: one is not None, within)
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
        """Return the successful writes of Gateways and of the Lease, in the order of their answers."""
        found = []
        for event in self._plane.requests():
            user = event["user"]["username"].rpartition(":")[2]
            resource = event.get("objectRef", {}).get("resource")
            accepted = event.get("responseStatus", {}).get("code") in (200, 201)
            wrote = event["verb"] in ("create", "update", "patch")
            if user in self.all and resource in ("gateways", "leases") and wrote and accepted:
                found.append(Write(datetime.fromisoformat(event["stageTimestamp"]).timestamp(), user, resource))
        return sorted(found)

    def of_gateways(self, user: str = "") -> list[Write]:
        return [write for write in self.writes() if write.resource == "gateways" and user in ("", write.user)]

    def assert_one_writer_at_a_time(self, terms: int) -> None:
        """Assert that each writer of a Gateway was the last writer of the Lease.

        At least `terms` replicas must have written.
        """
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


class StatusRecorder:
    """Watch a Gateway and collect all values of its status."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self.versions = 0
        self.actives: set[tuple[tuple[str, str], ...]] = set()  # node and epoch of the active endpoints
        self.ready: set[str] = set()  # status of condition Ready
        self.transitions: set[str] = set()  # lastTransitionTime of all conditions

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
                        self._record(obj["status"])

    def _record(self, status: dict[str, Any]) -> None:
        self.versions += 1
        self.actives.add(tuple((e["nodeName"], e["config"]["ravenvpn.io/epoch"]) for e in status["activeEndpoints"]))
        self.ready.add(next(c["status"] for c in status["conditions"] if c["type"] == "Ready"))
        self.transitions |= {c["lastTransitionTime"] for c in status["conditions"]}


@asynccontextmanager
async def churn(region: Region, node: str) -> AsyncIterator[None]:
    """Change the address of a node ten times a second; every change is a status to write."""

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


async def kill_leaders(plane: ControlPlane, region: Region, times: int, *arguments: str) -> float:
    """Kill the leader `times` times under churn. Returns the longest time without a write, in seconds."""
    replicas = Replicas(plane, *arguments)
    try:
        for process in (replicas.start(), replicas.start()):
            await process.started()
        name, one, two = await pair(region)
        await eventually(lambda: region.active(name), [one], within=40)
        recorder = StatusRecorder(region.client, name)
        async with recorder.watching(), churn(region, two):
            for _ in range(times):
                account, leader = await replicas.leader()
                seen = recorder.versions
                await eventually(_count(lambda: recorder.versions), lambda found, seen=seen: found > seen)
                replicas.kill(leader)
                another = replicas.start()
                following, _ = await replicas.leader()
                assert following != account
                await another.started()
            seen = recorder.versions
            await eventually(_count(lambda: recorder.versions), lambda found: found > seen)
        replicas.assert_one_writer_at_a_time(times + 1)
        assert recorder.actives == {((one, "1"),)}
        assert recorder.ready == {"True"}
        assert len(recorder.transitions) == 1, "no condition changed its status"
        return max(later.at - earlier.at for earlier, later in itertools.pairwise(replicas.of_gateways()))
    finally:
        replicas.stop()


def _count(read: Callable[[], int]) -> Callable[[], Any]:
    async def counted() -> int:
        return read()

    return counted


async def test_five_killed_leaders_cause_no_flapping_and_never_two_writers(
    plane: ControlPlane, region: Region
) -> None:
    gap = await kill_leaders(plane, region, 5, *QUICK)
    print(f"longest time without a write, Lease of 4 s: {gap:.1f} s")


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_twenty_killed_leaders_cause_no_flapping_and_never_two_writers(
    plane: ControlPlane, region: Region
) -> None:
    gap = await kill_leaders(plane, region, 20)
    print(f"longest time without a write, Lease of 15 s: {gap:.1f} s")
    assert gap < 25


async def test_a_leader_stopped_beyond_its_lease_writes_nothing_afterwards(
    plane: ControlPlane, region: Region
) -> None:
    replicas = Replicas(plane, *QUICK)
    try:
        for process in (replicas.start(), replicas.start()):
            await process.started()
        name, one, two = await pair(region)
        await eventually(lambda: region.active(name), [one], within=40)
        async with churn(region, two):
            stopped, process = await replicas.leader()
            process.signal(signal.SIGSTOP)
            replicas.running.remove((stopped, process))
            try:
                successor, _ = await replicas.leader()
                await eventually(_count(lambda: len(replicas.of_gateways(successor))), lambda n: n > 2)
                before = len(replicas.of_gateways(stopped))
            finally:
                process.signal(signal.SIGCONT)
                replicas.running.append((stopped, process))
            await eventually(_readyz(process), lambda text: f"leader: {successor}" in text)
            await asyncio.sleep(1.0)
        assert len(replicas.of_gateways(stopped)) == before
        replicas.assert_one_writer_at_a_time(2)
    finally:
        replicas.stop()


def _readyz(process: ControllerProcess) -> Callable[[], Any]:
    async def readyz() -> str:
        return process.get("/readyz")[1]

    return readyz


async def test_a_terminated_leader_releases_the_lease_at_once(plane: ControlPlane, region: Region) -> None:
    replicas = Replicas(plane)  # with the default lease duration of 15 s; the test does not wait for it
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


async def test_a_restarted_api_server_ends_no_controller_and_moves_no_role(
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
    """The holder in the Lease counts, whichever program wrote it."""
    spec = {
        "holderIdentity": "other_program",
        "leaseDurationSeconds": 3600,
        "acquireTime": format_micro_time(time.time()),
        "renewTime": format_micro_time(time.time()),
        "leaseTransitions": 7,
    }
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}, "spec": spec}
    await region.client.create(LEASES.within("kube-system"), body)
    with ControllerProcess(plane, name="standby") as standby:
        await eventually(_readyz(standby), lambda text: text.startswith("ok\nleader: other_program"), within=60)
        name, _, _ = await pair(region)
        await asyncio.sleep(3.0)
        assert await region.status(name) == {}


async def test_elect_own_elects_although_another_controller_writes(plane: ControlPlane, region: Region) -> None:
    with ControllerProcess(plane, "--elect=own", name="own") as own:
        await own.started()
        name, one, two = await pair(region)
        theirs = {"nodes": [], "activeEndpoints": [{"nodeName": two, "type": "tunnel"}]}
        await eventually(lambda: region.active(name), [one])
        await region.client.merge(
            GATEWAYS, name, {"status": theirs}, subresource="status", field_manager="yurt-manager"
        )
        # The endpoint that yurt-manager chose stays active, because its node is Ready. The list of nodes is
        # corrected.
        await eventually(lambda: _nodes(region, name), [one, two])
        assert await region.active(name) == [two]


async def _nodes(region: Region, name: str) -> list[str]:
    return [info["nodeName"] for info in (await region.status(name))["nodes"]]


async def test_elect_defer_writes_no_status(plane: ControlPlane, region: Region) -> None:
    with ControllerProcess(plane, "--elect=defer", name="defer") as deferring:
        name, _, _ = await pair(region)
        await eventually(_readyz(deferring), lambda text: "steps back: --elect=defer" in text, within=60)
        await asyncio.sleep(1.0)
        assert await region.status(name) == {}


async def test_no_conditions_are_written_where_openyurts_definition_is_served(
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
            assert "no conditions, so none are written" in running.log.read_text()
            # A field that the server prunes would always differ and be written again on every reconcile.
            before = (await region.client.get(GATEWAYS, name))["metadata"]["resourceVersion"]
            await region.ready(one, True)
            await region.peer(f"{name}-9", "elsewhere", KEY)
            await asyncio.sleep(1.0)
            assert (await region.client.get(GATEWAYS, name))["metadata"]["resourceVersion"] == before
            assert 'outcome="refused"' not in running.get("/metrics")[1]
    finally:
        define(plane)
