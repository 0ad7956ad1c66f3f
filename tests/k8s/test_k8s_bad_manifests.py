"""Errors in manifests: each is reported with file, line, field and remedy, and other files are not affected."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from ravenvpn.k8s.directory import Manifests
from ravenvpn.k8s.problems import Problem

KEY = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="
HEALTHY = """
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata: {name: healthy}
spec: {tunnelConfig: {Replicas: 1}, endpoints: [{nodeName: good-1, type: tunnel}]}
"""


def gateway(spec: str, name: str = "bad", version: str = "raven.openyurt.io/v1beta1", more: str = "") -> str:
    """Return a Gateway; the content of its spec begins on line 5."""
    return f"apiVersion: {version}\nkind: Gateway\nmetadata: {{name: {name}}}\nspec:\n{spec}\n{more}"


def endpoint(fields: str, more: str = "") -> str:
    return gateway(f"  tunnelConfig: {{Replicas: 1}}\n  endpoints:\n  - {{{fields}}}\n{more}")


def peer(spec: str) -> str:
    """Return a Peer; the content of its spec begins on line 5."""
    return f"apiVersion: ravenvpn.io/v1alpha1\nkind: Peer\nmetadata: {{name: bad}}\nspec:\n{spec}\n"


def node(rest: str) -> str:
    """Return a Node; its spec or status begins on line 4."""
    labels = "{raven.openyurt.io/gateway: healthy}"
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: bad, labels: {labels}}}\n{rest}\n"


def status(nodes: str) -> str:
    return gateway("  endpoints: []", more=f"status:\n  nodes:\n  - {nodes}\n")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


class Bad(NamedTuple):
    name: str
    text: str | bytes
    line: int
    field: str
    message: str  # part of the message
    remedy: str  # part of the remedy
    fatal: bool = True


KINDS = [
    # The file.
    Bad("not UTF-8", b"kind: \xff\xfe\xfa", 1, "", "is not text", "save it as UTF-8"),
    Bad("a control character", b"kind: Gateway\nname: \x07", 2, "", "is not text", "without control characters"),
    Bad("an unclosed list", "a: [1, 2\nb: 3\n", 2, "", "is not YAML", "correct the syntax"),
    Bad("an unclosed quote", "a: 'text\n", 2, "", "is not YAML", "correct the syntax"),
    Bad("a tab as indentation", "a:\n\tb: 1\n", 2, "", "is not YAML", "correct the syntax"),
    Bad("bad indentation", "a:\n  b: 1\n c: 2\n", 3, "", "is not YAML", "correct the syntax"),
    Bad("a duplicate key", "kind: Gateway\nkind: Peer\n", 2, "", "'kind' appears twice, first on line 1", "keep one"),
    Bad("a Python tag", "a: !!python/object/apply:os.system [id]\n", 1, "", "tag", "without a tag"),
    Bad("a made-up tag", "a: !secret x\n", 1, "", "tag '!secret' is not supported", "without a tag"),
    Bad("a bomb of aliases", BOMB, 5, "", "aliases repeat more than 50000 values", "write the values out"),
    Bad(
        "an alias to itself",
        "a: &a [*a]\n",
        1,
        "",
        "an alias (*) refers to the value that contains it",
        "write the value out",
    ),
    Bad("an alias to nothing", "a: *b\n", 1, "", "names an anchor that is not defined", "define the anchor (&)"),
    Bad("a merge key", "a: &a {x: 1}\nb:\n  <<: *a\n", 3, "", "merge keys", "write the fields out"),
    Bad("a list as key", "? [a, b]\n: c\n", 1, "", "a key is not plain text", "keys of Kubernetes objects are text"),
    Bad("nesting without end", "[" * 5000, 1, "", "nested more than 64 deep", "write it as a plain object"),
    Bad("17 MiB", "x" * (17 << 20), 0, "", "is 17 MiB large, the limit is 16 MiB", "split it"),
    Bad("nothing", "\n\n", 0, "", "is empty", "remove it or fill it", fatal=False),
    # The object.
    Bad("text instead of an object", "hello\n", 1, "", "is text instead of an object", "begin with apiVersion"),
    Bad(
        "a list instead of an object", "- a\n- b\n", 1, "", "is a list instead of an object", "begin with apiVersion"
    ),
    Bad("no kind", "apiVersion: v1\nmetadata: {name: x}\n", 1, "kind", "is missing", "write for example"),
    Bad("no apiVersion", "kind: Gateway\nmetadata: {name: x}\n", 1, "apiVersion", "is missing", "write for example"),
    Bad(
        "a number as kind", "apiVersion: v1\nkind: 7\n", 2, "kind", "is a number instead of text", "write for example"
    ),
    Bad(
        "a mistyped kind",
        "apiVersion: raven.openyurt.io/v1beta1\nkind: Gatway\nmetadata: {name: x}\n",
        2,
        "kind",
        "'Gatway' of raven.openyurt.io/v1beta1 is not read",
        "did you mean Gateway?",
        fatal=False,
    ),
    Bad(
        "a kind of another API",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
        2,
        "kind",
        "'ConfigMap' of v1 is not read",
        "other kinds are ignored",
        fatal=False,
    ),
    Bad(
        "a version that does not exist",
        gateway("  {}", version="raven.openyurt.io/v1"),
        1,
        "apiVersion",
        "'raven.openyurt.io/v1' is not known for a Gateway",
        "write raven.openyurt.io/v1alpha1 or raven.openyurt.io/v1beta1",
    ),
    Bad(
        "no metadata",
        "apiVersion: v1\nkind: Node\nspec: {}\n",
        1,
        "metadata",
        "is missing",
        "add metadata",
    ),
    Bad("no name", "apiVersion: v1\nkind: Node\nmetadata: {}\n", 3, "metadata.name", "is empty", "give it a name"),
    Bad(
        "a name in capitals",
        gateway("  {}", name="Cloud"),
        3,
        "metadata.name",
        "'Cloud' is not a name that Kubernetes accepts",
        "lower-case letters",
    ),
    Bad(
        "a name in Cyrillic", gateway("  {}", name="сloud"), 3, "metadata.name", "is not a name", "lower-case letters"
    ),
    Bad("an endless name", gateway("  {}", name="a" * 254), 3, "metadata.name", "is not a name", "at most 253"),
    Bad(
        "a number as name",
        gateway("  {}", name="42"),
        3,
        "metadata.name",
        "is a whole number instead of text",
        "text",
    ),
    Bad("a list as spec", gateway("  []"), 4, "spec", "is a list instead of an object", "write an object"),
    Bad(
        "a number among labels",
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: x\n  labels: {a: 1}\n",
        5,
        "metadata.labels",
        "is a whole number instead of text",
        "write text",
    ),
    Bad(
        "a text that is not a time",
        "apiVersion: ravenvpn.io/v1alpha1\nkind: Peer\nmetadata:\n  name: x\n  creationTimestamp: yesterday\n"
        f"spec: {{publicKey: {KEY}}}\n",
        5,
        "metadata.creationTimestamp",
        "'yesterday' is not a time",
        "2026-01-31T12:00:00Z",
    ),
    # Gateway.
    Bad(
        "replicas in small letters",
        gateway("  tunnelConfig: {replicas: 1}"),
        5,
        "spec.tunnelConfig.Replicas",
        "is missing",
        "rename 'replicas' to 'Replicas'",
    ),
    Bad(
        "replicas as text",
        gateway('  tunnelConfig: {Replicas: "1"}'),
        5,
        "spec.tunnelConfig.Replicas",
        "is text instead of a whole number",
        "write a whole number",
    ),
    Bad(
        "negative replicas",
        gateway("  tunnelConfig: {Replicas: -1}"),
        5,
        "spec.tunnelConfig.Replicas",
        "-1 is out of range",
        "between 0 and 64",
    ),
    Bad(
        "a thousand replicas",
        gateway("  tunnelConfig: {Replicas: 1000}"),
        5,
        "spec.tunnelConfig.Replicas",
        "1000 is out of range",
        "between 0 and 64",
    ),
    Bad(
        "more proxies wanted than listed",
        gateway("  proxyConfig: {Replicas: 2}\n  endpoints: [{nodeName: a, type: proxy}]"),
        5,
        "spec.proxyConfig.Replicas",
        "asks for 2 active proxy endpoints",
        "list as many",
    ),
    Bad(
        "a port list with words",
        gateway('  proxyConfig: {Replicas: 1, proxyHTTPPort: "10255,kubelet"}'),
        5,
        "spec.proxyConfig.proxyHTTPPort",
        "'kubelet' is not a port",
        '"10255,9445"',
    ),
    Bad(
        "an unknown exposure",
        gateway("  exposeType: Loadbalancer"),
        5,
        "spec.exposeType",
        "'Loadbalancer' is unknown",
        "PublicIP or LoadBalancer",
    ),
    Bad(
        "exposed behind NAT",
        gateway("  exposeType: PublicIP\n  endpoints: [{nodeName: a, type: tunnel, underNAT: true}]"),
        6,
        "spec.endpoints[0].underNAT",
        "cannot be behind NAT",
        "leave exposeType out",
    ),
    Bad(
        "endpoints half behind NAT",
        gateway("  endpoints:\n  - {nodeName: a, type: tunnel}\n  - {nodeName: b, type: tunnel, underNAT: true}"),
        7,
        "spec.endpoints[1].underNAT",
        "differs from the first endpoint's",
        "all are behind NAT or none is",
    ),
    Bad(
        "an endpoint without node",
        endpoint("type: tunnel"),
        7,
        "spec.endpoints[0].nodeName",
        "is missing",
        "add nodeName",
    ),
    Bad(
        "an empty node name",
        endpoint('nodeName: "", type: tunnel'),
        7,
        "spec.endpoints[0].nodeName",
        "is empty",
        "give it a name",
    ),
    Bad(
        "a node name with blanks",
        endpoint("nodeName: my node, type: tunnel"),
        7,
        "spec.endpoints[0].nodeName",
        "'my node' is not a name",
        "lower-case letters",
    ),
    Bad(
        "an endpoint without type",
        endpoint("nodeName: a"),
        7,
        "spec.endpoints[0].type",
        "is missing",
        "tunnel or proxy",
    ),
    Bad(
        "an unknown type",
        endpoint("nodeName: a, type: vpn"),
        7,
        "spec.endpoints[0].type",
        "'vpn' is not a type of endpoint",
        "tunnel or proxy",
    ),
    Bad(
        "port 70000",
        endpoint("nodeName: a, type: tunnel, port: 70000"),
        7,
        "spec.endpoints[0].port",
        "70000 is not a port",
        "between 1 and 65535",
    ),
    Bad(
        "a negative public port",
        endpoint("nodeName: a, type: tunnel, publicPort: -1"),
        7,
        "spec.endpoints[0].publicPort",
        "-1 is not a port",
        "between 1 and 65535",
    ),
    Bad(
        "a port as text",
        endpoint('nodeName: a, type: tunnel, port: "4500"'),
        7,
        "spec.endpoints[0].port",
        "is text instead of a whole number",
        "write a whole number",
    ),
    Bad(
        "yes for true",
        endpoint("nodeName: a, type: tunnel, underNAT: yes"),
        7,
        "spec.endpoints[0].underNAT",
        "is text instead of true or false",
        "write true or false",
    ),
    Bad(
        "an address with five parts",
        endpoint("nodeName: a, type: tunnel, publicIP: 1.2.3.4.5"),
        7,
        "spec.endpoints[0].publicIP",
        "'1.2.3.4.5' is not an address",
        "192.0.2.7",
    ),
    Bad(
        "an address with a prefix length",
        endpoint("nodeName: a, type: tunnel, publicIP: 192.0.2.7/24"),
        7,
        "spec.endpoints[0].publicIP",
        "'192.0.2.7/24' is not an address",
        "without prefix length",
    ),
    Bad(
        "loopback as public address",
        endpoint('nodeName: a, type: tunnel, publicIP: "::1"'),
        7,
        "spec.endpoints[0].publicIP",
        "is a loopback address",
        "an address of the node",
    ),
    Bad(
        "a DNS name with an underscore",
        endpoint("nodeName: a, type: tunnel, publicIP: my_vpn.example.org"),
        7,
        "spec.endpoints[0].publicIP",
        "neither an address nor a DNS name",
        "vpn.example.org",
    ),
    Bad(
        "10,000 endpoints",
        gateway("  endpoints:\n" + "".join(f"  - {{nodeName: n{i}, type: tunnel}}\n" for i in range(10_000))),
        5,
        "spec.endpoints",
        "lists 10000 endpoints, the limit is 1024",
        "not all nodes of the region",
    ),
    Bad(
        "an endpoint twice",
        gateway("  endpoints:\n  - {nodeName: a, type: tunnel}\n  - {nodeName: a, type: tunnel}"),
        6,
        "spec.endpoints[0]",
        "node a is listed 2 times with type tunnel",
        "the first entry counts",
        fatal=False,
    ),
    Bad(
        "an unknown field of an endpoint",
        endpoint("nodeName: a, type: tunnel, publicIp: 192.0.2.7"),
        7,
        "spec.endpoints[0].publicIp",
        "is not a field of this object",
        "did you mean publicIP?",
        fatal=False,
    ),
    Bad(
        "an unknown field of the spec",
        gateway("  endPoints: []"),
        5,
        "spec.endPoints",
        "is not a field of this object",
        "did you mean endpoints?",
        fatal=False,
    ),
    Bad(
        "v1alpha1 without endpoints",
        gateway("  endpoints: []", version="raven.openyurt.io/v1alpha1"),
        5,
        "spec.endpoints",
        "is empty",
        "at least one node",
    ),
    Bad(
        "a mangled annotation of extra prefixes",
        "apiVersion: raven.openyurt.io/v1beta1\nkind: Gateway\nmetadata:\n  name: x\n  annotations:\n"
        "    raven.openyurt.io/extra-allowed-source-cidrs: 10.9.0.0/16,10.10\n",
        6,
        "metadata.annotations[raven.openyurt.io/extra-allowed-source-cidrs]",
        "'10.10' has no prefix length",
        "append /32",
    ),
    Bad(
        "a subnet that is none",
        status("{nodeName: a, privateIP: 10.0.0.1, subnets: [pods]}"),
        8,
        "status.nodes[0].subnets[0]",
        "'pods' has no prefix length",
        "/32",
    ),
    Bad(
        "an empty subnet",
        status('{nodeName: a, privateIP: 10.0.0.1, subnets: [""]}'),
        8,
        "status.nodes[0].subnets[0]",
        "is empty",
        "the entry is ignored",
        fatal=False,
    ),
    Bad(
        "a private address of no family",
        status("{nodeName: a, privateIP: 10.0.0.256, subnets: []}"),
        8,
        "status.nodes[0].privateIP",
        "'10.0.0.256' is not an address",
        "192.0.2.7",
    ),
    # Node.
    Bad(
        "host bits in a pod prefix",
        node("spec: {podCIDRs: [10.244.1.1/24]}"),
        4,
        "spec.podCIDRs[0]",
        "has host bits: the prefix is 10.244.1.0/24",
        "without host bits",
    ),
    Bad(
        "an IPv6 prefix that is too long",
        node('spec: {podCIDRs: ["fd00::/129"]}'),
        4,
        "spec.podCIDRs[0]",
        "'fd00::/129' is not a prefix",
        "fd00:10:244:1::/64",
    ),
    Bad(
        "everything as pod prefix",
        node("spec: {podCIDR: 0.0.0.0/0}"),
        4,
        "spec.podCIDR",
        "0.0.0.0/0 is the whole address space",
        "the prefix of its pods",
    ),
    Bad(
        "a multicast pod prefix",
        node("spec: {podCIDR: 239.1.0.0/16}"),
        4,
        "spec.podCIDR",
        "is a multicast prefix",
        "the prefix of its pods",
    ),
    Bad(
        "a link-local pod prefix",
        node('spec: {podCIDR: "fe80::/64"}'),
        4,
        "spec.podCIDR",
        "is a link-local prefix",
        "the prefix of its pods",
    ),
    Bad(
        "podCIDR against podCIDRs",
        node("spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.2.0.0/24]}"),
        4,
        "spec.podCIDR",
        "differs from spec.podCIDRs[0]",
        "make both the same",
    ),
    Bad(
        "pod prefixes as text",
        node("spec: {podCIDRs: 10.1.0.0/24}"),
        4,
        "spec.podCIDRs",
        "is text instead of a list",
        "write a list",
    ),
    Bad(
        "an internal address that is a name",
        node("status: {addresses: [{type: InternalIP, address: node-1}]}"),
        4,
        "status.addresses[0].address",
        "'node-1' is not an address",
        "192.0.2.7",
    ),
    Bad(
        "a gateway label with a blank",
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: x\n  labels: {raven.openyurt.io/gateway: my region}\n",
        5,
        "metadata.labels[raven.openyurt.io/gateway]",
        "'my region' is not a name",
        "lower-case letters",
    ),
    # Peer.
    Bad("a Peer without key", peer("  listenPort: 4500"), 4, "spec.publicKey", "is missing", "add publicKey"),
    Bad("a key that is no base64", peer("  publicKey: hello"), 5, "spec.publicKey", "is not base64", "wg pubkey"),
    Bad(
        "a key that is too short",
        peer('  publicKey: "aGVsbG8="'),
        5,
        "spec.publicKey",
        "holds 5 bytes instead of 32",
        "44 characters",
    ),
    Bad("a key of zeros", peer(f"  publicKey: {'A' * 43}="), 5, "spec.publicKey", "is all zeros", "wg pubkey"),
    Bad("a key in Cyrillic", peer("  publicKey: ключ"), 5, "spec.publicKey", "is not base64", "wg pubkey"),
    Bad(
        "the current key as the next one",
        peer(f"  publicKey: {KEY}\n  nextPublicKey: {KEY}"),
        6,
        "spec.nextPublicKey",
        "is the current key",
        "leave it out",
    ),
    Bad(
        "a listen port out of range",
        peer(f"  publicKey: {KEY}\n  listenPort: 65536"),
        6,
        "spec.listenPort",
        "65536 is not a port",
        "between 1 and 65535",
    ),
    Bad(
        "a candidate with a bad port",
        peer(f'  publicKey: {KEY}\n  addresses: ["192.0.2.1:99999"]'),
        6,
        "spec.addresses[0]",
        "99999 is not a port",
        "between 1 and 65535",
    ),
    Bad(
        "a candidate that is a URL",
        peer(f'  publicKey: {KEY}\n  addresses: ["https://vpn.example.org"]'),
        6,
        "spec.addresses[0]",
        "neither an address nor a DNS name",
        "192.0.2.7",
    ),
    Bad(
        "forty candidates",
        peer(f"  publicKey: {KEY}\n  addresses: [{', '.join(['192.0.2.1'] * 40)}]"),
        6,
        "spec.addresses",
        "lists 40 addresses",
        "32 at most",
    ),
    Bad(
        "two sources of one family",
        peer(f"  publicKey: {KEY}\n  sources: [10.0.0.1, 10.0.0.2]"),
        6,
        "spec.sources",
        "names several IPv4 addresses",
        "one address for each family",
    ),
    Bad(
        "a link-local node address",
        peer(f'  publicKey: {KEY}\n  nodeAddresses: ["fe80::1"]'),
        6,
        "spec.nodeAddresses[0]",
        "fe80::1 is link-local",
        "another network segment",
    ),
    Bad(
        "an unknown suite",
        peer(f"  publicKey: {KEY}\n  suites: [rot13]"),
        6,
        "spec.suites[0]",
        "'rot13' is not known here",
        "chacha20poly1305, aes256gcm",
        fatal=False,
    ),
]


def test_the_table_has_at_least_60_different_errors() -> None:
    assert len({bad.name for bad in KINDS}) == len(KINDS) >= 60


@pytest.mark.parametrize("bad", KINDS, ids=lambda bad: bad.name)
def test_a_malformed_manifest_is_reported_and_does_not_affect_other_files(bad: Bad) -> None:
    manifests = Manifests()
    text = bad.text if isinstance(bad.text, bytes) else bad.text.encode()

    manifests.update({"bad.yaml": text, "good.yaml": HEALTHY.encode()})

    assert "healthy" in manifests.world.gateways
    assert len(manifests.problems) == 1, [str(p) for p in manifests.problems]
    problem: Problem = manifests.problems[0]
    assert (problem.file, problem.line, problem.field, problem.fatal) == ("bad.yaml", bad.line, bad.field, bad.fatal)
    assert bad.message in problem.message
    assert bad.remedy in problem.remedy
    taken = {*manifests.world.gateways, *manifests.world.nodes, *manifests.world.peers} - {"healthy"}
    assert (not taken) if bad.fatal else True
    assert len(str(problem)) < 400
    assert "\n" not in str(problem)
