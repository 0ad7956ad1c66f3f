"""Addresses of the API server, for the routing rules that keep its traffic out of the tunnel.

Without them an agent could cut off its own watch: a route into the tunnel that covers the API server needs the watch
to be corrected.
"""

from __future__ import annotations

import asyncio
import socket

from ravenvpn.k8s.client import Client
from ravenvpn.mesh.local_facts import ApiEndpoint
from ravenvpn.mesh.model import address_of


async def discover_endpoints(client: Client) -> tuple[ApiEndpoint, ...]:
    """Return the addresses that `client` connects to, and those of the API server behind them; loopback left out.

    Behind a Service or a load balancer an API server returns the address that it advertises to this client (`/api`,
    serverAddressByClientCIDRs). That needs no more rights than API discovery. Raises ApiError without an answer.
    """
    host, port = client.host_port
    found = dict.fromkeys(await _resolve(host, port))
    versions = await client.get_path("/api")
    for entry in versions.get("serverAddressByClientCIDRs") or ():
        server = str(entry.get("serverAddress", "")) if isinstance(entry, dict) else ""
        behind, _, number = server.rpartition(":")
        if behind and number.isdigit() and 0 < int(number) < 65536:
            found |= dict.fromkeys(await _resolve(behind.strip("[]"), int(number)))
    return tuple(endpoint for endpoint in found if not endpoint.address.is_loopback)


async def _resolve(host: str, port: int) -> list[ApiEndpoint]:
    """Addresses of `host`, in the resolver's order; none if it cannot be resolved."""
    address = address_of(host)
    if address is not None:
        return [ApiEndpoint(address, port)]
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    found = (address_of(str(answer[4][0])) for answer in answers)
    return [ApiEndpoint(one, port) for one in found if one is not None]
