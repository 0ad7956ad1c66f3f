"""The outer UDP sockets: one per family on one port, set up for batches and for answers from where we were addressed.

Option numbers that the socket module lacks are from include/uapi/linux/{udp,in,in6}.h and asm-generic/socket.h.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from ravenvpn.errors import HostError

SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_RXQ_OVFL = 40
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_RECVTOS = 13
IPV6_MTU_DISCOVER = 23
IP_PMTUDISC_DONT = 0  # the same number for IPv6
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

# Bursts of one GSO send arrive at once, and a receiver that shares its core must ride them out: as wireguard-go.
SOCKET_BUFFER = 7 << 20  # bytes
# How often a random port of the first family may turn out taken in the second.
BIND_ATTEMPTS = 100


class PortInUseError(HostError):
    """Another socket of this host holds the port."""


@dataclass(slots=True)
class UdpSockets:
    """Bound and non-blocking; a family this host lacks is None. `gso` and `gro`: what both sockets can do."""

    v4: socket.socket | None
    v6: socket.socket | None
    port: int
    gso: bool
    gro: bool

    @property
    def descriptors(self) -> tuple[int | None, int | None]:
        """(v4, v6), as DataPlane.set_sockets takes them."""
        return (
            None if self.v4 is None else self.v4.fileno(),
            None if self.v6 is None else self.v6.fileno(),
        )

    def set_mark(self, mark: int) -> None:
        """SO_MARK (fwmark) of everything sent from now on; 0 for none. Raises HostError."""
        for one in (self.v4, self.v6):
            if one is not None:
                _set_mark(one, mark)

    def close(self) -> None:
        for one in (self.v4, self.v6):
            if one is not None:
                one.close()


def bind(port: int, *, mark: int = 0, gso: bool = True, gro: bool = True) -> UdpSockets:
    """Bind both families to `port`, or to one random port that is free in both when it is 0.

    A host without one family gets the other alone. Raises PortInUseError, or HostError for the rest.
    """
    for _ in range(BIND_ATTEMPTS):
        try:
            return _bind_once(port, mark, gso, gro)
        except PortInUseError:
            if port != 0:
                raise
    raise HostError(f"no UDP port is free in both families ({BIND_ATTEMPTS} tries)")


def _bind_once(port: int, mark: int, gso: bool, gro: bool) -> UdpSockets:
    v4 = _open(socket.AF_INET, port)
    try:
        if v4 is not None:
            port = v4.getsockname()[1]
        v6 = _open(socket.AF_INET6, port)
    except HostError:
        if v4 is not None:
            v4.close()
        raise
    if v4 is None and v6 is None:
        raise HostError("this host has neither IPv4 nor IPv6")
    if v6 is not None:
        port = v6.getsockname()[1]
    opened = [one for one in (v4, v6) if one is not None]
    sockets = UdpSockets(
        v4,
        v6,
        port,
        gso=gso and all(_can_segment(one) for one in opened),
        gro=gro and all(_set_gro(one) for one in opened),
    )
    if mark:
        try:
            sockets.set_mark(mark)
        except HostError:
            sockets.close()
            raise
    return sockets


def _open(family: socket.AddressFamily, port: int) -> socket.socket | None:
    """One socket, or None where the host lacks the family."""
    try:
        one = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EAFNOSUPPORT, errno.EPFNOSUPPORT}:
            return None
        raise HostError(f"no UDP socket can be opened: {error.strerror}") from error
    try:
        if family is socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(("::", port))
            _configure_v6(one)
        else:
            one.bind(("", port))
            _configure_v4(one)
        _configure_buffers(one)
    except OSError as error:
        one.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(f"UDP port {port} is in use by another socket of this host") from error
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise HostError(f"binding UDP port {port} is not permitted: {error.strerror}") from error
        raise HostError(f"UDP port {port} can not be bound: {error.strerror}") from error
    return one


def _configure_v4(one: socket.socket) -> None:
    one.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    one.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
    # Outer packets may be fragmented, here and on the way, as the Linux kernel's WireGuard lets them be: a tunnel
    # whose MTU is a little too large is then slow, not dead. Whoever wants DF (path-MTU probes) asks per datagram.
    one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)


def _configure_v6(one: socket.socket) -> None:
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DONT)


def _configure_buffers(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            one.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except OSError:  # no CAP_NET_ADMIN: as much as net.core.[rw]mem_max allows
            one.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)


def _can_segment(one: socket.socket) -> bool:
    """Whether UDP_SEGMENT exists (Linux ≥ 4.18). Taken back, since a default left behind would split plain sends."""
    try:
        one.setsockopt(SOL_UDP, UDP_SEGMENT, 1500)
        one.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
    except OSError:
        return False
    return True


def _set_gro(one: socket.socket) -> bool:
    try:
        one.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:  # Linux < 5.0
        return False
    return True


def _set_mark(one: socket.socket, mark: int) -> None:
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except OSError as error:
        raise HostError(f"fwmark {mark} can not be set: {error.strerror}: it needs CAP_NET_ADMIN") from error
