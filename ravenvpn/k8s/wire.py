"""How the objects look on the wire: upstream's Gateway field for field, our Peer, and what we read of a Node.

Only `crd` reads these. Go leaves out what is empty or writes null for it, so whatever upstream marks optional may be
missing or null here. Names in capitals (`Replicas`) are upstream's.
"""

from __future__ import annotations

from typing import Any

import msgspec

OptionalMap = dict[str, str] | None


class Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    labels: OptionalMap = None
    annotations: OptionalMap = None
    creation_timestamp: str | None = None
    generation: int | None = None


class TunnelConfig(msgspec.Struct):
    Replicas: int


class ProxyConfig(msgspec.Struct):
    Replicas: int
    proxyHTTPPort: str | None = None  # noqa: N815
    proxyHTTPSPort: str | None = None  # noqa: N815


class EndpointWire(msgspec.Struct):
    """v1beta1; `type` may be missing in status written by old controllers, `crd` says so where it must not."""

    nodeName: str  # noqa: N815
    type: str | None = None
    port: int | None = None
    underNAT: bool | None = None  # noqa: N815
    natType: str | None = None  # noqa: N815
    publicIP: str | None = None  # noqa: N815
    publicPort: int | None = None  # noqa: N815
    config: OptionalMap = None


class NodeInfoWire(msgspec.Struct, rename="camel"):
    node_name: str
    private_ip: str | None = msgspec.field(name="privateIP", default=None)
    subnets: list[str | None] | None = None


class GatewaySpec(msgspec.Struct, rename="camel"):
    node_selector: dict[str, Any] | None = None
    proxy_config: ProxyConfig | None = None
    tunnel_config: TunnelConfig | None = None
    endpoints: list[EndpointWire] | None = None
    expose_type: str | None = None


class GatewayStatusWire(msgspec.Struct, rename="camel"):
    nodes: list[NodeInfoWire] | None = None
    active_endpoints: list[EndpointWire] | None = None
    conditions: list[dict[str, Any]] | None = None


class GatewayV1Beta1(msgspec.Struct):
    metadata: Metadata
    spec: GatewaySpec | None = None
    status: GatewayStatusWire | None = None


class EndpointV1Alpha1(msgspec.Struct):
    nodeName: str  # noqa: N815
    underNAT: bool | None = None  # noqa: N815
    publicIP: str | None = None  # noqa: N815
    config: OptionalMap = None


class GatewaySpecV1Alpha1(msgspec.Struct, rename="camel"):
    node_selector: dict[str, Any] | None = None
    endpoints: list[EndpointV1Alpha1] | None = None
    expose_type: str | None = None


class GatewayStatusV1Alpha1(msgspec.Struct, rename="camel"):
    nodes: list[NodeInfoWire] | None = None
    active_endpoint: EndpointV1Alpha1 | None = None


class GatewayV1Alpha1(msgspec.Struct):
    metadata: Metadata
    spec: GatewaySpecV1Alpha1 | None = None
    status: GatewayStatusV1Alpha1 | None = None


class PeerSpec(msgspec.Struct, rename="camel"):
    public_key: str
    next_public_key: str | None = None
    listen_port: int | None = None
    addresses: list[str] | None = None
    node_addresses: list[str] | None = None
    sources: list[str] | None = None
    suites: list[str] | None = None


class PeerWire(msgspec.Struct):
    metadata: Metadata
    spec: PeerSpec
    status: dict[str, Any] | None = None


class NodeSpec(msgspec.Struct):
    podCIDR: str | None = None  # noqa: N815
    podCIDRs: list[str] | None = None  # noqa: N815


class NodeAddress(msgspec.Struct):
    type: str
    address: str


class NodeCondition(msgspec.Struct):
    type: str
    status: str


class NodeStatus(msgspec.Struct):
    addresses: list[NodeAddress] | None = None
    conditions: list[NodeCondition] | None = None


class NodeWire(msgspec.Struct):
    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None
