//! Seal and open of one packet at a time, in place, with a fresh nonce each: what the data plane does.
//!
//! Prints nanoseconds per packet, the best and the median of several rounds, for every crate, suite and size.

use std::hint::black_box;
use std::time::Instant;

const SIZES: [usize; 3] = [64, 1420, 8920];
const ROUNDS: usize = 15;
const BYTES_PER_ROUND: usize = 8 << 20;

type Seal = Box<dyn FnMut(u64, &mut [u8]) -> [u8; 16]>;
type Open = Box<dyn FnMut(u64, &mut [u8])>;

fn le_nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0u8; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

macro_rules! ring_like {
    ($lib:ident, $alg:ident) => {{
        use $lib::aead::{Aad, LessSafeKey, Nonce, UnboundKey, $alg};
        let sealing = LessSafeKey::new(UnboundKey::new(&$alg, &[7; 32]).unwrap());
        let opening = LessSafeKey::new(UnboundKey::new(&$alg, &[7; 32]).unwrap());
        let seal: Seal = Box::new(move |counter, data| {
            let nonce = Nonce::assume_unique_for_key(le_nonce(counter));
            let tag = sealing.seal_in_place_separate_tag(nonce, Aad::empty(), data).unwrap();
            tag.as_ref().try_into().unwrap()
        });
        let open: Open = Box::new(move |counter, data| {
            let nonce = Nonce::assume_unique_for_key(le_nonce(counter));
            opening.open_in_place(nonce, Aad::empty(), data).unwrap();
        });
        (seal, open)
    }};
}

macro_rules! rustcrypto {
    ($lib:ident, $cipher:ident) => {{
        use $lib::{AeadInPlace, KeyInit, $cipher};
        let sealing = $cipher::new(&[7; 32].into());
        let opening = sealing.clone();
        let seal: Seal = Box::new(move |counter, data| {
            sealing.encrypt_in_place_detached(&le_nonce(counter).into(), &[], data).unwrap().into()
        });
        let open: Open = Box::new(move |counter, data| {
            let (body, tag) = data.split_at_mut(data.len() - 16);
            let tag: [u8; 16] = (&*tag).try_into().unwrap();
            opening.decrypt_in_place_detached(&le_nonce(counter).into(), &[], body, &tag.into()).unwrap();
        });
        (seal, open)
    }};
}

macro_rules! graviola {
    ($cipher:ident, $key:expr) => {{
        let sealing = graviola::aead::$cipher::new($key);
        let opening = graviola::aead::$cipher::new($key);
        let seal: Seal = Box::new(move |counter, data| {
            let mut tag = [0; 16];
            sealing.encrypt(&le_nonce(counter), &[], data, &mut tag);
            tag
        });
        let open: Open = Box::new(move |counter, data| {
            let (body, tag) = data.split_at_mut(data.len() - 16);
            opening.decrypt(&le_nonce(counter), &[], body, tag).unwrap();
        });
        (seal, open)
    }};
}

fn median(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[0], samples[samples.len() / 2])
}

fn measure_seal(seal: &mut Seal, size: usize) -> (f64, f64) {
    let count = BYTES_PER_ROUND / size;
    let mut buffer = vec![0x5a; size];
    let mut counter = 0;
    let mut round = || {
        let start = Instant::now();
        for _ in 0..count {
            counter += 1;
            black_box(seal(counter, black_box(&mut buffer)));
        }
        start.elapsed().as_nanos() as f64 / count as f64
    };
    round();
    median((0..ROUNDS).map(|_| round()).collect())
}

/// Sealed packets are prepared outside the clock; each is opened once.
fn measure_open(seal: &mut Seal, open: &mut Open, size: usize) -> (f64, f64) {
    let count = (1 << 20) / size;
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let mut packets: Vec<Vec<u8>> = (0..count as u64)
            .map(|counter| {
                let mut data = vec![0x5a; size];
                let tag = seal(counter, &mut data);
                data.extend_from_slice(&tag);
                data
            })
            .collect();
        let start = Instant::now();
        for (counter, data) in packets.iter_mut().enumerate() {
            open(counter as u64, black_box(data));
        }
        samples.push(start.elapsed().as_nanos() as f64 / count as f64);
    }
    median(samples)
}

fn main() {
    let bodies: Vec<(&str, &str, (Seal, Open))> = vec![
        ("chacha20poly1305", "aws-lc-rs", ring_like!(aws_lc_rs, CHACHA20_POLY1305)),
        ("chacha20poly1305", "ring", ring_like!(ring, CHACHA20_POLY1305)),
        ("chacha20poly1305", "graviola", graviola!(ChaCha20Poly1305, [7; 32])),
        ("chacha20poly1305", "RustCrypto", rustcrypto!(chacha20poly1305, ChaCha20Poly1305)),
        ("aes256gcm", "aws-lc-rs", ring_like!(aws_lc_rs, AES_256_GCM)),
        ("aes256gcm", "ring", ring_like!(ring, AES_256_GCM)),
        ("aes256gcm", "graviola", graviola!(AesGcm, &[7; 32])),
        ("aes256gcm", "RustCrypto", rustcrypto!(aes_gcm, Aes256Gcm)),
    ];
    println!("{:<18}{:<12}{:>6} {:>22} {:>22}", "suite", "crate", "bytes", "seal ns best/median", "open ns best/median");
    for (suite, library, (mut seal, mut open)) in bodies {
        for size in SIZES {
            let (seal_best, seal_median) = measure_seal(&mut seal, size);
            let (open_best, open_median) = measure_open(&mut seal, &mut open, size);
            println!(
                "{suite:<18}{library:<12}{size:>6} {seal_best:>11.0} /{seal_median:>9.0} {open_best:>11.0} /{open_median:>9.0}"
            );
        }
    }
}
