//! Whole WireGuard exchanges with fixed keys, printed as JSON.
//!
//! The Noise messages come from `snow`, the MACs from RustCrypto's `blake2`, the cookie replies from RustCrypto's
//! `chacha20poly1305`, the key derivations from RustCrypto's `hkdf`. Only WireGuard's headers and the order of the fields are written here.

use blake2::digest::{consts::U16, consts::U32, Digest, FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s, Blake2sMac};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::XChaCha20Poly1305;
use hkdf::SimpleHkdf;
use serde_json::{json, Value};
use snow::Builder;
use x25519_dalek::{PublicKey, StaticSecret};

const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
// 2026-01-02 03:04:05 UTC, and 0x15000000 ns: already whitened.
const TIMESTAMP: [u8; 12] = [0x40, 0, 0, 0, 0x69, 0x57, 0x35, 0xaf, 0x15, 0, 0, 0];

type Blake2s256 = Blake2s<U32>;

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = <Blake2s256 as Digest>::new();
    for part in parts {
        Update::update(&mut hash, part);
    }
    hash.finalize_fixed().into()
}

fn mac(key: &[u8], data: &[u8]) -> [u8; 16] {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).unwrap();
    Mac::update(&mut mac, data);
    mac.finalize_fixed().into()
}

/// A fixed key: anybody can make it again from its name.
fn secret(name: &str) -> [u8; 32] {
    hash(&[b"ravenvpn test vector: ", name.as_bytes()])
}

fn public(private: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*private)).to_bytes()
}

/// Append mac1 for `receiver`, and mac2: zeros, or made with `cookie`.
fn with_macs(mut message: Vec<u8>, receiver: &[u8; 32], cookie: Option<&[u8; 16]>) -> Vec<u8> {
    let mac1 = mac(&hash(&[b"mac1----", receiver]), &message);
    message.extend(mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| mac(cookie, &message));
    message.extend(mac2);
    message
}

fn exchange(suite: &str, marker: u8, cipher: &str, psk: Option<[u8; 32]>) -> Value {
    let (initiator, responder) = (secret("initiator static"), secret("responder static"));
    let (initiator_ephemeral, responder_ephemeral) =
        (secret("initiator ephemeral"), secret("responder ephemeral"));
    let (initiator_index, responder_index) = (0x1c2d3e4fu32, 0xa5b6c7d8u32);
    let (initiator_public, responder_public) = (public(&initiator), public(&responder));
    let name = format!("Noise_IKpsk2_25519_{cipher}_BLAKE2s");
    let shared = psk.unwrap_or([0; 32]);

    let mut near = Builder::new(name.parse().unwrap())
        .prologue(PROLOGUE)
        .unwrap()
        .local_private_key(&initiator)
        .unwrap()
        .remote_public_key(&responder_public)
        .unwrap()
        .psk(2, &shared)
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(&initiator_ephemeral)
        .build_initiator()
        .unwrap();
    let mut far = Builder::new(name.parse().unwrap())
        .prologue(PROLOGUE)
        .unwrap()
        .local_private_key(&responder)
        .unwrap()
        .psk(2, &shared)
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(&responder_ephemeral)
        .build_responder()
        .unwrap();

    let mut buffer = [0u8; 256];
    let mut discarded = [0u8; 256];

    let written = near.write_message(&TIMESTAMP, &mut buffer).unwrap();
    assert_eq!(
        far.read_message(&buffer[..written], &mut discarded)
            .unwrap(),
        12
    );
    assert_eq!(far.get_remote_static().unwrap(), initiator_public);
    let mut initiation = vec![1, marker, 0, 0];
    initiation.extend(initiator_index.to_le_bytes());
    initiation.extend(&buffer[..written]);

    let written = far.write_message(&[], &mut buffer).unwrap();
    assert_eq!(
        near.read_message(&buffer[..written], &mut discarded)
            .unwrap(),
        0
    );
    let mut response = vec![2, 0, 0, 0];
    response.extend(responder_index.to_le_bytes());
    response.extend(initiator_index.to_le_bytes());
    response.extend(&buffer[..written]);

    let (from_initiator, from_responder) = near.dangerously_get_raw_split();
    assert_eq!(
        (from_initiator, from_responder),
        far.dangerously_get_raw_split()
    );

    // Transport messages: each side's first (counter 0: a keepalive), and one with a counter whose bytes all differ.
    let transport = |noise: snow::StatelessTransportState, index: u32| {
        let mut messages = Vec::new();
        for (counter, plaintext) in [
            (0u64, Vec::new()),
            (0x0102_0304, b"sixteen by tens!".to_vec()),
        ] {
            let mut sealed = [0u8; 64];
            let written = noise
                .write_message(counter, &plaintext, &mut sealed)
                .unwrap();
            let mut message = vec![4, 0, 0, 0];
            message.extend(index.to_le_bytes());
            message.extend(counter.to_le_bytes());
            message.extend(&sealed[..written]);
            messages.push(json!({
                "counter": counter, "plaintext": hex::encode(plaintext), "message": hex::encode(message),
            }));
        }
        messages
    };
    let by_initiator = transport(
        near.into_stateless_transport_mode().unwrap(),
        responder_index,
    );
    let by_responder = transport(
        far.into_stateless_transport_mode().unwrap(),
        initiator_index,
    );

    json!({
        "suite": suite,
        "initiator_private": hex::encode(initiator),
        "initiator_public": hex::encode(initiator_public),
        "responder_private": hex::encode(responder),
        "responder_public": hex::encode(responder_public),
        "initiator_ephemeral": hex::encode(initiator_ephemeral),
        "responder_ephemeral": hex::encode(responder_ephemeral),
        "psk": psk.map(hex::encode),
        "timestamp": hex::encode(TIMESTAMP),
        "initiator_index": initiator_index,
        "responder_index": responder_index,
        "initiation": hex::encode(with_macs(initiation, &responder_public, None)),
        "response": hex::encode(with_macs(response, &initiator_public, None)),
        "initiator_sends_with": hex::encode(from_initiator),
        "responder_sends_with": hex::encode(from_responder),
        "by_initiator": by_initiator,
        "by_responder": by_responder,
    })
}

