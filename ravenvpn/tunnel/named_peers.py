"""The peers of a running tunnel by name: settings, prefixes and packets.

The device and the data plane know peers by id; callers and people know them by name. This is the translation, and the
record of what is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ravenvpn.dataplane import boottime
from ravenvpn.dataplane.contract import DataPlane, Endpoint, PeerId
from ravenvpn.prefixes import Prefix
from ravenvpn.tunnel.allowed_ips import AllowedIPs
from ravenvpn.tunnel.device import Device, PeerSettings, PeerStatus


class NamedPeers:
    """Unknown names raise KeyError, bad arguments ValueError. Each change takes effect between two packets.

    Called on the event loop, before the tunnel is started or while it runs.
    """

    def __init__(self, device: Device, dataplane: DataPlane, wake: Callable[[], None]) -> None:
        """`wake` has the device's deadlines looked at in the next turn of the loop."""
        self._device = device
        self._dataplane = dataplane
        self._wake = wake
        self._settings: dict[str, PeerSettings] = {}
        self._ids: dict[str, PeerId] = {}
        self._names: dict[PeerId, str] = {}
        self.allowed_ips = AllowedIPs()  # to be read; `route` and `accept` write

    @property
    def settings(self) -> Mapping[str, PeerSettings]:
        """The settings in force, by name."""
        return self._settings

    def set(self, settings: PeerSettings) -> None:
        """Add the peer of that name or change its settings. ValueError if another peer owns one of its keys.

        Another preshared key or other suites count from the next handshake; the session in force stays.
        """
        peer = self._device.set_peer(settings, boottime())
        self._settings[settings.name] = settings
        self._ids[settings.name] = peer
        self._names[peer] = settings.name
        self._wake()

    def set_endpoint(self, name: str, endpoint: Endpoint) -> None:
        """Move the peer to this numeric endpoint, wherever it was seen before."""
        self._device.set_endpoint(name, endpoint)
        self._wake()

    def remove(self, name: str) -> None:
        """Remove the peer with its sessions, routes and accepted prefixes."""
        self._device.remove_peer(name)
        del self._settings[name], self._names[self._ids.pop(name)]
        self.allowed_ips.remove_peer(name)
        self._wake()

    def initiate(self, name: str) -> None:
        """Start a handshake as soon as the limit of one initiation per REKEY_TIMEOUT allows."""
        self._device.initiate(name, boottime())
        self._wake()

    def route(self, prefix: Prefix, names: Sequence[str]) -> None:
        """Send packets to `prefix` to these peers and to no others; an empty list removes the route."""
        self._dataplane.route(prefix, [self._ids[name] for name in names])
        self.allowed_ips.route(prefix, names)

    def accept(self, name: str, add: Iterable[Prefix] = (), remove: Iterable[Prefix] = ()) -> None:
        """Add and remove prefixes that inner packets of this peer may have as their source."""
        add, remove = tuple(add), tuple(remove)
        self._dataplane.accept(self._ids[name], add, remove)
        self.allowed_ips.accept(name, add, remove)

    def send_inner(self, name: str, packet: bytes, outer_df: bool = False) -> None:
        """Send a whole inner packet of our own (a probe) to the peer, past the routes; `outer_df` sets DF outside."""
        self._dataplane.send_inner(self._ids[name], packet, outer_df)
        self._wake()

    def announce_endpoint(self) -> None:
        """Send a keepalive to each peer with a usable session, so that it learns our new endpoint at once."""
        for status in self.statuses():
            if status.session_age is not None:
                self._dataplane.send_keepalive(status.id)
        self._wake()

    def id_of(self, name: str) -> PeerId:
        """Return the peer's id, by which probers know it. It is another one in another tunnel."""
        return self._ids[name]

    def name_of(self, peer: PeerId) -> str | None:
        """Return the name of the peer of this id, None if it was removed."""
        return self._names.get(peer)

    def statuses(self) -> list[PeerStatus]:
        """Return the status of every peer, oldest first."""
        return self._device.peers(boottime())

    def prefixes(self) -> dict[str, Sequence[Prefix]]:
        """Return all prefixes routed to or accepted from each peer, by name."""
        return {name: self.allowed_ips.prefixes(name) for name in self._ids}
