"""`Reason`: why a route, a peer or a path is as it is, as a value. `explain` turns it into a sentence.

Planning makes tens of thousands of reasons and formats none of them; a sentence is made where a person or a program
asks for it (control socket, command line, log). JSON output carries the code beside the sentence, so that programs
need not parse English. Codes are part of that output: add new ones, never rename or reuse one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

MAX_LISTED = 3  # elements of a list argument that a sentence names; the rest is counted


class ReasonCode(StrEnum):
    """The closed set of causes. The value is the `code` in JSON; `_SENTENCES` says what each one means."""

    # Routes. Subject: the node behind the prefix.
    REMOTE_PREFIX = "remote-prefix"  # into the tunnel, to a gateway of the far region
    REMOTE_PREFIX_BY_HUB = "remote-prefix-by-hub"  # into the tunnel, to a hub
    REMOTE_PREFIX_BY_GATEWAY = "remote-prefix-by-gateway"  # over the VXLAN, to our own active gateway
    OWN_PREFIX_OUT_OF_TUNNEL = "own-prefix-out-of-tunnel"  # table 9129: over the VXLAN to a node of our region
    FAIL_CLOSED = "fail-closed"  # unreachable route below the ones above
    # Routes of the mesh's /48. Subject: the mesh.
    MESH_ADDRESSES = "mesh-addresses"
    FAIL_CLOSED_MESH = "fail-closed-mesh"

    # Devices, addresses, neighbour and FDB entries, packet filter. Subject: a region or a node.
    TUNNEL_DEVICE = "tunnel-device"
    TUNNEL_ADDRESS = "tunnel-address"
    VXLAN_DEVICE = "vxlan-device"
    VXLAN_ADDRESS = "vxlan-address"
    VXLAN_MEMBER = "vxlan-member"
    KEEP_SOURCES = "keep-sources"

    # Policy routing rules (mesh.policy_rules). No subject.
    RULE_OUTER_BYPASS = "rule-outer-bypass"
    RULE_PORTS_TUNNEL = "rule-ports-tunnel"
    RULE_PORTS_API = "rule-ports-api"
    RULE_FROM_TUNNEL = "rule-from-tunnel"
    RULE_FROM_VXLAN = "rule-from-vxlan"
    RULE_API_BYPASS = "rule-api-bypass"
    RULE_REMOTE = "rule-remote"
    RULE_LANDING = "rule-landing"

    # Sysctls (mesh.sysctls). Subject: the device, where the sentence names it.
    FORWARD_TUNNEL = "forward-tunnel"
    FORWARD_VXLAN = "forward-vxlan"
    FORWARD_PODS = "forward-pods"
    FORWARD_ALL_IPV6 = "forward-all-ipv6"
    LOOSE_RP_FILTER = "loose-rp-filter"
    NO_REDIRECTS = "no-redirects"
    ENABLE_IPV6 = "enable-ipv6"
    KEEP_ROUTER_ADVERTISEMENTS = "keep-router-advertisements"

    # Peers of the tunnel. Subject: the peer's node.
    SAME_REGION_PEER = "same-region-peer"
    REMOTE_GATEWAY = "remote-gateway"
    REMOTE_GATEWAY_BEHIND_NAT = "remote-gateway-behind-nat"

    # Notes of a plan: no fault of this node, but some region or address is not reached. Subject: a node, or the
    # region or Gateway concerned.
    NO_REGION = "no-region"
    NO_VXLAN_MEMBER = "no-vxlan-member"
    NO_ACTIVE_VXLAN_MEMBER = "no-active-vxlan-member"
    GATEWAY_WITHOUT_PEER = "gateway-without-peer"
    SOURCE_NOT_ACCEPTED = "source-not-accepted"
    REGION_WITHOUT_HUB = "region-without-hub"
    PREFIX_IN_OWN_REGION = "prefix-in-own-region"
    NODE_ADDRESS_IN_OWN_NETWORK = "node-address-in-own-network"
    ENDPOINT_NO_MEMBER = "endpoint-no-member"
    ENDPOINT_WITHOUT_KEY = "endpoint-without-key"
    NO_ACTIVE_ENDPOINT = "no-active-endpoint"
    STANDBY_TOOK_OVER = "standby-took-over"

    # State of a session. Subject: the peer.
    PROBES_UNANSWERED = "probes-unanswered"
    HANDSHAKE_FAILED = "handshake-failed"
    HANDSHAKE_RUNNING = "handshake-running"
    NO_HANDSHAKE = "no-handshake"
    # Reachability of a region. Subject: the far region, the gateway whose session carries it, or our own region.
    REGION_WITHOUT_GATEWAY = "region-without-gateway"
    REGION_WITHOUT_PATH = "region-without-path"
    GATEWAY_SESSION = "gateway-session"
    OWN_GATEWAY_SESSION = "own-gateway-session"
    OWN_GATEWAY_UNKNOWN = "own-gateway-unknown"
    OWN_GATEWAY_WITHOUT_SESSION = "own-gateway-without-session"
    NO_OWN_GATEWAY = "no-own-gateway"


class Reason(NamedTuple):
    """A cause, what it is about, and the particulars its sentence needs."""

    code: ReasonCode
    subject: str = ""  # name of the node, region, mesh, device or field that the sentence is about
    arguments: tuple[object, ...] = ()  # in the order of the sentence; a tuple is a list, a Reason is a cause


_ORIGIN = "{1} of node {0}, {2}, {3}"  # arguments: mesh.claims.ClaimKind, owning object, its field

# {0} is the subject, {1} the first argument. A sentence starts in lower case and has no full stop, since it stands
# after a colon or in brackets as often as alone.
_SENTENCES: dict[ReasonCode, str] = {
    ReasonCode.REMOTE_PREFIX: _ORIGIN + ", through {4}",
    ReasonCode.REMOTE_PREFIX_BY_HUB: _ORIGIN + ", through {4} of hub region {5}",
    ReasonCode.REMOTE_PREFIX_BY_GATEWAY: _ORIGIN + ", through our gateway {4}",
    ReasonCode.OWN_PREFIX_OUT_OF_TUNNEL: _ORIGIN + ", out of the tunnel",
    ReasonCode.FAIL_CLOSED: "never in clear: " + _ORIGIN,
    ReasonCode.MESH_ADDRESSES: "addresses of mesh {0}",
    ReasonCode.FAIL_CLOSED_MESH: "never in clear: addresses of mesh {0}",
    ReasonCode.TUNNEL_DEVICE: "this node is {1} of region {0}",
    ReasonCode.TUNNEL_ADDRESS: "tunnel address of node {0}",
    ReasonCode.VXLAN_DEVICE: "joins the nodes of region {0} and its gateway",
    ReasonCode.VXLAN_ADDRESS: "address of node {0} on its region's VXLAN",
    ReasonCode.VXLAN_MEMBER: "node {0} of our own region",
    ReasonCode.KEEP_SOURCES: "packets between regions keep their source addresses",
    ReasonCode.RULE_OUTER_BYPASS: "our own outer packets never enter the tunnel they carry",
    ReasonCode.RULE_PORTS_TUNNEL: "makes the kernel read ports when it looks up a packet again",
    ReasonCode.RULE_PORTS_API: "makes the kernel read ports when it looks up the way of the API server's answers",
    ReasonCode.RULE_FROM_TUNNEL: "packets from the tunnel go to nodes of this region by the table of the way back",
    ReasonCode.RULE_FROM_VXLAN: "packets that nodes of this region send here enter the tunnel here, even after "
    "another node became active",
    ReasonCode.RULE_API_BYPASS: "the connection to the API server stays outside the tunnel",
    ReasonCode.RULE_REMOTE: "prefixes of other regions",
    ReasonCode.RULE_LANDING: "target of the rules that bypass the table of other regions",
    ReasonCode.FORWARD_TUNNEL: "packets out of the tunnel are forwarded",
    ReasonCode.FORWARD_VXLAN: "packets of the region's other nodes are forwarded",
    ReasonCode.FORWARD_PODS: "pods behind {0} reach other regions",
    ReasonCode.FORWARD_ALL_IPV6: "this kernel forwards IPv6 on all devices or none",
    ReasonCode.LOOSE_RP_FILTER: "packets arrive by another device than the way back while roles change",
    ReasonCode.NO_REDIRECTS: "packets may leave by the device by which they came",
    ReasonCode.ENABLE_IPV6: "the host has IPv6 disabled, the mesh needs it",
    ReasonCode.KEEP_ROUTER_ADVERTISEMENTS: "{0} still accepts router advertisements while it forwards",
    ReasonCode.SAME_REGION_PEER: "{1} node of our own region, for probes",
    ReasonCode.REMOTE_GATEWAY: "{1} gateway of region {2}",
    ReasonCode.REMOTE_GATEWAY_BEHIND_NAT: "{1} gateway of region {2}, behind NAT",
    ReasonCode.NO_REGION: "node {0} is in no region: nothing is set up here",
    ReasonCode.NO_VXLAN_MEMBER: "node {0} has no place on its region's VXLAN, so it does not reach other regions: "
    "another node's address collides with it, or its InternalIP is missing or not on this host",
    ReasonCode.NO_ACTIVE_VXLAN_MEMBER: "no active gateway of region {0} is on its VXLAN, so other regions are not "
    "reached",
    ReasonCode.GATEWAY_WITHOUT_PEER: "our gateway {0} has no Peer, as where upstream's agent runs: it holds no "
    "session with this node and answers no probe, so it is not known whether it is alive",
    ReasonCode.SOURCE_NOT_ACCEPTED: "connections from this node leave with source address {1}, which other regions "
    "do not accept: announce it in Peer {0}, spec.sources",
    ReasonCode.REGION_WITHOUT_HUB: "region {0} is not reached: both ends are behind NAT and no region serves as hub",
    ReasonCode.PREFIX_IN_OWN_REGION: "{1} of region {0} is not routed here: it overlaps prefixes of our own region",
    ReasonCode.NODE_ADDRESS_IN_OWN_NETWORK: "node addresses of region {0} are not routed here, because they lie in "
    "our own network: {1}",
    ReasonCode.ENDPOINT_NO_MEMBER: "{1}: node {2} is not among the nodes of Gateway {0}",
    ReasonCode.ENDPOINT_WITHOUT_KEY: "{1}: no Peer named {2}, so its public key is unknown",
    ReasonCode.NO_ACTIVE_ENDPOINT: "Gateway {0}: no active tunnel endpoint, its pods cannot be reached",
    ReasonCode.STANDBY_TOOK_OVER: "region {0}: gateway {2} is proven dead, so its role is taken by {1}",
    ReasonCode.PROBES_UNANSWERED: "it answers no probe",
    ReasonCode.HANDSHAKE_FAILED: "{1}",
    ReasonCode.HANDSHAKE_RUNNING: "a handshake is running",
    ReasonCode.NO_HANDSHAKE: "no handshake yet",
    ReasonCode.REGION_WITHOUT_GATEWAY: "it has no active gateway",
    ReasonCode.REGION_WITHOUT_PATH: "there is no path to its gateway: both are behind NAT and there is no public "
    "hub, or it has no Peer",
    ReasonCode.GATEWAY_SESSION: "{0} is {1}, {2}",
    ReasonCode.OWN_GATEWAY_SESSION: "our gateway {0} is {1}, {2}",
    ReasonCode.OWN_GATEWAY_UNKNOWN: "not known: our gateway {0} has no Peer, as where upstream's agent runs",
    ReasonCode.OWN_GATEWAY_WITHOUT_SESSION: "there is no session with our gateway {0}, so nothing is known of it",
    ReasonCode.NO_OWN_GATEWAY: "region {0} has no active gateway that this node can send to",
}


def explain(reason: Reason | None) -> str:
    """Return the sentence for a reason, without a final full stop; empty for None."""
    if reason is None:
        return ""
    return _SENTENCES[reason.code].format(reason.subject, *map(_text, reason.arguments))


def code_of(reason: Reason | None) -> str:
    """Return the code of a reason as JSON shows it beside the sentence; empty for None."""
    return "" if reason is None else reason.code.value


def _text(argument: object) -> str:
    if isinstance(argument, Reason):  # (a tuple as well)
        return explain(argument)
    if isinstance(argument, tuple):
        listed = ", ".join(map(_text, argument[:MAX_LISTED]))
        more = len(argument) - MAX_LISTED
        return f"{listed} and {more} more" if more > 0 else listed
    return str(argument)
