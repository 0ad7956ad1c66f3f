//! The transport message (whitepaper §5.4.6): type 4 and three zero bytes, receiver index, counter, ciphertext, tag.

use crate::aead::TAG;

pub const HEADER: usize = 16;
/// A keepalive: header and tag of nothing.
pub const SHORTEST: usize = HEADER + TAG;
const TRANSPORT: u32 = 4;

#[must_use]
pub fn pack(receiver: u32, counter: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&TRANSPORT.to_le_bytes());
    header[4..8].copy_from_slice(&receiver.to_le_bytes());
    header[8..].copy_from_slice(&counter.to_le_bytes());
    header
}

/// What a datagram claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Transport {
        receiver: u32,
        counter: u64,
    },
    /// Of type 4, but too short, or with reserved bits set.
    Malformed,
    /// For the tunnel to judge.
    Other,
}

/// A handshake initiation, and where its mac2 begins (whitepaper §5.4.2).
const INITIATION: u8 = 1;
const INITIATION_BYTES: usize = 148;
const MAC2: usize = INITIATION_BYTES - 16;

/// Whether it is a first initiation, or means to look like one: without a mac2 it proves nothing of its source.
#[must_use]
pub fn is_initiation_without_mac2(datagram: &[u8]) -> bool {
    datagram.len() == INITIATION_BYTES && datagram[0] == INITIATION && datagram[MAC2..].iter().all(|&byte| byte == 0)
}

#[must_use]
pub fn claim(datagram: &[u8]) -> Claim {
    match datagram.first() {
        Some(4) => {}
        _ => return Claim::Other,
    }
    let Some(header) = datagram.first_chunk::<HEADER>().filter(|_| datagram.len() >= SHORTEST) else {
        return Claim::Malformed;
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != TRANSPORT {
        return Claim::Malformed;
    }
    Claim::Transport { receiver: word(4), counter: u64::from(word(8)) | u64::from(word(12)) << 32 }
}
