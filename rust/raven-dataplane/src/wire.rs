//! The transport message (whitepaper §5.4.6): type 4, three zero bytes, receiver index, counter, ciphertext, tag.
//! Integers are little-endian.

use crate::aead::TAG;

/// Bytes before the ciphertext.
pub const HEADER: usize = 16;
/// Bytes of the shortest message, a keepalive: header and the tag of an empty packet.
pub const SHORTEST: usize = HEADER + TAG;
/// Type of a transport message, with the three reserved zero bytes.
const TRANSPORT: u32 = 4;

/// Return the header of a transport message.
#[must_use]
pub fn pack(receiver: u32, counter: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&TRANSPORT.to_le_bytes());
    header[4..8].copy_from_slice(&receiver.to_le_bytes());
    header[8..].copy_from_slice(&counter.to_le_bytes());
    header
}

/// The kind of a datagram by its header, before authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Transport {
        receiver: u32,
        counter: u64,
    },
    /// Type 4, but too short or with reserved bits set.
    Malformed,
    /// Any other type: the tunnel handles it.
    Other,
}

/// Type of a handshake initiation (whitepaper §5.4.2).
const INITIATION: u8 = 1;
/// Bytes of a handshake initiation.
const INITIATION_BYTES: usize = 148;
/// Offset of mac2 in an initiation.
const MAC2: usize = INITIATION_BYTES - 16;

/// Return true for an initiation whose mac2 is zero: its source address is unproven (whitepaper §5.3), so a flood of
/// them can be spoofed.
#[must_use]
pub fn is_initiation_without_mac2(datagram: &[u8]) -> bool {
    datagram.len() == INITIATION_BYTES && datagram[0] == INITIATION && datagram[MAC2..].iter().all(|&byte| byte == 0)
}

/// Parse the header of a datagram.
#[must_use]
pub fn parse(datagram: &[u8]) -> Message {
    match datagram.first() {
        Some(4) => {}
        _ => return Message::Other,
    }
    let Some(header) = datagram.first_chunk::<HEADER>().filter(|_| datagram.len() >= SHORTEST) else {
        return Message::Malformed;
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != TRANSPORT {
        return Message::Malformed;
    }
    Message::Transport { receiver: word(4), counter: u64::from(word(8)) | u64::from(word(12)) << 32 }
}
