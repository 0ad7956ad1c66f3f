"""Devices and their addresses, through pyroute2. No other module imports it, and its exceptions end here.

Objects that come by the thousand (routes, rules, neighbours, flows) go through `netlink` instead, which says why.
pyroute2 earns its place where messages nest deeply and differ by device type.

Every method blocks and raises HostError. pyroute2 is used through public names only; two of them are younger than
its stable API: `IPRoute(use_event_loop=…)` (0.9) and that closing needs one more turn of that loop.
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

# linux/if_addr.h
_IFA_F_NODAD = 0x02  # no duplicate address detection: the address is usable at once
_IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x40, 0x08
_IFF_UP = 1  # linux/if.h
_SCOPE_LINK = 253  # RT_SCOPE_LINK


@dataclass(frozen=True, slots=True)
class VxlanFacts:
    """Settings of a VXLAN device; the kernel changes none of them on an existing device."""

    vni: int
    port: int  # UDP destination port
    local: Address | None  # source of outer packets
    learning: bool  # of FDB entries from received frames; a plan has none
    underlay: int  # ifindex of the device it is bound to; 0: none


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """One network device."""

    name: str
    index: int  # ifindex
    kind: str  # IFLA_INFO_KIND: "tun", "vxlan", "" for hardware
    mtu: int  # bytes
    up: bool  # administratively
    mac: str = ""  # lower case, colons; "" for a device without link-layer addresses
    vxlan: VxlanFacts | None = None  # set if kind is "vxlan"


class LinkClient:
    """A pyroute2 socket for one thread and for the duration of one call of `Host`.

    The socket is opened at the first use: opening takes milliseconds, and most changes are of routes alone.

    pyroute2 runs an event loop inside its synchronous calls, one for each thread, and takes it from the process's
    policy; with uvloop's policy it fails ("invalid family 16"). So it gets a plain selector loop of its own.
    Therefore no method may be called on a thread whose event loop is running.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: IPRoute | None = None

    @property
    def _ipr(self) -> IPRoute:
        if self._opened is None:
            self._loop = asyncio.SelectorEventLoop()
            with _map_errors("netlink socket"):
                self._opened = IPRoute(use_event_loop=self._loop)
        return self._opened

    def close(self) -> None:
        """Close the socket and its loop, if they were opened."""
        if self._opened is not None:
            self._opened.close()
        if self._loop is not None:
            self._loop.run_until_complete(asyncio.sleep(0))  # one turn, in which the loop closes the transport
            self._loop.close()

    def __enter__(self) -> LinkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Queries -----------------------------------------------------------------------------------------------

    def link(self, name: str) -> LinkFacts | None:
        """Return the device of this name, None if there is none."""
        with _map_errors(f"device {name}"):
            try:
                found = list(self._ipr.link("get", ifname=name))
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise
        return _link_facts(found[0]) if found else None

    def links(self) -> list[LinkFacts]:
        """Return all devices of this network namespace."""
        with _map_errors("list of devices"):
            return [_link_facts(found) for found in self._ipr.get_links()]

    def addresses(self, *, usable: bool = False) -> list[tuple[int, Interface, int]]:
        """Return (ifindex, address with prefix length, scope) of every address of this host.

        `usable` leaves out IPv6 addresses whose duplicate address detection is running or has failed (RFC 4862).
        """
        unusable = _IFA_F_TENTATIVE | _IFA_F_DADFAILED if usable else 0
        with _map_errors("list of addresses"):
            return [
                _address_facts(found)
                for found in self._ipr.get_addr()
                if not (found.get("IFA_FLAGS") or found["flags"]) & unusable
            ]

    # --- Changes -----------------------------------------------------------------------------------------------

    def set_link(self, index: int, name: str, *, mtu: int, up: bool = True, mac: str | None = None) -> None:
        """Set MTU, state and, unless None, the MAC of the device `index`; `name` is for errors."""
        values: dict[str, Any] = {"mtu": mtu, "state": "up" if up else "down"}
        if mac is not None:
            values["address"] = mac
        with _map_errors(f"device {name} mtu {mtu}"):
            self._ipr.link("set", index=index, **values)

    def add_vxlan(self, device: VxlanDevice, underlay: int) -> None:
        """Create a VXLAN device and bring it up.

        `underlay` is the ifindex of the device that carries it; with 0 the routes decide for each packet.
        """
        local = "vxlan_local" if device.local.version == 4 else "vxlan_local6"
        values: dict[str, Any] = {local: str(device.local)}
        if underlay:
            values["vxlan_link"] = underlay
        with _map_errors(f"device {device.name} (VXLAN {device.vni} on UDP {device.port})"):
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
        """Delete the device of this name; no effect if there is none."""
        link = self.link(name)
        if link is not None:
            with _map_errors(f"device {name}", ignored=(errno.ENODEV,)):
                self._ipr.link("del", index=link.index)

    def add_address(self, index: int, item: DeviceAddress) -> None:
        """Add an address to the device `index`; no effect if it has it."""
        values: dict[str, Any] = {"address": str(item.address.ip), "prefixlen": item.address.network.prefixlen}
        if item.address.version == 6:
            values["flags"] = _IFA_F_NODAD
        elif item.address.ip.is_reserved:
            # 240.0.0.0/4 (VXLAN addresses) is valid on the VXLAN alone. Link scope keeps the kernel from choosing it
            # as the source of packets that leave by another device.
            values["scope"] = _SCOPE_LINK
        with _map_errors(f"address {item.address} on {item.device}", ignored=(errno.EEXIST,)):
            self._ipr.addr("add", index=index, **values)

    def remove_address(self, index: int, item: DeviceAddress) -> None:
        """Remove an address from the device `index`; no effect if the device does not have it."""
        ignored = (errno.EADDRNOTAVAIL, errno.ENODEV)
        with _map_errors(f"address {item.address} on {item.device}", ignored=ignored):
            self._ipr.addr("del", index=index, address=str(item.address.ip), prefixlen=item.address.network.prefixlen)


@contextmanager
def _map_errors(subject: str, ignored: tuple[int, ...] = ()) -> Iterator[None]:
    """Turn errors of pyroute2 and of the socket into HostError; errnos in `ignored` mean nothing was left to do."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in ignored:
            detail = str(error.args[1]) if len(error.args) > 1 else ""
            raise host_error(subject, error.code, detail) from error
    except OSError as error:
        raise host_error(subject, error.errno or 0) from error


def _link_facts(found: Any) -> LinkFacts:
    """Return LinkFacts from pyroute2's message."""
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


def _address_facts(found: Mapping[str, Any]) -> tuple[int, Interface, int]:
    """Return (ifindex, address, scope) from pyroute2's message."""
    # On a point-to-point device IFA_LOCAL is this host's address and IFA_ADDRESS the peer's.
    address = found.get("IFA_LOCAL") or found.get("IFA_ADDRESS")
    return found["index"], ip_interface(f"{address}/{found['prefixlen']}"), found["scope"]
