"""Wire format of the API objects: OpenYurt's Gateway, our Peer, and the fields of a Node that are read.

Only `crd` and its parts use these structs. Go leaves out an empty field or writes null for it, so every field that
upstream marks as optional may be missing or null here. Upper-case names (`Replicas`) are upstream's.
"""

from __future__ import annotations

from typing import Any

import msgspec

OptionalMap = dict[str, str] | None


class Metadata(msgspec.Struct, rename="camel"):
    """meta/v1 ObjectMeta, the fields that are read."""

    name: str = ""
    labels: OptionalMap = None
    annotations: OptionalMap = None
    creation_timestamp: str | None = None  # RFC 3339
    generation: int | None = None  # counts changes of spec


class TunnelConfig(msgspec.Struct):
    """Gateway v1beta1, spec.tunnelConfig."""

    Replicas: int  # active tunnel endpoints


class ProxyConfig(msgspec.Struct):
    """Gateway v1beta1, spec.proxyConfig; for OpenYurt's proxy, which ravenvpn only elects."""

    Replicas: int  # active proxy endpoints
    proxyHTTPPort: str | None = None  # noqa: N815 (ports separated by commas)
    proxyHTTPSPort: str | None = None  # noqa: N815


class EndpointWire(msgspec.Struct):
    """Gateway v1beta1, an endpoint in spec or status.

    `type` is required; it may be missing in a status that an old controller wrote, hence `gateways` checks it."""

    nodeName: str  # noqa: N815
    type: str | None = None
    port: int | None = None
    underNAT: bool | None = None  # noqa: N815
    natType: str | None = None  # noqa: N815
    publicIP: str | None = None  # noqa: N815
    publicPort: int | None = None  # noqa: N815
    config: OptionalMap = None


class NodeInfoWire(msgspec.Struct, rename="camel"):
    """Gateway, status.nodes[]: a node of the region with its InternalIP and pod prefixes."""

    node_name: str
    private_ip: str | None = msgspec.field(name="privateIP", default=None)
    subnets: list[str | None] | None = None


class GatewaySpec(msgspec.Struct, rename="camel"):
    """Gateway v1beta1, spec."""

    node_selector: dict[str, Any] | None = None
    proxy_config: ProxyConfig | None = None
    tunnel_config: TunnelConfig | None = None
    endpoints: list[EndpointWire] | None = None
    expose_type: str | None = None


class GatewayStatusWire(msgspec.Struct, rename="camel"):
    """Gateway v1beta1, status. Conditions are only in ravenvpn's definition, not in OpenYurt's."""

    nodes: list[NodeInfoWire] | None = None
    active_endpoints: list[EndpointWire] | None = None
    conditions: list[dict[str, Any]] | None = None


class GatewayV1Beta1(msgspec.Struct):
    """raven.openyurt.io/v1beta1 Gateway."""

    metadata: Metadata
    spec: GatewaySpec | None = None
    status: GatewayStatusWire | None = None


class EndpointV1Alpha1(msgspec.Struct):
    """Gateway v1alpha1, an endpoint in spec or status."""

    nodeName: str  # noqa: N815
    underNAT: bool | None = None  # noqa: N815
    publicIP: str | None = None  # noqa: N815
    config: OptionalMap = None


class GatewaySpecV1Alpha1(msgspec.Struct, rename="camel"):
    """Gateway v1alpha1, spec."""

    node_selector: dict[str, Any] | None = None
    endpoints: list[EndpointV1Alpha1] | None = None
    expose_type: str | None = None


class GatewayStatusV1Alpha1(msgspec.Struct, rename="camel"):
    """Gateway v1alpha1, status: one active endpoint instead of a list."""

    nodes: list[NodeInfoWire] | None = None
    active_endpoint: EndpointV1Alpha1 | None = None


class GatewayV1Alpha1(msgspec.Struct):
    """raven.openyurt.io/v1alpha1 Gateway, for manifest files; clusters convert it to v1beta1."""

    metadata: Metadata
    spec: GatewaySpecV1Alpha1 | None = None
    status: GatewayStatusV1Alpha1 | None = None


class PeerSpec(msgspec.Struct, rename="camel"):
    """Peer, spec; the definition in deploy/ describes each field."""

    public_key: str  # base64, like the next one
    next_public_key: str | None = None
    listen_port: int | None = None  # UDP; None or 0: the port of the Gateway's endpoint
    addresses: list[str] | None = None  # HOST, HOST:PORT or [IPv6]:PORT, best first
    node_addresses: list[str] | None = None  # on the LAN of the region
    sources: list[str] | None = None
    suites: list[str] | None = None  # names, preferred first


class PeerWire(msgspec.Struct):
    """ravenvpn.io/v1alpha1 Peer. Its status is for people, and not decoded."""

    metadata: Metadata
    spec: PeerSpec
    status: dict[str, Any] | None = None


class NodeSpec(msgspec.Struct):
    """core/v1 Node, the part of spec that is read."""

    podCIDR: str | None = None  # noqa: N815
    podCIDRs: list[str] | None = None  # noqa: N815


class NodeAddress(msgspec.Struct):
    """core/v1 Node, status.addresses[]."""

    type: str  # InternalIP is read, others are ignored
    address: str


class NodeCondition(msgspec.Struct):
    """core/v1 Node, status.conditions[]."""

    type: str
    status: str  # "True", "False" or "Unknown"


class NodeStatus(msgspec.Struct):
    """core/v1 Node, the part of status that is read."""

    addresses: list[NodeAddress] | None = None
    conditions: list[NodeCondition] | None = None


class NodeWire(msgspec.Struct):
    """v1 Node."""

    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None
