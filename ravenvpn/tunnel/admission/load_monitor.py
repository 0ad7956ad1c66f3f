"""Under-load state of the responder, and the share of its time that handshakes get (whitepaper §5.3).

The state follows the Linux kernel: under load from the moment an eighth of the handshake queue is filled until one
second after that was last so. mac2 is checked and cookie replies are sent only while under load.
"""

from __future__ import annotations

from typing import Final

from ravenvpn.dataplane.contract import MAX_DATAGRAMS
from ravenvpn.token_bucket import TokenBucket

UNDER_LOAD_FROM: Final = MAX_DATAGRAMS // 8  # waiting messages; drivers/net/wireguard/receive.c
UNDER_LOAD_LINGERS: Final = 1.0  # seconds; the kernel's constant

# Ours. One event loop moves packets and does handshakes, and everybody who knows our public key can cause handshakes
# as fast as the queue is emptied, under load or not. So handshakes get a share of the time: 200 a second are 12 % of
# a core at 0.6 ms each, and as many as a thousand peers ask for that retry every five seconds.
HANDSHAKES_PER_SECOND: Final = 200.0
BURST: Final = 64.0  # handshakes; 40 ms of work
# Cost of refusing a message, in handshakes: a cookie reply is two hashes, one XChaCha20 and a send, which is a
# sixteenth, and as much again in the kernel.
REFUSAL: Final = 1 / 8


def handshake_budget() -> TokenBucket:
    """Return a full token bucket of handshake work; one token is one handshake."""
    return TokenBucket(HANDSHAKES_PER_SECOND, BURST)


class LoadMonitor:
    """Decides whether this responder is under load: a threshold with one second of hysteresis."""

    def __init__(self) -> None:
        self._until = float("-inf")

    def observe(self, waiting: int, now: float) -> bool:
        """Record that `waiting` handshake messages are queued; return whether we are under load."""
        if waiting >= UNDER_LOAD_FROM:
            self._until = now + UNDER_LOAD_LINGERS
        return now < self._until
