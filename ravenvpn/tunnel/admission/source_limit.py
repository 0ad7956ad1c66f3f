"""Rate limit for handshake initiations by source address, in force while we are under load (whitepaper §5.3).

One token bucket per IPv4 address or IPv6 /64 (a host usually owns its /64 whole). The limit is applied only after
mac2 proved that the source receives at its address, so nobody can spend the tokens of another source. One limit for
all sources together would help an attacker, who could then spend everybody's tokens.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from ravenvpn.token_bucket import TokenBucket

# The values of the Linux kernel (ratelimiter.c) and of wireguard-go.
PACKETS_PER_SECOND = 20.0
BURST = 5.0
SWEEP_INTERVAL = 1.0  # seconds between two removals of full buckets
# Ours: 65,536 buckets are about 15 MB. While the table is full, new sources are refused until the next sweep.
MAX_SOURCES = 2**16


def source_of(host: str) -> str | bytes:
    """Return the key of the source's bucket: the IPv4 address, or the first 8 bytes of the IPv6 address."""
    return IPv6Address(host.partition("%")[0]).packed[:8] if ":" in host else host


class SourceLimiter:
    """Token buckets by source. `len()` is the number of sources in the table."""

    def __init__(
        self, rate: float = PACKETS_PER_SECOND, burst: float = BURST, max_sources: int = MAX_SOURCES
    ) -> None:
        """`rate` in packets per second, `burst` in packets; at most `max_sources` buckets are kept."""
        self._rate, self._burst, self._max = rate, burst, max_sources
        self._buckets: dict[str | bytes, TokenBucket] = {}
        self._swept_at = 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, host: str, now: float) -> bool:
        """Spend a token of this numeric address and return True, or return False if its bucket is empty or the
        table is full. `now` is seconds of CLOCK_BOOTTIME."""
        if now - self._swept_at >= SWEEP_INTERVAL:
            self._sweep(now)
        source = source_of(host)
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= self._max:
                return False
            bucket = self._buckets[source] = TokenBucket(self._rate, self._burst)
        return bucket.allow(now)

    def _sweep(self, now: float) -> None:
        """Remove the buckets that are full again: a new bucket would be the same."""
        self._swept_at = now
        for source in [source for source, bucket in self._buckets.items() if bucket.is_full(now)]:
            del self._buckets[source]
