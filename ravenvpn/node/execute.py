"""Carries operations out in their order, as netlink messages, nft transactions and writes to /proc/sys.

One refused change stops nothing else: it is reported, with its reason, beside what was changed.
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
from ravenvpn.node.format import words
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket, Reply
from ravenvpn.node.observe import underlay
from ravenvpn.node.operations import Filter, HostDevice, LocalPrefixes, Operation, Verb
from ravenvpn.node.rtnetlink import Stray


@dataclass(frozen=True, slots=True)
class OperationFailure:
    """What was refused, with the kernel's reason; no operation if it was the looking."""

    operation: Operation | None
    error: HostError

    def __str__(self) -> str:
        return f"{self.operation.verb} {self.error}" if self.operation is not None else str(self.error)


class Execution:
    """One sequence of operations: `changed` and `failed` grow as it goes on."""

    def __init__(
        self,
        netlink: LinkClient,
        pipe: NetlinkSocket,
        originals: sysctl.Originals,
        nft_started: Callable[[int], None],
        foreign: Collection[str] = (),
    ) -> None:
        """`nft_started` hears the process id of each write to nf_tables before it is made. `foreign` are devices that
        have our names and are not ours."""
        self._netlink, self._pipe, self._originals, self._nft_started = netlink, pipe, originals, nft_started
        self._foreign = foreign
        self._indices = _indices(foreign)
        self.changed: list[Operation] = []
        self.failed: list[OperationFailure] = []

    def run(self, operations: Iterable[Operation]) -> None:
        """Routes, rules and neighbours that follow each other go as one batch."""
        for batched, group in groupby(operations, key=lambda operation: isinstance(operation.thing, _BATCHED)):
            if batched:
                self._batch(list(group))
                continue
            for operation in group:
                try:
                    self._one(operation)
                except HostError as error:
                    self.failed.append(OperationFailure(operation, error))
                else:
                    self.changed.append(operation)

    def _batch(self, operations: list[Operation]) -> None:
        messages: list[bytes] = []
        sent: list[Operation] = []
        for operation in operations:
            thing = operation.thing
            assert isinstance(thing, _BATCHED)
            device = None if isinstance(thing, Rule | Stray) else thing.device
            if device is not None and device not in self._indices and operation.verb is not Verb.REMOVE:
                self.failed.append(OperationFailure(operation, host_error(words(thing), errno.ENODEV)))
            elif device is not None and device not in self._indices:
                self.changed.append(operation)  # it went with its device
            else:
                messages.append(_message(operation, self._indices.get(device, 0) if device else 0))
                sent.append(operation)
        for operation, reply in zip(sent, self._pipe.request(messages), strict=True):
            if _settled(operation, reply):
                self.changed.append(operation)
            else:
                error = host_error(words(operation.thing), reply.errno, reply.detail)
                self.failed.append(OperationFailure(operation, error))

    def _one(self, operation: Operation) -> None:
        thing, removing, netlink = operation.thing, operation.verb is Verb.REMOVE, self._netlink
        match thing:
            case TunDevice():
                netlink.set_link(self._index(thing.name, words(thing)), thing.name, mtu=thing.mtu)
            case VxlanDevice():
                self._put_vxlan(operation, thing)
            case HostDevice():
                netlink.remove_link(thing.name)
                self._indices.pop(thing.name, None)
            case DeviceAddress():
                if not removing:
                    netlink.add_address(self._index(thing.device, words(thing)), thing)
                elif thing.device in self._indices:
                    netlink.remove_address(self._indices[thing.device], thing)
            case Sysctl():
                self._set_sysctl(operation, thing)
            case nft.Ruleset():
                nft.write(nft.replacement(thing), self._nft_started)
            case LocalPrefixes():
                nft.write(nft.refill(thing.prefixes), self._nft_started)
            case Filter():
                nft.write(nft.removal(), self._nft_started)
            case _:  # the others go in batches
                raise AssertionError(thing)

    def _put_vxlan(self, operation: Operation, device: VxlanDevice) -> None:
        if operation.verb is Verb.ADD:
            self._refuse_foreign(device.name, words(device))
            carrier = underlay(self._netlink, device.local)
            if carrier is None:
                raise host_error(words(device), errno.EADDRNOTAVAIL, f"no device has {device.local}")
            self._netlink.add_vxlan(device, carrier)
            self._indices = _indices(self._foreign)
        else:
            index, link = self._index(device.name, words(device)), self._netlink.link(device.name)
            # Even the MAC it has, set again, makes the kernel forget the device's neighbours.
            mac = device.mac if link is None or link.mac.lower() != device.mac.lower() else None
            self._netlink.set_link(index, device.name, mtu=device.mtu, mac=mac)

    def _set_sysctl(self, operation: Operation, item: Sysctl) -> None:
        current = sysctl.read(item.key)
        if operation.verb is Verb.REMOVE:
            # Somebody else's value by now is somebody else's business.
            if current == operation.before:
                sysctl.write(item.key, item.value)
            self._originals.forget(item.key)
            return
        if (
            current == item.value
        ):  # a device made anew had it from the defaults; where /proc/sys is read-only that counts
            return
        if not item.ours and current is not None:
            self._originals.remember(item.key, current, item.value)
        sysctl.write(item.key, item.value)

    def _refuse_foreign(self, device: str, subject: str) -> None:
        if device in self._foreign:
            raise host_error(subject, errno.EEXIST, f"another program has a device of another kind named {device}")

    def _index(self, device: str, subject: str) -> int:
        self._refuse_foreign(device, subject)
        if device not in self._indices:
            raise host_error(subject, errno.ENODEV)
        return self._indices[device]


_BATCHED = (Route, Rule, Stray, Neighbour, ForwardingEntry)


def _indices(foreign: Collection[str]) -> dict[str, int]:
    """Indices of our devices, as far as they are there."""
    found: dict[str, int] = {}
    for name in {TUNNEL_DEVICE, VXLAN_DEVICE}.difference(foreign):
        with contextlib.suppress(OSError):
            found[name] = socket.if_nametoindex(name)
    return found


def _message(operation: Operation, oif: int) -> bytes:
    thing, removing = operation.thing, operation.verb is Verb.REMOVE
    match thing:
        case Route():
            return rtnetlink.delete_route(thing, oif) if removing else rtnetlink.put_route(thing, oif)
        case Rule():
            return rtnetlink.delete_rule(thing) if removing else rtnetlink.add_rule(thing)
        case Neighbour():
            return neighbours.delete_neighbour(thing, oif) if removing else neighbours.put_neighbour(thing, oif)
        case ForwardingEntry():
            return neighbours.delete_forwarding(thing, oif) if removing else neighbours.put_forwarding(thing, oif)
        case Stray():
            return rtnetlink.delete_stray(thing)
    raise AssertionError(thing)


def _settled(operation: Operation, reply: Reply) -> bool:
    if operation.verb is Verb.REMOVE:
        return reply.errno in (0, errno.ESRCH, errno.ENOENT, errno.ENODEV)  # gone is gone
    if isinstance(operation.thing, Rule):
        return reply.errno in (0, errno.EEXIST)  # the kernel compares whole rules: it is there
    return reply.errno == 0
