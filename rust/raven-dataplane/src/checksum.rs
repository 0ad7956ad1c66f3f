//! The Internet checksum (RFC 1071), alone or fused with a copy.
//!
//! A sum here is the unfolded one's-complement sum of 16-bit words in memory order; because that sum does not care
//! about byte order (RFC 1071 §2 B), words are added as the machine reads them and only the folded result is stored
//! as it lies. The loops are written so that the compiler vectorises them; on x86-64 a copy compiled for AVX2 is
//! chosen at run time, on aarch64 NEON is always there.

/// From here on wide registers pay.
const LONG: usize = 64;

/// Sum of the 16-bit words of `bytes`; an odd last byte counts as if a zero followed it.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() > LONG && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found at run time.
        return unsafe { sum_avx2(bytes) };
    }
    sum_anywhere(bytes)
}

/// Copies `source` to the front of `target` and returns the sum of what was copied.
///
/// # Panics
/// If `target` is shorter than `source`.
#[must_use]
pub fn copy_and_sum(target: &mut [u8], source: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if source.len() > LONG && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found at run time.
        return unsafe { copy_and_sum_avx2(target, source) };
    }
    copy_and_sum_anywhere(target, source)
}

/// Folds a sum to 16 bits. Stored with `to_ne_bytes`, as the words were read.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for a sum over everything it covers, the field itself being zero.
#[must_use]
pub fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// A 16-bit number of a header (big endian on the wire), as it enters a sum.
#[must_use]
pub fn word(value: u16) -> u64 {
    u64::from(u16::from_ne_bytes(value.to_be_bytes()))
}

/// Sum of the TCP or UDP pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). `addresses`: source and destination as they
/// lie in the IP header; `length`: of the transport header and its payload.
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses) + word(u16::from(protocol)) + word((length >> 16) as u16) + word(length as u16)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_anywhere(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_and_sum_avx2(target: &mut [u8], source: &[u8]) -> u64 {
    copy_and_sum_anywhere(target, source)
}

/// The two halves of eight bytes: a sum of 32-bit words folds to that of 16-bit words, as 2^16 ≡ 1 (mod 65535).
#[inline(always)]
fn halves(word: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(word);
    (word & 0xffff_ffff) + (word >> 32)
}

/// Of up to seven bytes, in steps that need no call.
#[inline(always)]
fn sum_of_rest(rest: &[u8]) -> u64 {
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

#[inline(always)]
fn copy_rest(target: &mut [u8], rest: &[u8]) {
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

#[inline(always)]
fn sum_anywhere(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().map(|word| halves(*word)).sum::<u64>() + sum_of_rest(rest)
}

#[inline(always)]
fn copy_and_sum_anywhere(target: &mut [u8], source: &[u8]) -> u64 {
    let (words, rest) = source.as_chunks::<8>();
    let (target_words, target_rest) = target[..source.len()].as_chunks_mut::<8>();
    let mut total = 0;
    for (to, from) in target_words.iter_mut().zip(words) {
        *to = *from;
        total += halves(*from);
    }
    copy_rest(target_rest, rest);
    total + sum_of_rest(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
        assert_eq!(finish(sum(&bytes)), [0x22, 0x0d]);
    }

    #[test]
    fn the_longest_packet_of_ones_overflows_no_lane() {
        assert_eq!(fold(sum(&[0xff; 65536])), 0xffff);
    }

    proptest! {
        #[test]
        fn fast_and_slow_agree(bytes in proptest::collection::vec(any::<u8>(), 0..3000), shift in 0usize..9) {
            let bytes = &bytes[shift.min(bytes.len())..];
            prop_assert_eq!(fold(sum(bytes)).to_ne_bytes(), slow(bytes).to_be_bytes());
            prop_assert_eq!(sum_anywhere(bytes), sum(bytes));
            let mut copy = vec![0; bytes.len() + 3];
            prop_assert_eq!(copy_and_sum(&mut copy, bytes), sum(bytes));
            prop_assert_eq!(&copy[..bytes.len()], bytes);
        }
    }
}
