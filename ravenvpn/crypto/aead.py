"""The AEAD suites a session may use, and what is particular to each."""

from __future__ import annotations

import enum


class Suite(enum.Enum):
    """Value: the name in `Peer.spec.suites`. Both use 32-byte keys and 16-byte tags."""

    CHACHA20POLY1305 = "chacha20poly1305"
    AES256GCM = "aes256gcm"
