//! The two suites, per keypair. The primitives are ring's (`docs/aead.md` says why); nothing here but nonces.

use std::mem::ManuallyDrop;

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

pub const TAG: usize = 16;
pub const KEY: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    ChaCha20Poly1305,
    Aes256Gcm,
}

impl Suite {
    /// Ask for a new session after this many messages (whitepaper §6.1; for AES our own bound, docs/protocol.md).
    #[must_use]
    pub fn rekey_after_messages(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => 1 << 60,
            Self::Aes256Gcm => 1 << 28,
        }
    }

    /// Counters from here on are neither sent nor accepted.
    #[must_use]
    pub fn reject_after_messages(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => u64::MAX - (1 << 13),
            Self::Aes256Gcm => 1 << 29,
        }
    }

    /// Noise §12: four zero bytes, then the counter, little endian for ChaChaPoly and big endian for AESGCM.
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

/// The tag did not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTag;

/// One direction's key, expanded for use and kept raw for a hand-over. Both are wiped when it is dropped.
pub struct Key {
    suite: Suite,
    raw: Zeroizing<[u8; KEY]>,
    expanded: Box<ManuallyDrop<LessSafeKey>>,
}

impl Key {
    #[must_use]
    pub fn new(suite: Suite, raw: &[u8; KEY]) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        let unbound = UnboundKey::new(algorithm, raw).expect("32 bytes fit both suites");
        Self { suite, raw: Zeroizing::new(*raw), expanded: Box::new(ManuallyDrop::new(LessSafeKey::new(unbound))) }
    }

    #[must_use]
    pub fn raw(&self) -> &[u8; KEY] {
        &self.raw
    }

    /// Encrypts `buffer[..n]` in place, where `n` is all but the last 16 bytes, which become the tag.
    pub fn seal(&self, counter: u64, buffer: &mut [u8]) {
        let (plain, tag) = buffer.split_at_mut(buffer.len() - TAG);
        let made = self
            .expanded
            .seal_in_place_separate_tag(self.suite.nonce(counter), Aad::empty(), plain)
            .expect("a packet is shorter than any limit of the suites");
        tag.copy_from_slice(made.as_ref());
    }

    /// Decrypts `buffer`, ciphertext and tag, in place.
    pub fn open(&self, counter: u64, buffer: &mut [u8]) -> Result<(), BadTag> {
        self.expanded.open_in_place(self.suite.nonce(counter), Aad::empty(), buffer).map(|_| ()).map_err(|_| BadTag)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.expanded);
    }
}

/// ring does not wipe what it expands a key into; it holds no pointer, so its bytes can be zeroed in its place.
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

    /// RFC 8439 §2.8.2 has a 96-bit nonce of its own kind; this vector (counter 0, empty plaintext and AAD) was made
    /// with the `cryptography` package's ChaCha20Poly1305 and AESGCM.
    #[test]
    fn counters_enter_the_nonce_as_noise_says() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let key = Key::new(suite, &[1; 32]);
            let mut one = *b"attack at dawn..................";
            key.seal(0x0102_0304_0506_0708, &mut one);
            let expected = match suite {
                Suite::ChaCha20Poly1305 => CHACHA,
                Suite::Aes256Gcm => AES,
            };
            assert_eq!(one, expected);
            assert_eq!(key.open(0x0102_0304_0506_0708, &mut one), Ok(()));
            assert_eq!(&one[..16], b"attack at dawn..");
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
    fn a_flipped_bit_is_noticed() {
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
