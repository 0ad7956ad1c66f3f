"""What a device has to say to whoever runs it: few values, each worth a line in a log or a decision above."""

from __future__ import annotations

from dataclasses import dataclass

from ravenvpn.dataplane.contract import Endpoint, InnerPacket
from ravenvpn.tunnel.peer import HandshakeFailure

MAX_REPORTS = 4096  # waiting to be taken; the oldest go


@dataclass(frozen=True, slots=True)
class SessionUp:
    """A session was confirmed: the first one, or the first after one was lost."""

    name: str
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class SessionLost:
    """Initiations were given up, or the last keys are gone; `failure` is what is known of the cause."""

    name: str
    failure: HandshakeFailure | None


Report = SessionUp | SessionLost | InnerPacket
