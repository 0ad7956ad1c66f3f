//! The replay window: which message counters were received (RFC 6479, whitepaper §5.4.6).
//!
//! 128 words of 64 bits, as in the reference implementations. Counter c is bit (c mod 64) of word (c div 64) mod 128.

/// Words of the ring.
const WORDS: usize = 128;
/// Bits of a word.
const BITS: u64 = 64;
/// How many messages a counter may be late: all words but the one that is being filled.
pub const WINDOW: u64 = (WORDS as u64 - 1) * BITS;

/// The received counters of one keypair. `greatest` starts at 0 with no bit set, so that counter 0 is fresh.
#[derive(Clone)]
pub struct ReplayWindow {
    greatest: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { greatest: 0, words: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Restore a window from hand-over: the greatest counter received, and the words.
    #[must_use]
    pub fn from_parts(greatest: u64, words: [u64; WORDS]) -> Self {
        Self { greatest, words }
    }

    /// Return the greatest counter received and the words, for session hand-over.
    #[must_use]
    pub fn parts(&self) -> (u64, &[u64; WORDS]) {
        (self.greatest, &self.words)
    }

    /// Return true if `counter` was not received yet and is not older than the window. Changes nothing: it is called
    /// before the costly authentication.
    #[must_use]
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter > self.greatest {
            return true;
        }
        self.greatest - counter <= WINDOW && self.words[word(counter)] & bit(counter) == 0
    }

    /// Record an authenticated counter as received. Return false if it was received before or is too old.
    pub fn mark(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter > self.greatest {
            let ahead = (counter / BITS - self.greatest / BITS).min(WORDS as u64);
            for step in 1..=ahead {
                self.words[word((self.greatest / BITS + step) * BITS)] = 0;
            }
            self.greatest = counter;
        }
        self.words[word(counter)] |= bit(counter);
        true
    }
}

/// Return the index of a counter's word.
fn word(counter: u64) -> usize {
    (counter / BITS) as usize % WORDS
}

/// Return the mask of a counter's bit.
fn bit(counter: u64) -> u64 {
    1 << (counter % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_counter_is_fresh_once() {
        let mut window = ReplayWindow::default();
        assert!(window.mark(0));
        assert!(!window.mark(0));
        assert!(window.mark(1));
        assert!(!window.is_fresh(1));
    }

    #[test]
    fn the_window_is_8128_messages_long() {
        let mut window = ReplayWindow::default();
        assert!(window.mark(8128 + 5));
        assert!(window.is_fresh(5));
        assert!(!window.is_fresh(4));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set_of_counters(steps in proptest::collection::vec((0u64..4, 0u64..20_000), 1..300)) {
            let mut window = ReplayWindow::default();
            let mut seen = HashSet::new();
            let mut greatest = 0;
            let mut base = 0u64;
            for (kind, delta) in steps {
                let counter = match kind {
                    0 => { base += delta; base }
                    1 => base.saturating_sub(delta),
                    2 => base + 1,
                    _ => base.saturating_sub(delta % 64),
                };
                base = base.max(counter);
                let fresh = greatest <= counter.saturating_add(WINDOW) && !seen.contains(&counter);
                prop_assert_eq!(window.is_fresh(counter), fresh);
                prop_assert_eq!(window.mark(counter), fresh);
                if fresh {
                    seen.insert(counter);
                    greatest = greatest.max(counter);
                }
            }
        }
    }
}
