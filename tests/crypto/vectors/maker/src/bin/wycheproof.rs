//! The parts of Project Wycheproof (Apache-2.0) that ravenvpn's doors are held to, one compact JSON file each, written
//! to the directory named by the first argument.

use serde_json::{json, Value};
use std::path::Path;
use wycheproof::{aead, xdh, TestResult};

fn verdict(result: TestResult) -> &'static str {
    match result {
        TestResult::Valid => "valid",
        TestResult::Invalid => "invalid",
        TestResult::Acceptable => "acceptable",
    }
}

/// Only what our suites use: keys of 256 bits. Nonces and tags of other lengths stay: they must be refused.
fn ciphers(name: aead::TestName) -> Value {
    let set = aead::TestSet::load(name).unwrap();
    let mut tests = Vec::new();
    for group in set.test_groups.iter().filter(|group| group.key_size == 256) {
        for test in &group.tests {
            tests.push(json!({
                "id": test.tc_id, "comment": test.comment, "result": verdict(test.result),
                "key": hex::encode(&test.key[..]), "nonce": hex::encode(&test.nonce[..]),
                "aad": hex::encode(&test.aad[..]), "plaintext": hex::encode(&test.pt[..]),
                "ciphertext": hex::encode(&test.ct[..]), "tag": hex::encode(&test.tag[..]),
            }));
        }
    }
    Value::Array(tests)
}

fn agreements() -> Value {
    let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let mut tests = Vec::new();
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        tests.push(json!({
            "id": test.tc_id, "comment": test.comment, "result": verdict(test.result),
            "public": hex::encode(&test.public_key[..]), "private": hex::encode(&test.private_key[..]),
            "shared": hex::encode(&test.shared_secret[..]),
        }));
    }
    Value::Array(tests)
}

fn main() {
    let directory = std::env::args().nth(1).expect("the directory to write to");
    for (name, tests) in [
        ("x25519.json", agreements()),
        (
            "chacha20poly1305.json",
            ciphers(aead::TestName::ChaCha20Poly1305),
        ),
        ("aes256gcm.json", ciphers(aead::TestName::AesGcm)),
        (
            "xchacha20poly1305.json",
            ciphers(aead::TestName::XChaCha20Poly1305),
        ),
    ] {
        let text: Vec<String> = tests
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        std::fs::write(
            Path::new(&directory).join(name),
            format!("[\n{}\n]\n", text.join(",\n")),
        )
        .unwrap();
    }
}
