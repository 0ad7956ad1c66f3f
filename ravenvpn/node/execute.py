"""Carry out operations, in their order, as netlink messages, nft transactions and writes to /proc/sys.

A refused operation does not stop the others; it is reported beside those that succeeded.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import groupby

from ravenvpn.errors import HostError
from ravenvpn.mesh.hoststate import (
    TUNNEL_DEVICE,
    VXLAN_DEVICE,
    DeviceAddress,
    ForwardingEntry,
    Neighbour,
    Route,
    Rule,
    Sysctl,
    TunDevice,
    VxlanDevice,
)
from ravenvpn.node import neighbours, nft, rtnetlink, sysctl
from ravenvpn.node.errors import host_error
from ravenvpn.node.format import format_object
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket, Reply
from ravenvpn.node.nft_ruleset import Ruleset
from ravenvpn.node.observe import underlay_index
from ravenvpn.node.operations import NftTable, Operation, OwnedDevice, SetElements, Verb
from ravenvpn.node.rtnetlink import Stray


@dataclass(frozen=True, slots=True)
class OperationFailure:
    """A refused operation with the kernel's reason.

    As text it is the verb, the object and the reason: one line for the log and for `status`.
    """

    operation: Operation | None  # None: reading the state failed, or checking live flows
    error: HostError

    def __str__(self) -> str:
        return f"{self.operation.verb} {self.error}" if self.operation is not None else str(self.error)


class Executor:
    """Execute one sequence of operations, and collect the outcome in `changed` and `failed`.

    Operations are not undone if a later one fails: each is right by itself, and the next pass completes the plan.
    Blocking, for one thread. `run` never raises HostError, except when the netlink socket itself fails.
    """

    def __init__(
        self,
        links: LinkClient,
        netlink: NetlinkSocket,
        journal: sysctl.SysctlJournal,
        on_nft_start: Callable[[int], None],
        foreign: Collection[str] = (),
    ) -> None:
        """`on_nft_start` gets the process id of each nft before it writes; `foreign`: our names taken by others."""
        self._links, self._netlink, self._journal, self._on_nft_start = links, netlink, journal, on_nft_start
        self._foreign = foreign
        self._indices = _device_indices(foreign)  # of our devices that exist now
        self.changed: list[Operation] = []  # in the order of execution
        self.failed: list[OperationFailure] = []

    def run(self, operations: Iterable[Operation]) -> None:
        """Execute the operations. Consecutive routes, rules and neighbours go to the kernel as one batch."""
        for batched, group in groupby(operations, key=lambda operation: isinstance(operation.target, _BATCHED)):
            if batched:
                self._run_batch(list(group))
                continue
            for operation in group:
                try:
                    self._run_one(operation)
                except HostError as error:
                    self.failed.append(OperationFailure(operation, error))
                else:
                    self.changed.append(operation)

    def _run_batch(self, operations: list[Operation]) -> None:
        """Send operations of batched types in one go, and sort them into `changed` and `failed` by their replies.

        An operation on an absent device is decided here, without the kernel. Raises HostError if the socket fails."""
        messages: list[bytes] = []
        sent: list[Operation] = []  # those that `messages` are of, in the same order
        for operation in operations:
            target = operation.target
            assert isinstance(target, _BATCHED)
            device = None if isinstance(target, Rule | Stray) else target.device
            if device is not None and device not in self._indices and operation.verb is not Verb.REMOVE:
                self.failed.append(OperationFailure(operation, host_error(format_object(target), errno.ENODEV)))
            elif device is not None and device not in self._indices:
                self.changed.append(operation)  # the kernel removed it with its device
            else:
                messages.append(_message(operation, self._indices.get(device, 0) if device else 0))
                sent.append(operation)
        for operation, reply in zip(sent, self._netlink.request(messages), strict=True):
            if _succeeded(operation, reply):
                self.changed.append(operation)
            else:
                error = host_error(format_object(operation.target), reply.errno, reply.detail)
                self.failed.append(OperationFailure(operation, error))

    def _run_one(self, operation: Operation) -> None:
        """Execute an operation that is not batched: one or two requests of its own. Raises HostError.

        Names are resolved to ifindexes here, since an earlier operation may have recreated the device."""
        target, removing, links = operation.target, operation.verb is Verb.REMOVE, self._links
        match target:
            case TunDevice():  # opened by the tunnel; removed by closing it
                links.set_link(self._index(target.name, format_object(target)), target.name, mtu=target.mtu)
            case VxlanDevice():
                self._put_vxlan(operation, target)
            case OwnedDevice():
                links.remove_link(target.name)
                self._indices.pop(target.name, None)
            case DeviceAddress():
                if not removing:
                    links.add_address(self._index(target.device, format_object(target)), target)
                elif target.device in self._indices:  # else it went with its device
                    links.remove_address(self._indices[target.device], target)
            case Sysctl():
                self._set_sysctl(operation, target)
            case Ruleset():
                nft.write(nft.replacement(target), self._on_nft_start)
            case SetElements():
                nft.write(nft.refill(target.elements), self._on_nft_start)
            case NftTable():
                nft.write(nft.removal(), self._on_nft_start)
            case _:
                raise AssertionError(target)

    def _put_vxlan(self, operation: Operation, device: VxlanDevice) -> None:
        """Create the VXLAN, or set MTU, MAC and state of the existing one."""
        if operation.verb is Verb.ADD:
            self._refuse_foreign(device.name, format_object(device))
            underlay = underlay_index(self._links, device.local)
            if underlay is None:
                raise host_error(format_object(device), errno.EADDRNOTAVAIL, f"no device has {device.local}")
            self._links.add_vxlan(device, underlay)
            # The batches that follow need the new ifindex.
            self._indices = _device_indices(self._foreign)
        else:
            index, link = self._index(device.name, format_object(device)), self._links.link(device.name)
            # Setting the MAC makes the kernel drop the device's neighbours, even if the MAC is the same.
            mac = device.mac if link is None or link.mac.lower() != device.mac.lower() else None
            self._links.set_link(index, device.name, mtu=device.mtu, mac=mac)

    def _set_sysctl(self, operation: Operation, item: Sysctl) -> None:
        """Set a sysctl, with an entry in the journal first if the key is not ours; or restore it from there."""
        current = sysctl.read(item.key)
        if operation.verb is Verb.REMOVE:
            # Any other value than the one we wrote was set by another program since, and stays.
            if current == operation.before:
                sysctl.write(item.key, item.value)
            self._journal.drop(item.key)
            return
        if current == item.value:
            # The defaults gave it to a new device. Not writing it again matters where /proc/sys is read-only.
            return
        # The journal comes first: a kill between the two leaves a superfluous entry, never a lost original value.
        if not item.ours and current is not None:
            self._journal.record(item.key, current, item.value)
        sysctl.write(item.key, item.value)

    def _refuse_foreign(self, device: str, subject: str) -> None:
        """Raise HostError if another program has a device of this name: it must not be changed."""
        if device in self._foreign:
            raise host_error(subject, errno.EEXIST, f"another program has a device of another kind named {device}")

    def _index(self, device: str, subject: str) -> int:
        """Return the ifindex of our device. Raises HostError if it does not exist or is another program's."""
        self._refuse_foreign(device, subject)
        if device not in self._indices:
            raise host_error(subject, errno.ENODEV)
        return self._indices[device]


