"""Cipher suites that suit this machine's CPU."""

from __future__ import annotations

from pathlib import Path

from ravenvpn.crypto.aead import Suite, cpu_accelerates_aes


def own_suites() -> tuple[Suite, ...]:
    """Return the suites this node may announce: WireGuard's, and AES-GCM where every CPU accelerates AES.

    Without acceleration AES-GCM is several times slower than ChaCha20-Poly1305.
    """
    if cpu_accelerates_aes(Path("/proc/cpuinfo").read_text()):
        return (Suite.CHACHA20POLY1305, Suite.AES256GCM)
    return (Suite.CHACHA20POLY1305,)
