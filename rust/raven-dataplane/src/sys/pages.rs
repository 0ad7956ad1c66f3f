//! Page-aligned buffers.

use std::ops::{Deref, DerefMut};

/// Bytes of a page. Larger pages (aarch64) are multiples of it.
const PAGE: usize = 4096;

/// Zeroed memory that begins at a page boundary. Only touched pages are backed by memory, so idle bodies stay small.
///
/// The reason for the alignment is copies by the kernel. On some processors (AMD Zen 3) a copy whose target lies a
/// few bytes behind its source, modulo 4096, takes seven times as long, and large allocations begin 16 bytes into a
/// page.
pub struct Pages {
    memory: Box<[u8]>,
    start: usize,
    length: usize,
}

impl Pages {
    /// Allocate `length` zeroed bytes.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + PAGE].into_boxed_slice();
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start, length }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_at_a_page_boundary() {
        for length in [1, 65_585, 1 << 20] {
            let pages = Pages::new(length);
            assert_eq!(pages.as_ptr().addr() % PAGE, 0);
            assert_eq!(pages.len(), length);
        }
    }
}
