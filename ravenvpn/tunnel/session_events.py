"""Session events of a device: few values, each worth a log line or a decision of the caller."""

from __future__ import annotations

from dataclasses import dataclass

from ravenvpn.dataplane.contract import Endpoint, InnerPacket
from ravenvpn.tunnel.peer import HandshakeFailure

# Events that wait to be drained; beyond it the oldest are dropped. Bounds the memory if the loop is held up while
# peers send probes.
MAX_DEVICE_EVENTS = 4096


@dataclass(frozen=True, slots=True)
class SessionUp:
    """A session was confirmed: the first one, or the first after one was lost. A rekey is not reported."""

    name: str  # of the peer
    endpoint: Endpoint | None  # where its last authenticated packet came from


@dataclass(frozen=True, slots=True)
class SessionLost:
    """Initiations were given up, or the last keypair is gone."""

    name: str  # of the peer
    failure: HandshakeFailure | None  # the cause, as far as known


DeviceEvent = SessionUp | SessionLost | InnerPacket
