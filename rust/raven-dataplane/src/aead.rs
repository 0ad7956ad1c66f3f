//! The AEAD ciphers of transport messages: ChaCha20-Poly1305 and AES-256-GCM, one key per direction and keypair.
//!
//! ring has the ciphers (`docs/aead.md` gives the reasons). This module adds nonces, message limits and key wiping.

use std::mem::ManuallyDrop;

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// Bytes of an authentication tag, in both suites.
pub const TAG: usize = 16;
/// Bytes of a key, in both suites.
pub const KEY: usize = 32;

/// The cipher of a keypair, which the handshake negotiates (`Peer.spec.suites`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    ChaCha20Poly1305,
    Aes256Gcm,
}

impl Suite {
    /// Return the number of messages after which a new handshake is due: REKEY-AFTER-MESSAGES (whitepaper §6.1) for
    /// ChaCha20-Poly1305, a lower bound for AES-256-GCM (docs/protocol.md).
    #[must_use]
    pub fn rekey_after_messages(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => 1 << 60,
            Self::Aes256Gcm => 1 << 28,
        }
    }

    /// Return the first counter that is neither sent nor accepted: REJECT-AFTER-MESSAGES (whitepaper §6.1).
    #[must_use]
    pub fn reject_after_messages(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => u64::MAX - (1 << 13),
            Self::Aes256Gcm => 1 << 29,
        }
    }

    /// Return the nonce of a message counter. Noise §12: four zero bytes, then the counter, little-endian for
    /// ChaChaPoly and big-endian for AESGCM. The caller uses a counter once per key for sealing.
    fn nonce(self, counter: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        let counter = match self {
            Self::ChaCha20Poly1305 => counter.to_le_bytes(),
            Self::Aes256Gcm => counter.to_be_bytes(),
        };
        nonce[4..].copy_from_slice(&counter);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Authentication failed: the tag did not match. The content of the buffer is undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTag;

/// The key of one direction: expanded for the cipher, and raw for session hand-over. Both are wiped on drop.
pub struct Key {
    suite: Suite,
    /// For session hand-over.
    raw: Zeroizing<[u8; KEY]>,
    /// Boxed, so that moving a Key leaves no copy behind; ManuallyDrop, because [`wipe`] takes the place of its
    /// destructor.
    expanded: Box<ManuallyDrop<LessSafeKey>>,
}

impl Key {
    /// Expand a raw key for `suite`.
    #[must_use]
    pub fn new(suite: Suite, raw: &[u8; KEY]) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        let unbound = UnboundKey::new(algorithm, raw).expect("32 bytes fit both suites");
        Self { suite, raw: Zeroizing::new(*raw), expanded: Box::new(ManuallyDrop::new(LessSafeKey::new(unbound))) }
    }

    /// Return the raw key, for session hand-over.
    #[must_use]
    pub fn raw(&self) -> &[u8; KEY] {
        &self.raw
    }

    /// Encrypt all but the last 16 bytes of `buffer` in place, and write the tag to those 16 bytes.
    ///
    /// # Panics
    /// If `buffer` is shorter than [`TAG`].
    pub fn seal(&self, counter: u64, buffer: &mut [u8]) {
        let (plain, tag) = buffer.split_at_mut(buffer.len() - TAG);
        let computed = self
            .expanded
            .seal_in_place_separate_tag(self.suite.nonce(counter), Aad::empty(), plain)
            .expect("a packet is shorter than any limit of the suites");
        tag.copy_from_slice(computed.as_ref());
    }

    /// Decrypt `buffer`, ciphertext and then tag, in place. The plaintext is all but the last 16 bytes.
    ///
    /// # Errors
    /// [`BadTag`] if the message was not sealed with this key and counter, or is shorter than a tag.
    pub fn open(&self, counter: u64, buffer: &mut [u8]) -> Result<(), BadTag> {
        self.expanded.open_in_place(self.suite.nonce(counter), Aad::empty(), buffer).map(|_| ()).map_err(|_| BadTag)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.expanded);
    }
}

/// Zero an expanded key. ring does not wipe its expanded keys. They contain no pointer, so zeroing the bytes is safe.
fn wipe(expanded: &mut ManuallyDrop<LessSafeKey>) {
    let handle: *mut u8 = std::ptr::from_mut(expanded).cast();
    for index in 0..size_of::<LessSafeKey>() {
        // SAFETY: in bounds of the value, which is owned, never read again (its destructor does not run) and valid
        // for writes of any byte.
        let byte = unsafe { handle.add(index) };
        // SAFETY: as above; volatile, so that it is not optimised away.
        unsafe { byte.write_volatile(0) };
    }
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors come from ChaCha20Poly1305 and AESGCM of the Python package `cryptography`, with Noise's nonce and
    /// empty additional data. The vector of RFC 8439 §2.8.2 has a nonce of another form.
    #[test]
    fn a_nonce_encodes_the_counter_as_noise_specifies() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let key = Key::new(suite, &[1; 32]);
            let mut message = *b"attack at dawn..................";
            key.seal(0x0102_0304_0506_0708, &mut message);
            let expected = match suite {
                Suite::ChaCha20Poly1305 => CHACHA,
                Suite::Aes256Gcm => AES,
            };
            assert_eq!(message, expected);
            assert_eq!(key.open(0x0102_0304_0506_0708, &mut message), Ok(()));
            assert_eq!(&message[..16], b"attack at dawn..");
        }
    }

    const CHACHA: [u8; 32] = [
        60, 59, 186, 175, 251, 67, 47, 130, 16, 252, 76, 159, 92, 18, 254, 210, 63, 88, 185, 217, 4, 76, 76, 220, 221,
        244, 84, 247, 94, 145, 71, 7,
    ];
    const AES: [u8; 32] = [
        95, 149, 20, 95, 201, 233, 224, 123, 121, 186, 186, 163, 18, 35, 141, 161, 246, 180, 182, 125, 164, 183, 133,
        237, 3, 243, 250, 200, 47, 189, 181, 31,
    ];

    #[test]
    fn a_message_with_a_flipped_bit_is_rejected() {
        let key = Key::new(Suite::Aes256Gcm, &[1; 32]);
        let mut data = [0; 40];
        key.seal(7, &mut data);
        data[3] ^= 1;
        assert_eq!(key.open(7, &mut data), Err(BadTag));
    }

    #[test]
    fn an_expanded_key_is_zero_after_wiping() {
        let mut expanded =
            ManuallyDrop::new(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[0x5a; 32]).expect("32 bytes")));
        wipe(&mut expanded);
        let handle: *const u8 = std::ptr::from_ref(&expanded).cast();
        // SAFETY: the bytes were all written by `wipe`.
        let bytes = unsafe { std::slice::from_raw_parts(handle, size_of::<LessSafeKey>()) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
}
