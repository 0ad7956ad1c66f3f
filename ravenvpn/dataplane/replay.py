"""The replay window: which message counters were received (RFC 6479, whitepaper §5.4.6).

Only authenticated messages move the window, so a forged counter can not push honest ones out of it.
"""

from __future__ import annotations

import struct
from typing import Final

from ravenvpn.dataplane.contract import REPLAY_WINDOW

WORDS: Final = 128
WORD_BITS: Final = 64
BITMAP = struct.Struct(f"<{WORDS}Q")

# One word less than the ring has: the word of the greatest counter may hold a single valid bit.
assert REPLAY_WINDOW == (WORDS - 1) * WORD_BITS


class ReplayWindow:
    """A ring of 128 words of 64 bits: counter c is bit (c mod 64) of word (c div 64) mod 128.

    A counter may be late by REPLAY_WINDOW (8,128) messages. `is_fresh` changes nothing, so that it can be asked
    before the tag is checked, which costs more; `mark` comes after the check.
    """

    __slots__ = ("_words", "greatest")

    def __init__(self) -> None:
        self.greatest = -1  # the greatest counter received, −1 if none
        self._words = [0] * WORDS

    def is_fresh(self, counter: int) -> bool:
        """Return True if `counter` was not received yet and is not older than the window."""
        late = self.greatest - counter
        if late < 0:
            return True
        return late <= REPLAY_WINDOW and not self._words[(counter >> 6) & 127] >> (counter & 63) & 1

    def mark(self, counter: int) -> None:
        """Record a fresh counter as received, and clear the words between the greatest counter and it."""
        word = counter >> 6
        if counter > self.greatest:
            newest = self.greatest >> 6
            if word != newest:
                for passed in range(max(newest, word - WORDS) + 1, word + 1):
                    self._words[passed & 127] = 0
            self.greatest = counter
        self._words[word & 127] |= 1 << (counter & 63)

    # For session hand-over on restart.

    def freeze(self) -> tuple[int, bytes]:
        """Return (greatest counter or −1, the 128 words little-endian)."""
        return self.greatest, BITMAP.pack(*self._words)

    @classmethod
    def thaw(cls, greatest: int, bitmap: bytes) -> ReplayWindow:
        """Return the window that `freeze` described. Raises ValueError unless `bitmap` has 1,024 bytes."""
        if len(bitmap) != BITMAP.size:
            raise ValueError(f"a replay window has {BITMAP.size} bytes, not {len(bitmap)}")
        window = cls()
        window.greatest = greatest
        window._words = list(BITMAP.unpack(bitmap))
        return window
