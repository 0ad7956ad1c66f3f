"""Open the kernel objects that a tunnel runs on, or adopt the descriptors of those that another process opened."""

from __future__ import annotations

from dataclasses import dataclass

from ravenvpn.tunnel.linux import udp
from ravenvpn.tunnel.linux.links import LinkWatch
from ravenvpn.tunnel.linux.tun import Tun
from ravenvpn.tunnel.linux.udp import UdpSockets


@dataclass(slots=True)
class TunnelResources:
    """The kernel objects of one tunnel, all of one network namespace. Owned by the tunnel once it was handed them."""

    tun: Tun | None  # None: a tunnel of sessions and probes only
    sockets: UdpSockets
    links: LinkWatch

    @staticmethod
    def bind_sockets(port: int, mark: int) -> UdpSockets:
        """Return new sockets for a change of the listen port (0: a random one). Raises HostError, PortInUseError."""
        return udp.bind(port, mark=mark)

    def close(self) -> None:
        """Close everything, which deletes the TUN device. Safe to call twice."""
        self.links.close()
        self.sockets.close()
        if self.tun is not None:
            self.tun.close()


def open_resources(device: str | None = None, *, mtu: int | None = None, port: int = 0) -> TunnelResources:
    """Create the TUN device `device` (None: none), down, with this MTU, and bind the outer port (0: a random one).

    Acts on the network namespace of the calling thread. Raises HostError, PortInUseError; nothing is left open then.
    """
    tun = Tun.open(device) if device is not None else None
    try:
        if tun is not None and mtu is not None:
            tun.mtu = mtu
        return TunnelResources(tun, udp.bind(port), LinkWatch.open())
    except BaseException:
        if tun is not None:
            tun.close()
        raise


def adopt_resources(tun: int | None, v4: int | None, v6: int | None) -> TunnelResources:
    """Take over the descriptors of a TUN device and of bound UDP sockets (None: there is none).

    The device keeps its name, MTU and state, the sockets their port and mark; nothing that waits in them is lost.
    Raises HostError if a descriptor is not what it should be; all stay open then. For session hand-over on restart
    and for systemd's descriptor store; no caller in the agent yet.
    """
    sockets = udp.adopt(v4, v6)
    try:
        return TunnelResources(Tun.adopt(tun) if tun is not None else None, sockets, LinkWatch.open())
    except BaseException:
        sockets.detach()
        raise