/// The responder's cookie for a source, its reply to `initiation`, and the initiation again with mac2.
fn cookie(initiation: &str, source: &[u8], host: &str, port: u16) -> Value {
    let initiation = hex::decode(initiation).unwrap();
    let responder = public(&secret("responder static"));
    let secret_of_the_day = secret("cookie secret");
    let nonce: [u8; 24] = secret("cookie nonce")[..24].try_into().unwrap();
    let bound_to = [source, &port.to_be_bytes()].concat();
    let cookie = mac(&secret_of_the_day, &bound_to);
    let sealed = XChaCha20Poly1305::new_from_slice(&hash(&[b"cookie--", &responder]))
        .unwrap()
        .encrypt(
            &nonce.into(),
            Payload {
                msg: &cookie,
                aad: &initiation[116..132],
            },
        )
        .unwrap();
    let reply = [&[3, 0, 0, 0], &initiation[4..8], &nonce, &sealed].concat();
    json!({
        "host": host,
        "port": port,
        "secret": hex::encode(secret_of_the_day),
        "nonce": hex::encode(nonce),
        "cookie": hex::encode(cookie),
        "reply": hex::encode(reply),
        "initiation_with_mac2": hex::encode(with_macs(initiation[..116].to_vec(), &responder, Some(&cookie))),
    })
}

/// HKDF (RFC 5869) as Noise writes it: the chaining key is the salt, there is no info.
fn derivation(outputs: usize, input: &[u8]) -> Value {
    let chaining_key = secret("chaining key");
    let mut output = vec![0; 32 * outputs];
    SimpleHkdf::<Blake2s256>::new(Some(&chaining_key), input)
        .expand(b"", &mut output)
        .unwrap();
    json!({
        "chaining_key": hex::encode(chaining_key),
        "input": hex::encode(input),
        "outputs": output.chunks(32).map(hex::encode).collect::<Vec<_>>(),
    })
}

fn main() {
    let psk = Some(secret("preshared key"));
    let exchanges = vec![
        exchange("chacha20poly1305", 0, "ChaChaPoly", None),
        exchange("chacha20poly1305", 0, "ChaChaPoly", psk),
        exchange("aes256gcm", 1, "AESGCM", None),
        exchange("aes256gcm", 1, "AESGCM", psk),
    ];
    let initiation = exchanges[0]["initiation"].as_str().unwrap().to_owned();
    let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    let document = json!({
        "made_by": "snow 0.10, blake2 0.10, hkdf 0.12, chacha20poly1305 0.10 (maker/src/bin/exchange.rs)",
        "exchanges": exchanges,
        "derivations": [
            derivation(2, b""),
            derivation(2, &secret("input key material")),
            derivation(3, &secret("input key material")),
        ],
        "cookies": [
            cookie(&initiation, &[203, 0, 113, 7], "203.0.113.7", 51820),
            cookie(&initiation, &v6.octets(), "2001:db8::7", 4500),
        ],
    });
    println!("{}", serde_json::to_string_pretty(&document).unwrap());
}
