"""The outer UDP sockets: one per family on one port, with destination addresses, ECN and overflow counts received.

Option numbers that the socket module lacks are from include/uapi/linux/{udp,in,in6}.h and asm-generic/socket.h.
Offloads (UDP_SEGMENT, UDP_GRO) are the data plane's.
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

# Bytes. A burst of one GSO send arrives at once, and a receiver that shares its core must not lose it; as
# wireguard-go.
SOCKET_BUFFER = 7 << 20
# How often a random port of the first family may turn out taken in the second.
BIND_ATTEMPTS = 100


class PortInUseError(HostError):
    """Another socket of this host holds the port."""


@dataclass(slots=True)
class UdpSockets:
    """Bound, non-blocking, close-on-exec sockets. One of them is None where the host lacks the family."""

    v4: socket.socket | None
    v6: socket.socket | None
    port: int  # the same in both families
    mark: int = 0  # SO_MARK (fwmark) of everything sent, 0 for none

    @property
    def descriptors(self) -> tuple[int | None, int | None]:
        """(v4, v6), as DataPlane.set_sockets takes them."""
        return (
            None if self.v4 is None else self.v4.fileno(),
            None if self.v6 is None else self.v6.fileno(),
        )

    def set_mark(self, mark: int) -> None:
        """Set SO_MARK (fwmark) of everything sent from now on; 0 for none. Raises HostError."""
        if mark == self.mark:
            return
        for one in (self.v4, self.v6):
            if one is not None:
                _set_mark(one, mark)
        self.mark = mark

    def detach(self) -> None:
        """Give up the descriptors without closing them."""
        for one in (self.v4, self.v6):
            if one is not None:
                one.detach()

    def close(self) -> None:
        """Close both. Safe to call twice."""
        for one in (self.v4, self.v6):
            if one is not None:
                one.close()


def bind(port: int, *, mark: int = 0) -> UdpSockets:
    """Bind both families to `port`, or to one random port that is free in both if it is 0.

    A host without one family gets the other alone. Raises PortInUseError, and HostError for every other failure.
    """
    for _ in range(BIND_ATTEMPTS):
        try:
            return _bind_once(port, mark)
        except PortInUseError:
            if port != 0:
                raise
    raise HostError(f"no UDP port is free in both families ({BIND_ATTEMPTS} attempts)")


def adopt(v4: int | None, v6: int | None) -> UdpSockets:
    """Take over descriptors of bound sockets that another process opened; datagrams that wait in them are kept.

    Raises HostError, and leaves the descriptors open, if they are not UDP sockets of these families on one port. For
    session hand-over on restart and for systemd's descriptor store; no caller in the agent yet.
    """
    adopted: list[socket.socket | None] = []
    try:
        for fd, family in ((v4, socket.AF_INET), (v6, socket.AF_INET6)):
            adopted.append(None if fd is None else _adopt(fd, family))
        ports = {one.getsockname()[1] for one in adopted if one is not None}
        marks = {one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for one in adopted if one is not None}
        if len(ports) != 1 or 0 in ports or len(marks) != 1:
            raise HostError(f"UDP sockets with ports {sorted(ports)} and marks {sorted(marks)} are not one pair")
    except BaseException:
        for one in adopted:
            if one is not None:
                one.detach()
        raise
    return UdpSockets(adopted[0], adopted[1], ports.pop(), marks.pop())


def _adopt(fd: int, family: socket.AddressFamily) -> socket.socket:
    """Return a socket object for the descriptor, checked and set up like a new one. Raises HostError."""
    try:
        one = socket.socket(fileno=fd)
    except OSError as error:
        raise HostError(f"descriptor {fd} is not that of a socket: {error.strerror}") from error
    try:
        if (one.family, one.type) != (family, socket.SOCK_DGRAM):
            raise HostError(f"descriptor {fd} is not that of a UDP socket of family {family.name}")
        if family is socket.AF_INET6:
            if not one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                raise HostError(f"the IPv6 socket of descriptor {fd} takes IPv4 as well (IPV6_V6ONLY is off)")
            _configure_v6(one)
        else:
            _configure_v4(one)
        _configure_buffers(one)
        one.setblocking(False)
        one.set_inheritable(False)
    except BaseException:
        one.detach()
        raise
    return one


def _bind_once(port: int, mark: int) -> UdpSockets:
    """Bind both families to one port; with port 0 the first family draws it. Nothing is left open after an error."""
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
    sockets = UdpSockets(v4, v6, port)
    try:
        sockets.set_mark(mark)
    except HostError:
        sockets.close()
        raise
    return sockets


def _open(family: socket.AddressFamily, port: int) -> socket.socket | None:
    """Return one bound socket, or None where the host lacks the family."""
    try:
        one = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EAFNOSUPPORT, errno.EPFNOSUPPORT}:
            return None
        raise HostError(f"no UDP socket can be opened: {error.strerror}") from error
    try:
        if family is socket.AF_INET6:
            # The IPv4 socket binds the same port.
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
        if error.errno == errno.EADDRNOTAVAIL:  # the family exists, but has no address to bind
            return None
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise HostError(f"binding UDP port {port} is not permitted: {error.strerror}") from error
        raise HostError(f"UDP port {port} cannot be bound: {error.strerror}") from error
    return one


def _configure_v4(one: socket.socket) -> None:
    """Receive destination address and TOS (which has the ECN bits) of each datagram; allow fragmentation."""
    one.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    one.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
    # Outer packets may be fragmented, here and on the path, as those of the Linux kernel's WireGuard: a tunnel whose
    # MTU is a little too large is slow then, not dead. Path-MTU probes ask for DF per datagram.
    one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)


def _configure_v6(one: socket.socket) -> None:
    """Set what `_configure_v4` sets, with the options of IPv6."""
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DONT)


def _configure_buffers(one: socket.socket) -> None:
    """Receive the kernel's count of dropped datagrams (SO_RXQ_OVFL), and enlarge both buffers."""
    one.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            one.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except OSError:  # no CAP_NET_ADMIN: as much as net.core.[rw]mem_max allows
            one.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)


def _set_mark(one: socket.socket, mark: int) -> None:
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except OSError as error:
        raise HostError(f"fwmark {mark} cannot be set: {error.strerror}: it needs CAP_NET_ADMIN") from error
