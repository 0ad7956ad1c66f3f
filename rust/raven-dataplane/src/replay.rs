//! The replay window: RFC 6479 with 128 words of 64 bits, as the reference implementations have it.

const WORDS: usize = 128;
const BITS: u64 = 64;
/// Messages a counter may be late.
pub const WINDOW: u64 = (WORDS as u64 - 1) * BITS;

/// Which counters were seen. `greatest` starts at 0 with no bit set, so that counter 0 is new.
#[derive(Clone)]
pub struct Window {
    greatest: u64,
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { greatest: 0, words: [0; WORDS] }
    }
}

impl Window {
    #[must_use]
    pub fn from_parts(greatest: u64, words: [u64; WORDS]) -> Self {
        Self { greatest, words }
    }

    #[must_use]
    pub fn parts(&self) -> (u64, &[u64; WORDS]) {
        (self.greatest, &self.words)
    }

    /// Whether `counter` would be new; asked before the costly authentication, changes nothing.
    #[must_use]
    pub fn admits(&self, counter: u64) -> bool {
        if counter > self.greatest {
            return true;
        }
        self.greatest - counter <= WINDOW && self.words[word(counter)] & bit(counter) == 0
    }

    /// Marks `counter`, which was authenticated, as seen; false if it was before.
    pub fn update(&mut self, counter: u64) -> bool {
        if !self.admits(counter) {
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

fn word(counter: u64) -> usize {
    (counter / BITS) as usize % WORDS
}

fn bit(counter: u64) -> u64 {
    1 << (counter % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_counter_is_taken_once() {
        let mut window = Window::default();
        assert!(window.update(0));
        assert!(!window.update(0));
        assert!(window.update(1));
        assert!(!window.admits(1));
    }

    #[test]
    fn the_window_is_8128_messages_long() {
        let mut window = Window::default();
        assert!(window.update(8128 + 5));
        assert!(window.admits(5));
        assert!(!window.admits(4));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(steps in proptest::collection::vec((0u64..4, 0u64..20_000), 1..300)) {
            let mut window = Window::default();
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
                prop_assert_eq!(window.admits(counter), fresh);
                prop_assert_eq!(window.update(counter), fresh);
                if fresh {
                    seen.insert(counter);
                    greatest = greatest.max(counter);
                }
            }
        }
    }
}
