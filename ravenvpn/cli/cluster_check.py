"""Part of `raven-vpn check` about the cluster: is the API server reached, and may this account read what it needs?

Reads are tried, not asked for by SelfSubjectAccessReview: a read also shows whether the resource is defined. Whether
the account may write its Peer is not tested, since a test would be a write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ravenvpn.config import AgentConfig
from ravenvpn.errors import ConfigError
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import GATEWAYS, NAMESPACES, PEERS, ApiError, Resource
from ravenvpn.node.preflight import Finding, FindingLevel

TIMEOUT = 10.0  # seconds for all requests together


def check(config: AgentConfig) -> list[Finding]:
    """Return the findings, none where the world does not come from a cluster. Runs an event loop of its own."""
    if config.world_directory is not None:
        return []
    return asyncio.run(_check(config))


async def _check(config: AgentConfig) -> list[Finding]:
    """Return the finding about the server and, if it answers, one for each resource that the agent reads.

    A server that does not answer is a warning: the agent starts from the world it saved. A kubeconfig that does not
    parse is a failure: the agent does not start."""
    try:
        async with Client.connect(config.kubeconfig, config.context) as client, asyncio.timeout(TIMEOUT):
            try:
                version = await client.version()
            except ApiError as error:
                remedy = "until the server answers, an agent uses the world it saved"
                return [Finding("api server", FindingLevel.WARN, str(error), remedy)]
            # One request for each resource that the agent's ClusterRole covers.
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
                "api server",
                FindingLevel.WARN,
                f"no answer within {TIMEOUT:.0f} s",
                "check the network between this host and the server",
            )
        ]


async def _allowed(what: str, ask: Callable[[], Awaitable[object]]) -> Finding:
    """Return whether this request is allowed; `what` is the resource in the finding."""
    try:
        await ask()
    except ApiError as error:
        remedy = (
            "install the custom resources" if error.status == 404 else "give this account the agents' ClusterRole"
        )
        return Finding(what, FindingLevel.FAIL, str(error), remedy)
    return Finding(what, FindingLevel.OK, "can be read")


async def _first(client: Client, resource: Resource) -> None:
    """Request one object of a resource: enough to see whether listing is allowed."""
    pages = client.list(resource, limit=1)
    async with contextlib.aclosing(pages):
        await anext(pages)
