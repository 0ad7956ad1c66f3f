"""Gateway: converts the API object to the model, and its status back.

Two versions are read. v1beta1 is what clusters serve: endpoints have a type (tunnel or proxy), a port and a public
port, and each type has a number of active endpoints. v1alpha1 is read from manifest files only: its endpoints have
neither, and its status has one active endpoint.

Validation beyond types follows upstream's admission webhook for v1beta1, because a manifest file passes no webhook.
A rule whose violation leaves a usable Gateway is a warning, every other an error, after which the caller keeps the
last good version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from ravenvpn.k8s import wire
from ravenvpn.k8s.fields import (
    ProblemCollector,
    check_name,
    check_port,
    read_address,
    read_host,
    read_prefix,
    read_time,
    shown,
)
from ravenvpn.mesh.hoststate import Prefix
from ravenvpn.mesh.model import (
    DEFAULT_TUNNEL_PORT,
    EMPTY,
    EndpointType,
    Gateway,
    GatewayEndpoint,
    GatewayStatus,
    NodeInfo,
)

EXTRA_CIDRS = "raven.openyurt.io/extra-allowed-source-cidrs"  # upstream's annotation: CIDRs separated by commas
# Upstream's values of spec.exposeType: not exposed, public addresses of the nodes, a Service of type LoadBalancer.
EXPOSE_TYPES = ("", "PublicIP", "LoadBalancer")
# Endpoints are candidates for the gateway role, not all nodes of a region: more than this is a mistake of a script.
MAX_ENDPOINTS = 1024
MAX_REPLICAS = 64  # active endpoints of one type

Listed = TypeVar("Listed")  # an endpoint of v1beta1 or of v1alpha1


def read_v1beta1(raw: wire.GatewayV1Beta1, collector: ProblemCollector) -> Gateway:
    """Convert a v1beta1 Gateway, spec and status. Malformed fields are reported to `collector` and left out.

    Agents plan from the status that the controller wrote. In a directory of manifests `directory` computes it; then
    the status of the manifest only counts if it names an active endpoint, or if there are no manifests of Nodes."""
    spec = raw.spec or wire.GatewaySpec()
    status = raw.status or wire.GatewayStatusWire()
    expose = spec.expose_type or ""
    endpoints = tuple(
        _endpoint(e, f"spec.endpoints[{i}]", collector)
        for i, e in enumerate(_bounded(spec.endpoints or [], collector))
    )
    tunnels = spec.tunnel_config.Replicas if spec.tunnel_config else 0
    proxies = spec.proxy_config.Replicas if spec.proxy_config else 0
    # The proxy ports are for OpenYurt's own proxy.
    proxy = spec.proxy_config or wire.ProxyConfig(0)
    for field, ports in (("proxyHTTPPort", proxy.proxyHTTPPort), ("proxyHTTPSPort", proxy.proxyHTTPSPort)):
        _check_port_list(f"spec.proxyConfig.{field}", ports or "", collector)
    _check_replicas("spec.tunnelConfig.Replicas", tunnels, collector)
    _check_replicas("spec.proxyConfig.Replicas", proxies, collector)
    # Upstream's webhook checks the number only above one.
    if proxies > 1 and proxies > sum(e.type is EndpointType.PROXY for e in endpoints):
        collector.error(
            "spec.proxyConfig.Replicas",
            f"asks for {proxies} active proxy endpoints",
            "list as many endpoints of type proxy",
        )
    _check_exposure(expose, endpoints, collector)
    _check_endpoints(endpoints, collector)
    return Gateway(
        name=raw.metadata.name,
        endpoints=endpoints,
        tunnel_replicas=tunnels,
        proxy_replicas=proxies,
        proxy_http_port=proxy.proxyHTTPPort or "",
        proxy_https_port=proxy.proxyHTTPSPort or "",
        expose_type=expose,
        extra_cidrs=_extra_cidrs(raw.metadata, collector),
        status=GatewayStatus(
            _nodes(status.nodes, collector),
            tuple(
                _endpoint(e, f"status.activeEndpoints[{i}]", collector)
                for i, e in enumerate(status.active_endpoints or ())
            ),
        ),
        created=_created(raw.metadata, collector),
        generation=raw.metadata.generation or 0,  # 0 in manifests
    )


def read_v1alpha1(raw: wire.GatewayV1Alpha1, collector: ProblemCollector) -> Gateway:
    """Convert a v1alpha1 Gateway as upstream's conversion webhook does.

    Every endpoint is of type tunnel and on port 4500; one endpoint of each type is active."""
    spec = raw.spec or wire.GatewaySpecV1Alpha1()
    status = raw.status or wire.GatewayStatusV1Alpha1()
    expose = spec.expose_type or ""
    endpoints = tuple(
        _endpoint(_as_v1beta1(e), f"spec.endpoints[{i}]", collector)
        for i, e in enumerate(_bounded(spec.endpoints or [], collector))
    )
    if not endpoints:
        collector.error("spec.endpoints", "is empty", "v1alpha1 needs at least one node that can be the gateway")
    _check_exposure(expose, endpoints, collector)
    _check_endpoints(endpoints, collector)
    active = status.active_endpoint
    return Gateway(
        name=raw.metadata.name,
        endpoints=endpoints,
        tunnel_replicas=1,
        proxy_replicas=1,
        expose_type=expose,
        extra_cidrs=_extra_cidrs(raw.metadata, collector),
        status=GatewayStatus(
            _nodes(status.nodes, collector),
            (_endpoint(_as_v1beta1(active), "status.activeEndpoint", collector),) if active else (),
        ),
        created=_created(raw.metadata, collector),
        generation=raw.metadata.generation or 0,
    )


def write_status(status: GatewayStatus) -> dict[str, Any]:
    """Return `status` of v1beta1 as an object of the API; Go's `omitempty` fields are left out if empty."""
    return {
        "nodes": [
            {
                "nodeName": info.node,
                "privateIP": str(info.private_ip or ""),  # required by the definition, like subnets
                "subnets": [str(prefix) for prefix in info.subnets],
            }
            for info in status.nodes
        ],
        "activeEndpoints": [_write_endpoint(endpoint) for endpoint in status.active],
    }


