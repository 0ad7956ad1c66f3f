"""TAI64N timestamps of handshake initiations, which protect a responder against replay (whitepaper §5.1).

Only their order matters to a receiver, which accepts a stamp that is greater (as 12 bytes) than the last one.
"""

from __future__ import annotations

STAMP_BYTES = 12

# The label of 1970-01-01 00:00:10 TAI: ten seconds ahead of UTC, as all implementations have it.
_UNIX_EPOCH = 0x400000000000000A
# The reference implementations clear the low 24 bits of the nanoseconds: a grain of 16.8 ms still allows 50
# initiations a second, and tells an observer of several tunnels less about this machine's clock.
_WHITENED = ~0xFFFFFF


def stamp(unix_ns: int) -> bytes:
    """12 bytes, big endian: u64 seconds, u32 nanoseconds. `unix_ns` is nanoseconds since the Unix epoch.

    Two instants within one grain of 2^24 ns get equal stamps.
    """
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return (_UNIX_EPOCH + seconds).to_bytes(8, "big") + (nanoseconds & _WHITENED).to_bytes(4, "big")
