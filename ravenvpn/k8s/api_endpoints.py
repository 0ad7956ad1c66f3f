"""At which addresses the API server is reached, for the rules that keep the watch out of the tunnel it steers."""

from __future__ import annotations

import asyncio
import socket

from ravenvpn.k8s.client import Client
from ravenvpn.mesh.local_facts import ApiEndpoint
from ravenvpn.mesh.model import address_of


async def dialed(client: Client) -> tuple[ApiEndpoint, ...]:
    """What the client dials, and what stands behind it where that is a Service: an API server tells each client the
    address at which it advertises itself (`/api`, serverAddressByClientCIDRs), which takes no more rights than to
    discover the API. ApiError where it does not answer."""
    host, port = client.host_port
    found = dict.fromkeys(await _resolved(host, port))
    versions = await client.get_path("/api")
    for entry in versions.get("serverAddressByClientCIDRs") or ():
        server = str(entry.get("serverAddress", "")) if isinstance(entry, dict) else ""
        behind, _, number = server.rpartition(":")
        if behind and number.isdigit() and 0 < int(number) < 65536:
            found |= dict.fromkeys(await _resolved(behind.strip("[]"), int(number)))
    return tuple(endpoint for endpoint in found if not endpoint.address.is_loopback)


async def _resolved(host: str, port: int) -> list[ApiEndpoint]:
    address = address_of(host)
    if address is not None:
        return [ApiEndpoint(address, port)]
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    found = (address_of(str(answer[4][0])) for answer in answers)
    return [ApiEndpoint(one, port) for one in found if one is not None]