def _write_endpoint(endpoint: GatewayEndpoint) -> dict[str, Any]:
    """An active endpoint for the status; Go's `omitempty` fields are left out if zero or empty."""
    optional = {
        "port": endpoint.port,
        "underNAT": endpoint.under_nat,
        "natType": endpoint.nat_type,
        "publicIP": endpoint.public_ip,
        "publicPort": endpoint.public_port,
        "config": dict(endpoint.config),
    }
    written: dict[str, Any] = {"nodeName": endpoint.node, "type": endpoint.type.value}
    return {**written, **{key: value for key, value in optional.items() if value}}


def _bounded(endpoints: list[Listed], collector: ProblemCollector) -> list[Listed]:
    """The list, or nothing and a problem if it is longer than `MAX_ENDPOINTS`."""
    if len(endpoints) <= MAX_ENDPOINTS:
        return endpoints
    collector.error(
        "spec.endpoints",
        f"lists {len(endpoints)} endpoints, the limit is {MAX_ENDPOINTS}",
        "list the nodes that can be the gateway, not all nodes of the region",
    )
    return []


def _as_v1beta1(old: wire.EndpointV1Alpha1) -> wire.EndpointWire:
    """A v1alpha1 endpoint with the defaults of upstream's conversion: type tunnel, port 4500."""
    return wire.EndpointWire(
        old.nodeName, "tunnel", DEFAULT_TUNNEL_PORT, underNAT=old.underNAT, publicIP=old.publicIP, config=old.config
    )


def _endpoint(raw: wire.EndpointWire, at: str, collector: ProblemCollector) -> GatewayEndpoint:
    """Convert the endpoint at the field path `at`."""
    check_name(collector, f"{at}.nodeName", raw.nodeName)
    kind = EndpointType.TUNNEL  # after an error the value is not used, but later checks need one
    if raw.type in ("tunnel", "proxy"):
        kind = EndpointType(raw.type)
    else:
        message = "is missing" if not raw.type else f"{shown(raw.type)} is not a type of endpoint"
        collector.error(f"{at}.type", message, "write tunnel or proxy; a node that does both is listed twice")
    check_port(collector, f"{at}.port", raw.port or 0)
    check_port(collector, f"{at}.publicPort", raw.publicPort or 0)
    public = read_host(collector, f"{at}.publicIP", raw.publicIP) if raw.publicIP else ""
    return GatewayEndpoint(
        node=raw.nodeName,
        type=kind,
        port=raw.port or 0,  # 0: not given
        under_nat=bool(raw.underNAT),
        nat_type=raw.natType or "",
        public_ip=public or "",  # an address or a DNS name, in canonical spelling
        public_port=raw.publicPort or 0,
        config=raw.config or EMPTY,  # free-form: upstream's public key, its feature gates, our epoch
    )


