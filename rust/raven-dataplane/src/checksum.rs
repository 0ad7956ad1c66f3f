//! The Internet checksum (RFC 1071), alone or fused with a copy.
//!
//! A sum is the unfolded one's-complement sum of 16-bit words in memory order. It does not depend on byte order (RFC
//! 1071 §2 B), so words are added in the machine's byte order, and the folded result is stored in that order too.
//!
//! The compiler vectorises the loops. On x86-64 a version compiled for AVX2 is chosen at run time; aarch64 always has
//! NEON.

/// Bytes from which the AVX2 version is faster than the portable one.
const VECTOR_THRESHOLD: usize = 64;

/// Return the sum of the 16-bit words of `bytes`. An odd last byte counts as if a zero byte followed it.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() > VECTOR_THRESHOLD && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found at run time.
        return unsafe { sum_avx2(bytes) };
    }
    sum_portable(bytes)
}

/// Copy `source` to the front of `target` and return the sum of the copied bytes: one pass over memory, not two.
///
/// # Panics
/// If `target` is shorter than `source`.
#[must_use]
pub fn copy_and_sum(target: &mut [u8], source: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if source.len() > VECTOR_THRESHOLD && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found at run time.
        return unsafe { copy_and_sum_avx2(target, source) };
    }
    copy_and_sum_portable(target, source)
}

/// Fold a sum to 16 bits. Store the result with `to_ne_bytes`, because words are read in that order.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Return the two bytes of a checksum field for a sum over everything it covers, with the field itself zero.
#[must_use]
pub fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// Return a 16-bit header field (big-endian on the wire) as a term of a sum.
#[must_use]
pub fn word(value: u16) -> u64 {
    u64::from(u16::from_ne_bytes(value.to_be_bytes()))
}

/// Return the sum of the TCP or UDP pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
///
/// `addresses` are the source and destination bytes of the IP header. `length` is that of the transport header and
/// its payload, in bytes.
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses) + word(u16::from(protocol)) + word((length >> 16) as u16) + word(length as u16)
}

/// [`sum_portable`] compiled for AVX2. The caller has checked that the processor has it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_portable(bytes)
}

/// [`copy_and_sum_portable`] compiled for AVX2. The caller has checked that the processor has it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_and_sum_avx2(target: &mut [u8], source: &[u8]) -> u64 {
    copy_and_sum_portable(target, source)
}

/// Return the sum of the two 32-bit halves of eight bytes. A sum of 32-bit words folds to the same value as that of
/// their 16-bit words, because 2^16 ≡ 1 (mod 65535).
#[inline(always)]
fn add_halves(word: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(word);
    (word & 0xffff_ffff) + (word >> 32)
}

/// Return the sum of the last zero to seven bytes, in fixed-size steps that compile without a call.
#[inline(always)]
fn sum_tail(rest: &[u8]) -> u64 {
    let (fours, rest) = rest.as_chunks::<4>();
    let (twos, rest) = rest.as_chunks::<2>();
    let mut total = 0;
    for four in fours {
        total += u64::from(u32::from_ne_bytes(*four));
    }
    for two in twos {
        total += u64::from(u16::from_ne_bytes(*two));
    }
    if let [last] = rest {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// Copy the last zero to seven bytes, in fixed-size steps that compile without a call.
#[inline(always)]
fn copy_tail(target: &mut [u8], rest: &[u8]) {
    let (fours, rest) = rest.as_chunks::<4>();
    let (target_fours, target) = target.as_chunks_mut::<4>();
    for (to, from) in target_fours.iter_mut().zip(fours) {
        *to = *from;
    }
    let (twos, rest) = rest.as_chunks::<2>();
    let (target_twos, target) = target.as_chunks_mut::<2>();
    for (to, from) in target_twos.iter_mut().zip(twos) {
        *to = *from;
    }
    if let ([to], [from]) = (target, rest) {
        *to = *from;
    }
}

/// The sum without a choice of instruction set. Inlined into the AVX2 version, where the compiler uses that set.
#[inline(always)]
fn sum_portable(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().map(|word| add_halves(*word)).sum::<u64>() + sum_tail(rest)
}

/// Copy and sum without a choice of instruction set; see [`sum_portable`].
#[inline(always)]
fn copy_and_sum_portable(target: &mut [u8], source: &[u8]) -> u64 {
    let (words, rest) = source.as_chunks::<8>();
    let (target_words, target_rest) = target[..source.len()].as_chunks_mut::<8>();
    let mut total = 0;
    for (to, from) in target_words.iter_mut().zip(words) {
        *to = *from;
        total += add_halves(*from);
    }
    copy_tail(target_rest, rest);
    total + sum_tail(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The sum as RFC 1071 defines it, folded after every big-endian word.
    fn reference_checksum(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_sum_matches_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
        assert_eq!(finish(sum(&bytes)), [0x22, 0x0d]);
    }

    #[test]
    fn a_64_kib_packet_of_ones_does_not_overflow_the_sum() {
        assert_eq!(fold(sum(&[0xff; 65536])), 0xffff);
    }

    proptest! {
        #[test]
        fn all_versions_match_the_reference(bytes in proptest::collection::vec(any::<u8>(), 0..3000), shift in 0usize..9) {
            let bytes = &bytes[shift.min(bytes.len())..];
            prop_assert_eq!(fold(sum(bytes)).to_ne_bytes(), reference_checksum(bytes).to_be_bytes());
            prop_assert_eq!(sum_portable(bytes), sum(bytes));
            let mut copy = vec![0; bytes.len() + 3];
            prop_assert_eq!(copy_and_sum(&mut copy, bytes), sum(bytes));
            prop_assert_eq!(&copy[..bytes.len()], bytes);
        }
    }
}
