"""The only door to pyroute2: links and addresses.

Everything here is synchronous and by the dozen; routes, rules, neighbours and flows, which come by the thousand, go
through `pipe`. pyroute2's exceptions end here.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ravenvpn.mesh.hoststate import Address, DeviceAddress, Interface, VxlanDevice
from ravenvpn.node.errors import host_error

_IFA_F_NODAD = 0x02  # no duplicate address detection: the address is usable at once
_IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x40, 0x08
_IFF_UP = 1
_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class VxlanFacts:
    vni: int
    port: int
    local: Address | None
    learning: bool
    underlay: int  # index of the device it is bound to; 0: none


@dataclass(frozen=True, slots=True)
class LinkFacts:
    name: str
    index: int
    kind: str  # IFLA_INFO_KIND: "tun", "vxlan", "" for hardware
    mtu: int
    up: bool
    mac: str = ""
    vxlan: VxlanFacts | None = None


class LinkClient:
    """One pyroute2 socket, for one thread and the time of one call; opened when first needed, since that takes
    milliseconds and most changes are of routes alone.

    pyroute2 runs an event loop inside even its synchronous calls, one for each thread it sees, and takes it from the
    process's policy; under uvloop's it fails ("invalid family 16"). So it gets a plain loop of our own. It follows
    that none of this may be called from a thread whose loop is running.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: IPRoute | None = None

    @property
    def _ipr(self) -> IPRoute:
        if self._opened is None:
            self._loop = asyncio.SelectorEventLoop()
            with _refusals("netlink socket"):
                self._opened = IPRoute(use_event_loop=self._loop)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        if self._loop is not None:
            self._loop.run_until_complete(asyncio.sleep(0))  # lets the transport go
            self._loop.close()

    def __enter__(self) -> LinkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Looking -----------------------------------------------------------------------------------------------

    def link(self, name: str) -> LinkFacts | None:
        with _refusals(f"device {name}"):
            try:
                found = list(self._ipr.link("get", ifname=name))
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise
        return _link(found[0]) if found else None

    def links(self) -> list[LinkFacts]:
        with _refusals("list of devices"):
            return [_link(found) for found in self._ipr.get_links()]

    def addresses(self, *, usable: bool = False) -> list[tuple[int, Interface, int]]:
        """Every address of this host: (device index, address with its prefix, scope).

        `usable` leaves out those whose uniqueness is still being asked for, or was denied.
        """
        unusable = _IFA_F_TENTATIVE | _IFA_F_DADFAILED if usable else 0
        with _refusals("list of addresses"):
            return [
                _address(found)
                for found in self._ipr.get_addr()
                if not (found.get("IFA_FLAGS") or found["flags"]) & unusable
            ]

    # --- Changing ----------------------------------------------------------------------------------------------

    def set_link(self, index: int, name: str, *, mtu: int, up: bool = True, mac: str | None = None) -> None:
        values: dict[str, Any] = {"mtu": mtu, "state": "up" if up else "down"}
        if mac is not None:
            values["address"] = mac
        with _refusals(f"device {name} mtu {mtu}"):
            self._ipr.link("set", index=index, **values)

    def add_vxlan(self, device: VxlanDevice, underlay: int) -> None:
        """`underlay` is the index of the device that carries it; 0 leaves that to the routes."""
        local = "vxlan_local" if device.local.version == 4 else "vxlan_local6"
        values: dict[str, Any] = {local: str(device.local)}
        if underlay:
            values["vxlan_link"] = underlay
        with _refusals(f"device {device.name} (VXLAN {device.vni} on UDP {device.port})"):
            self._ipr.link(
                "add",
                ifname=device.name,
                kind="vxlan",
                vxlan_id=device.vni,
                vxlan_port=device.port,
                vxlan_learning=0,
                address=device.mac,
                mtu=device.mtu,
                state="up",
                **values,
            )

    def remove_link(self, name: str) -> None:
        link = self.link(name)
        if link is not None:
            with _refusals(f"device {name}", gone=(errno.ENODEV,)):
                self._ipr.link("del", index=link.index)

    def add_address(self, index: int, item: DeviceAddress) -> None:
        values: dict[str, Any] = {"address": str(item.address.ip), "prefixlen": item.address.network.prefixlen}
        if item.address.version == 6:
            values["flags"] = _IFA_F_NODAD
        elif item.address.ip.is_reserved:  # 240.0.0.0/4, never seen outside: not a source for anything else
            values["scope"] = _SCOPE_LINK
        with _refusals(f"address {item.address} on {item.device}", gone=(errno.EEXIST,)):
            self._ipr.addr("add", index=index, **values)

    def remove_address(self, index: int, item: DeviceAddress) -> None:
        gone = (errno.EADDRNOTAVAIL, errno.ENODEV)
        with _refusals(f"address {item.address} on {item.device}", gone=gone):
            self._ipr.addr("del", index=index, address=str(item.address.ip), prefixlen=item.address.network.prefixlen)


@contextmanager
def _refusals(subject: str, gone: tuple[int, ...] = ()) -> Iterator[None]:
    """pyroute2's and the socket's errors become ours; those in `gone` mean that there was nothing left to do."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in gone:
            detail = str(error.args[1]) if len(error.args) > 1 else ""
            raise host_error(subject, error.code, detail) from error
    except OSError as error:
        raise host_error(subject, error.errno or 0) from error


def _link(found: Any) -> LinkFacts:
    info = found.get("IFLA_LINKINFO")
    kind = info.get("IFLA_INFO_KIND") if info is not None else None
    data = info.get("IFLA_INFO_DATA") if info is not None else None
    vxlan = None
    if kind == "vxlan" and data is not None:
        local = data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6")
        vxlan = VxlanFacts(
            vni=data.get("IFLA_VXLAN_ID"),
            port=data.get("IFLA_VXLAN_PORT"),
            local=ip_address(local) if local else None,
            learning=bool(data.get("IFLA_VXLAN_LEARNING")),
            underlay=data.get("IFLA_VXLAN_LINK") or 0,
        )
    return LinkFacts(
        name=found.get("IFLA_IFNAME"),
        index=found["index"],
        kind=kind or "",
        mtu=found.get("IFLA_MTU"),
        up=bool(found["flags"] & _IFF_UP),
        mac=found.get("IFLA_ADDRESS") or "",
        vxlan=vxlan,
    )


def _address(found: Mapping[str, Any]) -> tuple[int, Interface, int]:
    # Of a point-to-point pair IFA_LOCAL is ours and IFA_ADDRESS the peer's.
    address = found.get("IFA_LOCAL") or found.get("IFA_ADDRESS")
    return found["index"], ip_interface(f"{address}/{found['prefixlen']}"), found["scope"]