def _check_endpoints(endpoints: tuple[GatewayEndpoint, ...], collector: ProblemCollector) -> None:
    """Report the first node that is listed twice, and endpoints of which only some are behind NAT."""
    counted = Counter((e.node, e.type) for e in endpoints)
    for i, endpoint in enumerate(endpoints):
        times = counted[endpoint.node, endpoint.type]
        if times > 1:
            collector.warn(
                f"spec.endpoints[{i}]",
                f"node {endpoint.node} is listed {times} times with type {endpoint.type}",
                "list it once; the first entry counts",
            )
            break
    # The direction in which regions connect is decided for a Gateway as a whole.
    odd = next((i for i, e in enumerate(endpoints) if e.under_nat is not endpoints[0].under_nat), None)
    if odd is not None:
        collector.error(
            f"spec.endpoints[{odd}].underNAT",
            "differs from the first endpoint's",
            "the endpoints of one Gateway share one uplink: all are behind NAT or none is",
        )


def _check_exposure(expose: str, endpoints: tuple[GatewayEndpoint, ...], collector: ProblemCollector) -> None:
    """Report an unknown exposeType, or one for endpoints that others cannot reach."""
    if expose not in EXPOSE_TYPES:
        collector.error(
            "spec.exposeType", f"{shown(expose)} is unknown", "write PublicIP or LoadBalancer, or leave it out"
        )
    elif expose:
        for i, endpoint in enumerate(endpoints):
            if endpoint.under_nat:  # one problem is enough for all of them
                collector.error(
                    f"spec.endpoints[{i}].underNAT",
                    f"a Gateway with exposeType {expose} cannot be behind NAT",
                    "set underNAT to false or leave exposeType out",
                )
                return


def _check_replicas(field: str, replicas: int, collector: ProblemCollector) -> None:
    """Report a number of active endpoints outside of 0 to `MAX_REPLICAS`; 0 means that none is elected."""
    if not 0 <= replicas <= MAX_REPLICAS:
        collector.error(
            field, f"{replicas} is out of range", f"write a number between 0 and {MAX_REPLICAS}; 1 is usual"
        )


def _check_port_list(field: str, text: str, collector: ProblemCollector) -> None:
    """Report a list of proxy ports that is not numbers separated by commas."""
    for part in (part.strip() for part in text.split(",") if text):
        if not (part.isascii() and part.isdigit() and len(part) <= 5 and 1 <= int(part) <= 65535):
            collector.error(
                field, f"{shown(part)} is not a port", 'write ports with commas between them, like "10255,9445"'
            )


def _nodes(raw: list[wire.NodeInfoWire] | None, collector: ProblemCollector) -> tuple[NodeInfo, ...]:
    """status.nodes; malformed entries are left out, and of two entries for one node the second."""
    found: dict[str, NodeInfo] = {}
    for i, info in enumerate(raw or ()):
        at = f"status.nodes[{i}]"
        check_name(collector, f"{at}.nodeName", info.node_name)
        address = read_address(collector, f"{at}.privateIP", info.private_ip) if info.private_ip else None
        subnets: list[Prefix] = []
        for j, text in enumerate(info.subnets or ()):
            field = f"{at}.subnets[{j}]"
            if not text:
                # Upstream's controller writes [""] for a node without podCIDR.
                collector.warn(field, "is empty", "the node has no pod CIDR yet; the entry is ignored")
                continue
            prefix = read_prefix(collector, field, text)
            if prefix is not None:
                subnets.append(prefix)
        # A warning only: the status is written by a controller, and an error would make the whole Gateway unusable.
        if info.node_name in found:
            collector.warn(f"{at}.nodeName", f"node {info.node_name} is listed twice", "the first entry counts")
            continue
        found[info.node_name] = NodeInfo(info.node_name, address, tuple(dict.fromkeys(subnets)))
    return tuple(found.values())


def _extra_cidrs(metadata: wire.Metadata, collector: ProblemCollector) -> tuple[Prefix, ...]:
    """Prefixes of the region beyond those of its pods, from upstream's annotation: CIDRs separated by commas."""
    annotations: Mapping[str, str] = metadata.annotations or EMPTY
    text = annotations.get(EXTRA_CIDRS, "")
    field = f"metadata.annotations[{EXTRA_CIDRS}]"
    read = [read_prefix(collector, field, part.strip()) for part in text.split(",") if part.strip()]
    return tuple(prefix for prefix in read if prefix is not None)


def _created(metadata: wire.Metadata, collector: ProblemCollector) -> float | None:
    """creationTimestamp in seconds since 1970; None in manifests, which usually have none."""
    text = metadata.creation_timestamp
    return read_time(collector, "metadata.creationTimestamp", text) if text else None
