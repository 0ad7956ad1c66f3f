"""A real control plane, and the controller as a process under its service account."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from control_plane import DEPLOY, ControlPlane, define_kinds, running

from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import GATEWAYS, NODES, PEERS, ApiError, Resource

PERMISSIONS = DEPLOY / "workloads" / "rbac-controller.yaml"
KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
SPACE = {"apiVersion": "raven.openyurt.io/v1beta1", "kind": "Gateway"}
Object = dict[str, Any]
Found = TypeVar("Found")


def define(plane: ControlPlane) -> None:
    """Apply the CustomResourceDefinitions and the permissions of the controller."""
    define_kinds(plane)
    plane.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={PERMISSIONS}")


@contextmanager
def defined(folder: Path, **options: Any) -> Iterator[ControlPlane]:
    """Run a control plane for one test module, since controllers act on every Gateway in it.

    `options` are those of `running`.
    """
    with running(folder / "kube", **options) as plane:
        define(plane)
        yield plane


class ControllerProcess:
    """A process `raven-vpn controller` against `plane`, started at once.

    The end of the context requires exit code 0.
    """

    def __init__(
        self, plane: ControlPlane, *arguments: str, account: str = "ravenvpn-controller", name: str = "controller"
    ) -> None:
        self.port = _free_port()
        self.log = plane.folder / f"{name}-{self.port}.log"
        kubeconfig = plane.account(account)
        argv = [sys.executable, "-m", "ravenvpn", "controller", f"--kubeconfig={kubeconfig}", f"--identity={name}"]
        argv += [f"--http-address=127.0.0.1:{self.port}", "--log-format=json", *arguments]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.stop() == 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    async def started(self, within: float = 60.0) -> None:
        """Wait until it answers probes."""

        async def livez() -> int:
            assert self.running, self.log.read_text()
            return self.get("/livez")[0]

        await eventually(livez, 200, within)

    def stop(self) -> int:
        """Stop it with SIGTERM. Returns its exit code; kills it after 15 s."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            return self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def lines(self) -> list[Object]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of an HTTP request to the process; (0, "") if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def leads(self) -> bool:
        return "this replica leads" in self.get("/readyz")[1]

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def cpu(self) -> float:
        """Return the CPU time used so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Region:
    """Write Gateways, Nodes and Peers as an administrator. `clear` deletes the created objects."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._created: list[tuple[Resource, str]] = []

    async def create(self, resource: Resource, thing: Object) -> Object:
        created = await self.client.create(resource, thing)
        self._created.append((resource, thing["metadata"]["name"]))
        return created

    async def gateway(self, name: str, endpoints: Sequence[Object], **spec: Any) -> Object:
        spec = {"tunnelConfig": {"Replicas": 1}, "endpoints": list(endpoints), **spec}
        return await self.create(GATEWAYS, {**SPACE, "metadata": {"name": name}, "spec": spec})

    async def node(
        self, name: str, gateway: str, cidrs: Sequence[str] = (), ip: str = "10.0.0.1", **metadata: Any
    ) -> None:
        labels = {"raven.openyurt.io/gateway": gateway}
        spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
        thing = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels, **metadata}}
        await self.create(NODES, {**thing, "spec": spec})
        addresses = [{"type": "InternalIP", "address": one} for one in ip.split(",")]
        status = {"conditions": [READY], "addresses": addresses}
        await self.client.merge(NODES, name, {"status": status}, subresource="status")

    async def ready(self, name: str, ready: bool) -> None:
        condition = {**READY, "status": "True" if ready else "False"}
        await self.client.merge(NODES, name, {"status": {"conditions": [condition]}}, subresource="status")

    async def peer(self, name: str, gateway: str, key: str, **spec: Any) -> None:
        metadata = {"name": name, "labels": {"raven.openyurt.io/gateway": gateway}}
        thing = {"apiVersion": "ravenvpn.io/v1alpha1", "kind": "Peer", "metadata": metadata}
        await self.create(PEERS, {**thing, "spec": {"publicKey": key, **spec}})

    async def status(self, name: str) -> Object:
        found: Object = (await self.client.get(GATEWAYS, name)).get("status") or {}
        return found

    async def active(self, name: str) -> list[str]:
        return [e["nodeName"] for e in (await self.status(name)).get("activeEndpoints") or []]

    async def condition(self, name: str, kind: str) -> Object:
        conditions = (await self.status(name)).get("conditions") or []
        return next((c for c in conditions if c["type"] == kind), {})

    async def clear(self) -> None:
        for resource, name in reversed(self._created):
            await self.drop(resource, name)
        self._created.clear()

    async def drop(self, resource: Resource, name: str) -> None:
        try:
            await self.client.delete(resource, name)
        except ApiError as error:
            if error.status != 404:
                raise


@asynccontextmanager
async def administering(plane: ControlPlane) -> AsyncIterator[Region]:
    async with Client.connect(str(plane.admin)) as client:
        region = Region(client)
        try:
            yield region
        finally:
            await region.clear()


async def eventually(
    read: Callable[[], Awaitable[Found]], wanted: Any, within: float = 20.0, every: float = 0.05
) -> Found:
    """Call `read` until its result equals `wanted`, or `wanted(result)` is true if that is a function.

    Returns the result; fails after `within` seconds. `every` is the interval in seconds.
    """
    deadline = time.monotonic() + within
    while True:
        found = await read()
        if wanted(found) if callable(wanted) else found == wanted:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {within:g} s still {found!r}, not {wanted!r}")
        await asyncio.sleep(every)


def fresh(name: str) -> str:
    return f"{name}-{secrets.token_hex(3)}"


def tunnel(node: str, **more: Any) -> dict[str, Any]:
    return {"nodeName": node, "type": "tunnel", **more}


async def pair(region: Region) -> tuple[str, str, str]:
    """Create a region of two nodes that both can be the gateway. Returns its name and theirs."""
    name = fresh("factory")
    one, two = f"{name}-1", f"{name}-2"
    third, fourth = secrets.token_bytes(2)
    await region.node(one, name, [f"10.{third}.{fourth}.0/25", f"fd00:{third:x}:{fourth:x}:1::/64"], ip="10.0.1.1")
    await region.node(two, name, [f"10.{third}.{fourth}.128/25"], ip="10.0.1.2")
    await region.gateway(name, [tunnel(one), tunnel(two)])
    return name, one, two
