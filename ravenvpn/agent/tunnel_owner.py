"""Own the tunnel: open it, apply what a plan changed, and open another where a role needs another kind.

A change is applied in two halves around that of the host: `apply_additions` before a route may lead into the tunnel,
`apply_removals` after no route leads to a removed peer any more. Owned by the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address

from ravenvpn.agent.resolve import Resolver
from ravenvpn.agent.translate import peer_settings
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import TUNNEL_DEVICE
from ravenvpn.mesh.nodeplan import NodePlan, NodeRole, PeerPlan, TunnelDelta, TunnelPlan
from ravenvpn.mesh.situation import IdentityKeys, Intent
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix
from ravenvpn.tunnel.driver import Listeners, Tunnel
from ravenvpn.tunnel.linux import uapi_socket
from ravenvpn.tunnel.linux.opener import open_resources
from ravenvpn.tunnel.linux.uapi_socket import UapiServer
from ravenvpn.tunnel.peer import PeerStatus
from ravenvpn.tunnel.probing import frame
from ravenvpn.tunnel.wg_view import state_of

log = logging.getLogger(__name__)


class TunnelOwner:
    """The one tunnel of this agent, None while the role needs none or it cannot be opened.

    `on_stale` is called on the loop when the tunnel needs another `apply_additions` although the plan is the same: a
    DNS name resolves to other addresses, or the device is gone. `listeners` get the events of every tunnel that is
    opened. `last_seen` maps peers to the endpoints of their last sessions. `body` forces a data plane ("pure",
    "native"); None prefers the native one.
    """

    def __init__(
        self,
        *,
        last_seen: Mapping[str, Endpoint],
        on_stale: Callable[[], None],
        listeners: Listeners,
        body: str | None = None,
    ) -> None:
        self._last_seen = last_seen
        self._resolver = Resolver(self._on_resolved)
        self._on_stale, self._listeners, self._body = on_stale, listeners, body
        self._intent, self._keys = Intent(), IdentityKeys()  # in force, or for the next tunnel
        self._plans: dict[str, PeerPlan] = {}
        self._planned: TunnelPlan | None = None  # port, own address and so on, without peers and prefixes
        self._applied: TunnelPlan | None = None  # the part of it that the tunnel has
        self._names_changed = False  # since the peers' endpoints were last set
        self._device_lost = False  # the TUN device was deleted under the tunnel
        self._wg: UapiServer | None = None
        self.tunnel: Tunnel | None = None
        self.refused: dict[str, str] = {}  # peer → why the tunnel did not accept its settings

    def configure(self, intent: Intent, keys: IdentityKeys) -> None:
        """Apply the operator's settings and our key to the tunnel that is open, and to those opened later.

        Sessions stay: suites and preshared key count from the next handshake on. The listen port comes with the plan
        (`apply_additions`)."""
        before, had = self._intent, self._keys
        self._intent, self._keys = intent, keys
        if self.tunnel is None:
            return  # `_open` uses them
        if keys.current != had.current:
            self.tunnel.set_private_key(keys.current)
        if intent.suites != before.suites:
            self.tunnel.set_suites(intent.suites)
        if intent.disabled_offloads != before.disabled_offloads:
            self.tunnel.set_offloads(Offloads.without(intent.disabled_offloads))
        if intent.preshared_key != before.preshared_key:
            self._set_all_peers()

    def device_lost(self, name: str) -> None:
        """Handle the deletion of a device of ours: the TUN's makes the tunnel useless, so another one is needed.

        Without a tunnel it was the device of an attempt to open one, which is repeated anyway."""
        if name == TUNNEL_DEVICE and self.tunnel is not None:
            self._device_lost = True
            self._on_stale()

    def ports(self) -> frozenset[int]:
        """Return the UDP ports on which the tunnel receives, empty without a tunnel. Two or more: its port
        changes."""
        return self.tunnel.ports if self.tunnel is not None else frozenset()

    def moves_port(self, delta: TunnelDelta) -> bool:
        """Return whether applying this delta binds the open tunnel to another port."""
        return (
            self.tunnel is not None
            and delta.settings is not None
            and self.tunnel.listen_port != delta.settings.listen_port
        )

    async def apply_additions(self, plan: Callable[[], NodePlan], delta: TunnelDelta) -> bool:
        """Add what the plan added, and open the tunnel if there is none; return whether one was opened.

        `plan` makes the whole plan, which is needed to open. HostError where the device or the port cannot be had:
        everything that does not depend on it is done, and a call with the next delta, even an empty one, retries."""
        if delta.settings is not None:
            self._planned = delta.settings
        # The old tunnel goes first: the port and the device's name can be held once only.
        other_kind = (
            self._applied is not None and self._planned is not None and _kind(self._applied) != _kind(self._planned)
        )
        if self._device_lost or other_kind:
            await self.close()
        if self.tunnel is None:
            whole = plan()
            if whole.role is not NodeRole.NONE:
                await self._open(whole)
                return True
            return False
        for peer in delta.peers_set:
            self._set_peer(peer)
        for change in delta.accepts:
            self._accept(change.peer, add=change.add)
        for prefix, names in delta.routes:
            _set_route(self.tunnel, prefix, names)
        self._watch_names()
        if self._names_changed:
            self._set_all_peers()
        if self._planned is not None and self._planned != self._applied:
            self._apply_settings(self._planned)
        return False

    def apply_removals(self, delta: TunnelDelta) -> None:
        """Remove the peers and accepted prefixes that the plan removed."""
        tunnel = self.tunnel
        if tunnel is None:
            return
        for change in delta.accepts:
            self._accept(change.peer, remove=change.remove)
        for name in delta.peers_removed:
            self._plans.pop(name, None)
            self.refused.pop(name, None)
            if name in tunnel.peers.settings:
                tunnel.peers.remove(name)
        self._watch_names()

    async def close(self) -> None:
        """Stop the tunnel, which deletes its device. The host's other state stays. Safe to call twice."""
        self._device_lost = False
        if self._wg is not None:
            await self._wg.stop()
            self._wg = None
        if self.tunnel is not None:
            self.tunnel.stop()
            self.tunnel = self._applied = None
        self._resolver.close()

    def statuses(self) -> list[PeerStatus]:
        """Return the state of every peer, empty without a tunnel."""
        return self.tunnel.peers.statuses() if self.tunnel is not None else []

    def unresolved(self) -> list[str]:
        """Return the DNS names of endpoints whose last look-up failed."""
        return self._resolver.failing()

    def peer_plans(self) -> dict[str, PeerPlan]:
        """Return the plans of the peers that the tunnel has, by name; those it refused are left out."""
        return {name: plan for name, plan in self._plans.items() if name not in self.refused} if self.tunnel else {}

    # Inside.

    def _on_resolved(self) -> None:
        """Note that endpoints are out of date. They are set by `apply_additions`, so that it never runs beside it."""
        self._names_changed = True
        self._on_stale()

    async def _open(self, plan: NodePlan) -> None:
        """Open a tunnel with everything in this plan, before the first packet. HostError leaves none open."""
        settings = replace(plan.tunnel, peers=(), routes=(), accepts=())
        tunnel = self._make_tunnel(settings)
        self.tunnel, self._applied, self._planned = tunnel, None, settings
        self._plans, self.refused = {}, {}
        try:
            self._apply_settings(settings)
            tunnel.set_private_key(self._keys.current)
            for peer in plan.tunnel.peers:
                self._set_peer(peer)
            for name, prefixes in plan.tunnel.accepts:
                self._accept(name, add=prefixes)
            for prefix, names in plan.tunnel.routes:
                _set_route(tunnel, prefix, names)
            tunnel.start()
        except BaseException:
            # Not kept half open: the next attempt needs the device's name and the port.
            tunnel.stop()
            self.tunnel, self._applied = None, None
            raise
        self._watch_names()
        if settings.device:
            await self._serve_uapi(tunnel)
        log.info("tunnel open on UDP port %d, %d peers", tunnel.listen_port, len(self._plans))

    def _make_tunnel(self, settings: TunnelPlan) -> Tunnel:
        """Return a tunnel that is not started, with a TUN device if the role needs one. HostError."""
        device = TUNNEL_DEVICE if settings.device else None
        resources = open_resources(device, mtu=settings.mtu, port=settings.listen_port)
        try:
            return Tunnel(
                resources,
                suites=self._intent.suites,
                offloads=Offloads.without(self._intent.disabled_offloads),
                listeners=self._listeners,
                body=self._body,
            )
        except BaseException:
            resources.close()
            raise

    async def _serve_uapi(self, tunnel: Tunnel) -> None:
        """Serve the UAPI socket so that wg(8) can show the device; a write is answered with EPERM. Never fatal."""
        try:
            wg = UapiServer(uapi_socket.listen(TUNNEL_DEVICE), lambda: state_of(tunnel))
        except HostError as error:
            log.warning("`wg show` will not list the tunnel: %s", error)
            return
        await wg.start()
        self._wg = wg

    def _apply_settings(self, settings: TunnelPlan) -> None:
        """Set port and own address. HostError where the port is taken: the one before stays in use."""
        assert self.tunnel is not None
        self.tunnel.listen(port=settings.listen_port)
        self.tunnel.set_own_address(settings.own_address, frame.PORT)
        self._applied = settings

    def _set_all_peers(self) -> None:
        """Set every peer again: their endpoints' names or the preshared key changed."""
        self._names_changed = False
        for plan in self._plans.values():
            self._set_peer(plan)

    def _set_peer(self, plan: PeerPlan) -> None:
        """Add or change one peer. One that the tunnel refuses is noted in `refused`, with a warning."""
        assert self.tunnel is not None
        self._plans[plan.name] = plan
        settings = peer_settings(
            plan,
            resolve=self._resolver.lookup,
            preshared_key=self._intent.preshared_key,
            last_seen=self._last_seen,
        )
        try:
            self.tunnel.peers.set(settings)
        except ValueError as error:
            # `mesh.conflict_index` gives a key to one node, but a peer that loses it is removed only after the host
            # was changed, so between two worlds both can be there.
            self.refused[plan.name] = str(error)
            log.warning("peer %s is refused by the tunnel: %s; it gets no traffic", plan.name, error)
        else:
            self.refused.pop(plan.name, None)

    def _accept(self, name: str, *, add: tuple[Prefix, ...] = (), remove: tuple[Prefix, ...] = ()) -> None:
        """Change the prefixes accepted as inner sources of a peer, unless the tunnel refused the peer."""
        assert self.tunnel is not None
        if name in self.tunnel.peers.settings:
            self.tunnel.peers.accept(name, add=add, remove=remove)

    def _watch_names(self) -> None:
        """Resolve the DNS names of exactly the present peers' endpoints."""
        self._resolver.set_names({candidate.host for peer in self._plans.values() for candidate in peer.candidates})


def _set_route(tunnel: Tunnel, prefix: Prefix, names: tuple[str, ...]) -> None:
    """Route a prefix to the first of these peers that carries it; peers that the tunnel refused are left out."""
    tunnel.peers.route(prefix, [name for name in names if name in tunnel.peers.settings])


def _kind(settings: TunnelPlan) -> tuple[bool, IPv6Address | None]:
    """Return what a tunnel keeps as long as it is open: whether it has a device, and our tunnel address (None: no
    mesh).

    Another address means another mesh name. Every node then has another address, so that neither measurements nor
    handshakes of the tunnel before are valid."""
    return settings.device, settings.own_address
