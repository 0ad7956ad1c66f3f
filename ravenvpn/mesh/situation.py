"""`Situation`: the one frozen value an agent plans from.

Each field has one source, which replaces it and wakes the planning task: the cluster or the manifests (`world`),
probing (`liveness`), the kernel (`facts`), configuration and control API (`intent`), key files (`keys`), the network
(`observed`). `mesh.plan.Planner.update` compares the fields with those of the situation before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.mesh.liveness import DEFAULT_PROBE_INTERVALS, UNKNOWN, Liveness
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import HostPort, World


@dataclass(frozen=True, slots=True)
class Intent:
    """Settings the operator chose for this node, as far as planning and the tunnel need them.

    All of them can change while the agent runs. Requests made at run time (none exist yet; draining a node will be
    the first) belong here too, as fields.
    """

    listen_port: int | None = None  # UDP port of the tunnel; None: from Gateway or Peer, see `mesh.tunnel_port`
    forward_node_ip: bool = False  # route and accept node addresses of other regions as pod prefixes are
    addresses: tuple[HostPort, ...] = ()  # announced in our Peer, best first
    suites: frozenset[Suite] = frozenset({Suite.CHACHA20POLY1305})  # AEAD suites this node offers
    preshared_key: PresharedKey | None = None  # mixed into every handshake
    disabled_offloads: frozenset[str] = frozenset()  # names in `ravenvpn.offloads`
    # Seconds between probes of a peer with traffic, and of an idle one (0: idle peers are not probed).
    probe_intervals: tuple[float, float] = DEFAULT_PROBE_INTERVALS


@dataclass(frozen=True, slots=True, repr=False)
class IdentityKeys:
    """Static Curve25519 keys of this node by role. `next` and `previous` are for key rotation; no caller yet."""

    current: PrivateKey | None = None  # None: a plan that is only printed
    next: PrivateKey | None = None  # announced as spec.nextPublicKey, not used for handshakes we start
    previous: PrivateKey | None = None  # still answers handshakes of peers that have not seen the new key

    def __repr__(self) -> str:
        """Show public keys only: a repr ends up in logs and tracebacks."""
        shown = ((name, getattr(self, name)) for name in ("current", "next", "previous"))
        return f"IdentityKeys({', '.join(f'{name}={key.public if key else None}' for name, key in shown)})"


@dataclass(frozen=True, slots=True)
class Observations:
    """State that is measured while the agent runs. Endpoints as other nodes see them and path MTUs belong here."""

    # UDP ports on which the open tunnel receives. Besides the planned one this has the former one while the port
    # changes: until the new one is bound, and for as long as peers may still send to the old one.
    tunnel_ports: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything the plan of one node depends on, apart from the node's name."""

    world: World = field(default_factory=World)
    liveness: Liveness = UNKNOWN
    facts: LocalFacts = field(default_factory=LocalFacts)
    intent: Intent = field(default_factory=Intent)
    keys: IdentityKeys = field(default_factory=IdentityKeys)
    observed: Observations = field(default_factory=Observations)
