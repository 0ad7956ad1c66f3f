"""Events that the reconciler reports to the agent: changes of this host by other programs, and repairs of them."""

from __future__ import annotations

from dataclasses import dataclass

from ravenvpn.node.execute import OperationFailure
from ravenvpn.node.flapping import Flapping
from ravenvpn.node.watch import AddressChange


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """Addresses of this host were added or removed: a new plan is due."""

    changes: tuple[AddressChange, ...]


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """Another program deleted a device of ours.

    The reconciler recreates the VXLAN. The TUN has to be opened again by the owner of the tunnel.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Restored:
    """Changes by other programs were reverted."""

    descriptions: tuple[str, ...]  # of the restored objects, as `format_object` has them
    programs: tuple[str, ...]  # that made the changes, where the kernel names them


@dataclass(frozen=True, slots=True)
class FlappingDetected:
    """Another program keeps reverting objects of ours."""

    flapping: tuple[Flapping, ...]  # the most frequent first
    delay: float  # seconds until the next repair


@dataclass(frozen=True, slots=True)
class ChangeRefused:
    """The kernel refused a repair, at least in part; it is retried.

    Reported when a refusal is new, not again at each retry.
    """

    failed: tuple[OperationFailure, ...]


@dataclass(frozen=True, slots=True)
class FlowsRebound:
    """Live flows bound to another source were deleted from conntrack; nat chains evaluate their next packets."""

    count: int


HostEvent = AddressesChanged | DeviceGone | Restored | FlappingDetected | ChangeRefused | FlowsRebound
