"""Which message counters have been seen: the sliding window of RFC 6479, moved only by authenticated messages."""

from __future__ import annotations

import struct
from typing import Final

from ravenvpn.dataplane.contract import REPLAY_WINDOW

WORDS: Final = 128
WORD_BITS: Final = 64
BITMAP = struct.Struct(f"<{WORDS}Q")

assert REPLAY_WINDOW == (WORDS - 1) * WORD_BITS  # the word of the greatest counter may hold a single bit of ours


class ReplayWindow:
    """A ring of 128 words of 64 bits. A counter may be late by REPLAY_WINDOW (8,128) and still be told apart.

    `fresh` asks and changes nothing, so that it may be asked before the tag was checked; `mark` is for after.
    """

    __slots__ = ("_words", "greatest")

    def __init__(self) -> None:
        self.greatest = -1
        self._words = [0] * WORDS

    def fresh(self, counter: int) -> bool:
        """Whether `counter` was not marked yet and is not too old to know."""
        late = self.greatest - counter
        if late < 0:
            return True
        return late <= REPLAY_WINDOW and not self._words[(counter >> 6) & 127] >> (counter & 63) & 1

    def mark(self, counter: int) -> None:
        """Remember a fresh counter."""
        word = counter >> 6
        if counter > self.greatest:
            newest = self.greatest >> 6
            if word != newest:
                for passed in range(max(newest, word - WORDS) + 1, word + 1):
                    self._words[passed & 127] = 0
            self.greatest = counter
        self._words[word & 127] |= 1 << (counter & 63)

    def freeze(self) -> tuple[int, bytes]:
        """(greatest counter or -1, 128 little-endian words: counter c is bit c mod 64 of word c div 64 mod 128)."""
        return self.greatest, BITMAP.pack(*self._words)

    @classmethod
    def thaw(cls, greatest: int, bitmap: bytes) -> ReplayWindow:
        """The reverse; ValueError unless `bitmap` has 1,024 bytes."""
        if len(bitmap) != BITMAP.size:
            raise ValueError(f"a replay window has {BITMAP.size} bytes, not {len(bitmap)}")
        window = cls()
        window.greatest = greatest
        window._words = list(BITMAP.unpack(bitmap))
        return window
