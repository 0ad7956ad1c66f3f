"""What `raven-vpn check` finds out about the cluster: is it reached, and may this agent do what it has to?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ravenvpn.config import AgentConfig
from ravenvpn.errors import ConfigError
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import GATEWAYS, NAMESPACES, PEERS, ApiError, Resource
from ravenvpn.node.preflight import Finding, FindingLevel

PATIENCE = 10.0  # seconds


def look(config: AgentConfig) -> list[Finding]:
    """Nothing where the world does not come from a cluster."""
    if config.world_directory is not None:
        return []
    return asyncio.run(_look(config))


async def _look(config: AgentConfig) -> list[Finding]:
    try:
        async with Client.connect(config.kubeconfig, config.context) as client, asyncio.timeout(PATIENCE):
            try:
                version = await client.version()
            except ApiError as error:
                remedy = "an agent goes by the saved world until it is there"
                return [Finding("api server", FindingLevel.WARN, str(error), remedy)]
            found = [Finding("api server", FindingLevel.OK, f"Kubernetes {version} at {client.server}")]
            found += [
                await _allowed("namespaces", lambda: client.get(NAMESPACES, "kube-system")),
                await _allowed("gateways", lambda: _first(client, GATEWAYS)),
                await _allowed("peers", lambda: _first(client, PEERS)),
            ]
            return found
    except ConfigError as error:
        return [Finding("api server", FindingLevel.FAIL, str(error), "see --kubeconfig")]
    except TimeoutError:
        return [
            Finding(
                "api server", FindingLevel.WARN, f"no answer within {PATIENCE:.0f} s", "is it reachable from here?"
            )
        ]


async def _allowed(what: str, ask: Callable[[], Awaitable[object]]) -> Finding:
    try:
        await ask()
    except ApiError as error:
        remedy = (
            "install the custom resources" if error.status == 404 else "give this account the agents' ClusterRole"
        )
        return Finding(what, FindingLevel.FAIL, str(error), remedy)
    return Finding(what, FindingLevel.OK, "may be read")


async def _first(client: Client, resource: Resource) -> None:
    pages = client.list(resource, limit=1)
    async with contextlib.aclosing(pages):
        await anext(pages)