_BATCHED = (Route, Rule, Stray, Neighbour, ForwardingEntry)  # types that `_message` packs


def _device_indices(foreign: Collection[str]) -> dict[str, int]:
    """Return name → ifindex of our devices that exist."""
    found: dict[str, int] = {}
    for name in {TUNNEL_DEVICE, VXLAN_DEVICE}.difference(foreign):
        with contextlib.suppress(OSError):
            found[name] = socket.if_nametoindex(name)
    return found


def _message(operation: Operation, oif: int) -> bytes:
    """Return the request for a batched operation; `oif` is the ifindex of its device, 0 without one."""
    target, removing = operation.target, operation.verb is Verb.REMOVE
    match target:
        case Route():
            return rtnetlink.delete_route(target, oif) if removing else rtnetlink.replace_route(target, oif)
        case Rule():
            return rtnetlink.delete_rule(target) if removing else rtnetlink.add_rule(target)
        case Neighbour():
            return neighbours.delete_neighbour(target, oif) if removing else neighbours.replace_neighbour(target, oif)
        case ForwardingEntry():
            return (
                neighbours.delete_forwarding(target, oif) if removing else neighbours.replace_forwarding(target, oif)
            )
        case Stray():
            return rtnetlink.delete_stray(target)
    raise AssertionError(target)


def _succeeded(operation: Operation, reply: Reply) -> bool:
    """Return whether the host is as the operation wants it; an object that was gone already counts as removed."""
    if operation.verb is Verb.REMOVE:
        return reply.errno in (0, errno.ESRCH, errno.ENOENT, errno.ENODEV)
    if isinstance(operation.target, Rule):
        return reply.errno in (0, errno.EEXIST)  # EEXIST: the kernel compares whole rules, so it has this one
    return reply.errno == 0
