"""What this machine's CPU is good at."""

from __future__ import annotations

from pathlib import Path

from ravenvpn.crypto.aead import Suite, cpu_accelerates_aes


def own_suites() -> tuple[Suite, ...]:
    """The suites this node may announce: WireGuard's, and AES where every CPU accelerates it."""
    if cpu_accelerates_aes(Path("/proc/cpuinfo").read_text()):
        return (Suite.CHACHA20POLY1305, Suite.AES256GCM)
    return (Suite.CHACHA20POLY1305,)
