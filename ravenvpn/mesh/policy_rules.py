"""The policy routing rules of one node: which packets look up table 9127 of other regions, and which bypass it.

The kernel evaluates rules by preference, and rules of one preference in the order in which they were added
(ip-rule(8)). The order within preference 98 does not matter, because its rules match different input devices; the
kernel resolves local addresses at 0, and OpenYurt's own rule is at 100, after ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import TABLE_LOCAL, TABLE_REMOTE, TUNNEL_DEVICE, VXLAN_DEVICE, Rule, RuleAction
from ravenvpn.mesh.local_facts import ApiEndpoint
from ravenvpn.mesh.model import host_prefix
from ravenvpn.mesh.reason import Reason, ReasonCode

PREF_BYPASS = 98  # our own outer packets, and the connection to the API server
PREF_ARRIVING = 98  # packets out of the tunnel or from the VXLAN
PREF_REMOTE = 99  # all others
PREF_LANDING = 102  # where PREF_BYPASS continues, after the look-up of table 9127
_TCP, _UDP = 6, 17  # IANA protocol numbers


def policy_rules(ports: Sequence[int], context: Context) -> Iterable[Rule]:
    """Yield the rules of every family; `ports` are the tunnel's UDP ports, more than one while its port changes.

    Each port needs its rules as long as packets arrive there: source validation (rp_filter) looks up the way back as
    for an answer from that port. Without the bypass it finds the tunnel for a node whose addresses are routed into
    it, and drops the packet.

    The NOP rules serve source validation (rp_filter): it evaluates the rules as for a packet that starts here, and
    with ports only if some rule names a protocol or ports and an input device other than lo
    (`fib_rule_requires_fldissect` in include/net/fib_rules.h, `__fib_validate_source` in net/ipv4/fib_frontend.c).
    """
    for family in context.facts.families:
        for port in ports:
            yield Rule(
                family,
                PREF_BYPASS,
                RuleAction.GOTO,
                PREF_LANDING,
                input_device="lo",
                ip_protocol=_UDP,
                source_port=port,
                reason=Reason(ReasonCode.RULE_OUTER_BYPASS),
            )
        if context.is_gateway:
            yield from _arriving(family, ports, context)
        elif context.facts.api:
            # A rule may name a device that does not exist.
            yield Rule(
                family,
                PREF_BYPASS,
                RuleAction.NOP,
                input_device=VXLAN_DEVICE,
                ip_protocol=_TCP,
                reason=Reason(ReasonCode.RULE_PORTS_API),
            )
        yield from (_api_bypass(family, api) for api in context.facts.api if api.address.version == family)
        yield Rule(family, PREF_REMOTE, RuleAction.LOOKUP, TABLE_REMOTE, reason=Reason(ReasonCode.RULE_REMOTE))
        yield Rule(family, PREF_LANDING, RuleAction.NOP, reason=Reason(ReasonCode.RULE_LANDING))


def _arriving(family: int, ports: Sequence[int], context: Context) -> Iterable[Rule]:
    """Yield the rules of a gateway or a standby for packets that arrive by one of our devices."""
    for port in ports:
        yield Rule(
            family,
            PREF_BYPASS,
            RuleAction.NOP,
            input_device=TUNNEL_DEVICE,
            ip_protocol=_UDP,
            source_port=port,
            reason=Reason(ReasonCode.RULE_PORTS_TUNNEL),
        )
    yield Rule(
        family,
        PREF_ARRIVING,
        RuleAction.LOOKUP,
        TABLE_LOCAL,
        input_device=TUNNEL_DEVICE,
        reason=Reason(ReasonCode.RULE_FROM_TUNNEL),
    )
    if context.overlay is not None:
        yield Rule(
            family,
            PREF_ARRIVING,
            RuleAction.LOOKUP,
            TABLE_LOCAL,
            input_device=VXLAN_DEVICE,
            reason=Reason(ReasonCode.RULE_FROM_VXLAN),
        )


def _api_bypass(family: int, api: ApiEndpoint) -> Rule:
    """Return the rule that keeps the watch outside: the tunnel is configured by it, so it must not depend on it."""
    return Rule(
        family,
        PREF_BYPASS,
        RuleAction.GOTO,
        PREF_LANDING,
        input_device="lo",
        to=host_prefix(api.address),
        ip_protocol=_TCP,
        destination_port=api.port,
        reason=Reason(ReasonCode.RULE_API_BYPASS),
    )
