"""How many handshakes one source may ask for while we are under load (whitepaper §5.3).

A token bucket per IPv4 address or IPv6 /64 (a host usually owns its /64 whole). Asked only after mac2 proved that
the source can receive at its address, so that nobody fills another's bucket. A limiter common to all sources would
be a gift to an attacker, who could then spend everyone's tokens.
"""

from __future__ import annotations

from ipaddress import IPv6Address

# As the Linux kernel and wireguard-go have them.
PACKETS_PER_SECOND = 20.0
BURST = 5.0
# A bucket untouched for this long is full again (burst / rate), so forgetting it changes nothing. Seconds.
FORGET_AFTER = 1.0
# Ours: 65,536 buckets are about 15 MB. A full table refuses newcomers until the next sweep.
MAX_SOURCES = 2**16


def source_of(host: str) -> str | bytes:
    """What a bucket belongs to: the IPv4 address, or the first 64 bits of the IPv6 address."""
    return IPv6Address(host.partition("%")[0]).packed[:8] if ":" in host else host


class SourceLimiter:
    """`allow` spends a token of the source, if it has one left."""

    def __init__(
        self, rate: float = PACKETS_PER_SECOND, burst: float = BURST, max_sources: int = MAX_SOURCES
    ) -> None:
        self._rate, self._burst, self._max = rate, burst, max_sources
        self._buckets: dict[str | bytes, tuple[float, float]] = {}  # tokens, and when that was true
        self._swept = 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, host: str, now: float) -> bool:
        if now - self._swept >= FORGET_AFTER:
            self._sweep(now)
        source = source_of(host)
        known = self._buckets.get(source)
        if known is None:
            if len(self._buckets) >= self._max:
                return False
            tokens = self._burst
        else:
            tokens = min(self._burst, known[0] + (now - known[1]) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def _sweep(self, now: float) -> None:
        self._swept = now
        stale = [source for source, (_, at) in self._buckets.items() if now - at >= FORGET_AFTER]
        for source in stale:
            del self._buckets[source]
