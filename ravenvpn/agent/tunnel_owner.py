"""The tunnel as the plan wants it: opened, fed with what changed, and opened anew where a role asks for another kind.

Changes come in two halves around the host's own: `apply_additions` opens what is new before a route may lead there,
`apply_removals` closes what no route leads to any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address

from ravenvpn.agent.resolve import Resolver
from ravenvpn.agent.translate import peer_settings
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import TUNNEL_DEVICE, Prefix
from ravenvpn.mesh.nodeplan import AcceptChange, NodePlan, NodeRole, PeerPlan, TunnelDelta, TunnelPlan
from ravenvpn.offloads import Offloads
from ravenvpn.tunnel.driver import Listeners, Tunnel
from ravenvpn.tunnel.linux import uapi_socket
from ravenvpn.tunnel.linux.tun import Tun
from ravenvpn.tunnel.linux.uapi_socket import UapiServer
from ravenvpn.tunnel.peer import PeerStatus
from ravenvpn.tunnel.probing import frame
from ravenvpn.tunnel.wg_view import state_of

log = logging.getLogger(__name__)


class TunnelOwner:
    """Owns the Tunnel, and opens another where the plan asks for another kind."""

    def __init__(
        self,
        *,
        key: PrivateKey,
        preshared_key: PresharedKey | None,
        suites: frozenset[Suite],
        last_seen: Mapping[str, Endpoint],
        body: str | None = None,
        offloads: Offloads | None = None,
        on_resolved: Callable[[], None],
        listeners: Listeners,
    ) -> None:
        """`body` forces a data plane ("pure", "native"); `offloads` forbids some. `on_resolved` is called when a
        peer's name means another address; `listeners` hear every tunnel that is opened."""
        self._key, self._preshared_key, self._suites = key, preshared_key, suites
        self._last_seen = last_seen
        self._resolver = Resolver(on_resolved)
        self._body, self._offloads, self._listeners = body, offloads, listeners
        self._plans: dict[str, PeerPlan] = {}
        self._planned: TunnelPlan | None = None  # port, own address and so on, without peers
        self._applied: TunnelPlan | None = None  # of those, what is in force
        self.tunnel: Tunnel | None = None
        self._wg: UapiServer | None = None
        self.refused: dict[str, str] = {}  # peers the tunnel would not take, and why

    async def apply_additions(self, plan: Callable[[], NodePlan], delta: TunnelDelta) -> bool:
        """Open what is new; says whether a whole tunnel was opened. HostError where the device or the port cannot be
        had; what does not depend on it is done, and a call with whatever delta comes next tries the rest again."""
        if delta.settings is not None:
            self._planned = delta.settings
            # A port is bound once only, so where another tunnel is needed the old one goes first.
            if self.tunnel is not None and self._applied is not None and _kind(self._applied) != _kind(self._planned):
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
            self._accept(change.peer, add=change)
        for prefix, names in delta.routes:
            self._route(prefix, names)
        self._watch_names()
        if self._planned is not None and self._planned != self._applied:
            self._apply_settings(self._planned)
        return False

    def apply_removals(self, delta: TunnelDelta) -> None:
        """Close what is no longer wanted."""
        tunnel = self.tunnel
        if tunnel is None:
            return
        for change in delta.accepts:
            self._accept(change.peer, remove=change)
        for name in delta.peers_removed:
            self._plans.pop(name, None)
            self.refused.pop(name, None)
            if name in tunnel.settings:
                tunnel.remove_peer(name)
        self._watch_names()

    def update_endpoints(self) -> None:
        """Names have resolved to something else: tell the tunnel where its peers may be now."""
        for peer in self._plans.values():
            self._set_peer(peer)

    async def close(self) -> None:
        """Stop the tunnel, which deletes its device. The host's other state stays."""
        if self._wg is not None:
            await self._wg.stop()
            self._wg = None
        if self.tunnel is not None:
            self.tunnel.stop()
            self.tunnel = self._applied = None
        self._resolver.close()

    def statuses(self) -> list[PeerStatus]:
        return self.tunnel.peers() if self.tunnel is not None else []

    def unresolved(self) -> list[str]:
        return self._resolver.failing()

    def peer_plans(self) -> dict[str, PeerPlan]:
        """The peers that the tunnel has, with their plans."""
        return {name: plan for name, plan in self._plans.items() if name not in self.refused} if self.tunnel else {}

    # Inside.

    async def _open(self, plan: NodePlan) -> None:
        settings = replace(plan.tunnel, peers=(), routes=(), accepts=())
        tunnel = self._make_tunnel(settings)
        self.tunnel, self._applied, self._planned = tunnel, None, settings
        self._plans, self.refused = {}, {}
        try:
            self._apply_settings(settings)
            tunnel.set_private_key(self._key)
            for peer in plan.tunnel.peers:
                self._set_peer(peer)
            for name, prefixes in plan.tunnel.accepts:
                self._accept(name, add=AcceptChange(name, add=prefixes))
            for prefix, names in plan.tunnel.routes:
                self._route(prefix, names)
            tunnel.start()
        except BaseException:
            tunnel.stop()
            self.tunnel, self._applied = None, None
            raise
        self._watch_names()
        if settings.device:
            await self._serve_uapi(tunnel)
        log.info("tunnel up on UDP port %d, %d peers", tunnel.listen_port, len(self._plans))

    def _make_tunnel(self, settings: TunnelPlan) -> Tunnel:
        tun = Tun.open(TUNNEL_DEVICE) if settings.device else None
        try:
            if tun is not None:
                tun.mtu = settings.mtu
            return Tunnel(
                tun, suites=self._suites, offloads=self._offloads, listeners=self._listeners, body=self._body
            )
        except BaseException:
            if tun is not None:
                tun.close()
            raise

    async def _serve_uapi(self, tunnel: Tunnel) -> None:
        """Let wg(8) read the device; what it would write is answered with EPERM. Nice to have, never fatal."""
        try:
            wg = UapiServer(uapi_socket.listen(TUNNEL_DEVICE), lambda: state_of(tunnel))
        except HostError as error:
            log.warning("wg show will not work: %s", error)
            return
        await wg.start()
        self._wg = wg

    def _apply_settings(self, settings: TunnelPlan) -> None:
        assert self.tunnel is not None
        self.tunnel.listen(port=settings.listen_port)
        self.tunnel.set_own_address(settings.own_address, frame.PORT)
        self._applied = settings

    def _set_peer(self, plan: PeerPlan) -> None:
        assert self.tunnel is not None
        self._plans[plan.name] = plan
        settings = peer_settings(
            plan,
            resolve=self._resolver.lookup,
            preshared_key=self._preshared_key,
            last_seen=self._last_seen,
        )
        try:
            self.tunnel.set_peer(settings)
        except ValueError as error:
            # mesh.conflict_index lets one owner of a key through; between two worlds the other may not have left yet.
            self.refused[plan.name] = str(error)
            log.warning("peer %s is not taken: %s", plan.name, error)
        else:
            self.refused.pop(plan.name, None)

    def _accept(self, name: str, *, add: AcceptChange | None = None, remove: AcceptChange | None = None) -> None:
        assert self.tunnel is not None
        if name in self.tunnel.settings:
            self.tunnel.accept(name, add=add.add if add else (), remove=remove.remove if remove else ())

    def _route(self, prefix: Prefix, names: tuple[str, ...]) -> None:
        assert self.tunnel is not None
        known = [name for name in names if name in self.tunnel.settings]
        self.tunnel.route(prefix, known)

    def _watch_names(self) -> None:
        self._resolver.set_names({candidate.host for peer in self._plans.values() for candidate in peer.candidates})


def _kind(settings: TunnelPlan) -> tuple[bool, IPv6Address | None]:
    """What a tunnel keeps for life: whether it has a device, and our address in the mesh (None: there is no tunnel).
    Another address is another mesh, in which everybody has another one, so nothing measured or shaken hands on with
    the last counts."""
    return settings.device, settings.own_address
