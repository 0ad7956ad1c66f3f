"""Take-over: standbys in the place of gateways that are proven dead, until a role moves or they come back."""

from __future__ import annotations

from dataclasses import replace

from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.reason import Reason, ReasonCode
from ravenvpn.mesh.resolved_region import ResolvedRegion


def with_takeover(region: ResolvedRegion, liveness: Liveness, me: str) -> ResolvedRegion:
    """Return the region as node `me` treats it: if every active gateway is proven dead, standbys take over.

    As many take over as were active, in the order of the spec, as `mesh.status.elect` would choose; those proven
    alive come first. This lasts as long as the proof and needs no agreement: a standby puts the packets that reach it
    into its own tunnel, and the far ends accept the region's prefixes from all its gateways. The controller then
    makes the new role final, or the active gateway comes back.
    """
    active = region.active
    # A node never believes itself dead: its own verdict would come from others' probes.
    if not active or not all(liveness.dead(g.node) and g.node != me for g in active):
        return region
    able = [n for n in region.succession if n == me or not liveness.dead(n)]
    able.sort(key=lambda n: n != me and liveness.of(n) is not LivenessVerdict.ALIVE)
    chosen = set(able[: len(active)])
    if not chosen:
        return region
    gateways = sorted(
        (replace(g, active=g.node in chosen) for g in region.gateways), key=lambda g: (not g.active, g.node)
    )
    note = Reason(ReasonCode.STANDBY_TOOK_OVER, region.name, (tuple(sorted(chosen)), active[0].node))
    return replace(region, gateways=tuple(gateways), notes=(*region.notes, note))
