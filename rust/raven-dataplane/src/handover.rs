//! Session hand-over on restart: the blob that `freeze` returns and `thaw` reads. The tunnel has no caller yet.
//!
//! `ravenvpn/dataplane/handover.py` specifies the format, a msgpack map. Both bodies write and read the same bytes,
//! so the field names here are part of the format.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;
use zeroize::Zeroize;

use crate::aead::{KEY, Key, Suite};
use crate::keypair::{Keypair, Role};
use crate::peer::{Peer, PeerId, Staged, Traffic};
use crate::replay::ReplayWindow;
use crate::state::State;
use crate::sys::Source;

/// Value of the blob's `format`.
const FORMAT: &str = "ravenvpn-dataplane";
/// Version of the format that this program writes and reads.
const VERSION: u64 = 1;
/// How far counters skip ahead on thawing, plus [`SKIP_PER_SECOND`] for each second since freezing. A blob that is
/// thawed twice by mistake must not repeat a nonce that was used after the first time: the clock advances between the
/// two, and no machine seals 2^23 messages a second.
const SKIP: u64 = 1 << 16;
/// Counter values to skip for each second between freezing and thawing.
const SKIP_PER_SECOND: f64 = (1u64 << 23) as f64;
/// 64-bit words of a replay window in the blob.
const WINDOW_WORDS: usize = 128;

/// The fields that are read first, whatever the version.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u64,
    boot_id: String,
}

/// The whole blob.
#[derive(Serialize, Deserialize)]
struct Frozen {
    format: String,
    version: u64,
    boot_id: String,
    frozen_at: f64,
    peers: Vec<FrozenPeer>,
}

/// One peer without its prefixes, which follow from the plan.
#[derive(Serialize, Deserialize)]
struct FrozenPeer {
    id: PeerId,
    endpoint: Option<(String, u16, u32)>,
    source: Option<(String, u32)>,
    roaming: bool,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_packets: u64,
    tx_packets: u64,
    facts: [f64; 6],
    staged: Vec<(ByteBuf, bool)>,
    sessions: Vec<FrozenKeypair>,
}

/// One keypair in its slot. The key bytes are wiped on drop.
#[derive(Serialize, Deserialize)]
struct FrozenKeypair {
    slot: Slot,
    suite: String,
    role: u8,
    local_index: u32,
    remote_index: u32,
    send_key: ByteBuf,
    receive_key: ByteBuf,
    birth: f64,
    counter: u64,
    sends: bool,
    renewal_asked: bool,
    greatest: Greatest,
    window: ByteBuf,
}

impl Drop for FrozenKeypair {
    fn drop(&mut self) {
        self.send_key.zeroize();
        self.receive_key.zeroize();
    }
}

/// The slot of a keypair, by its name in the blob.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Slot {
    Previous,
    Current,
    Next,
}

/// The greatest counter received: an integer of 64 unsigned bits, or −1 for none.
#[derive(Clone, Copy)]
struct Greatest(Option<u64>);

impl Serialize for Greatest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(counter) => serializer.serialize_u64(counter),
            None => serializer.serialize_i64(-1),
        }
    }
}

impl<'de> Deserialize<'de> for Greatest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GreatestVisitor;
        impl Visitor<'_> for GreatestVisitor {
            type Value = Greatest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("-1 or a counter")
            }

            fn visit_u64<E: de::Error>(self, counter: u64) -> Result<Greatest, E> {
                Ok(Greatest(Some(counter)))
            }

            fn visit_i64<E: de::Error>(self, counter: i64) -> Result<Greatest, E> {
                match counter {
                    -1 => Ok(Greatest(None)),
                    _ => u64::try_from(counter).map(|counter| Greatest(Some(counter))).map_err(E::custom),
                }
            }
        }
        deserializer.deserialize_any(GreatestVisitor)
    }
}

impl Suite {
    /// Return the name of the suite, as in `Peer.spec.suites`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes256Gcm => "aes256gcm",
        }
    }

    /// Return the suite of this name, or None.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ChaCha20Poly1305, Self::Aes256Gcm].into_iter().find(|suite| suite.name() == name)
    }
}

/// Return the blob of all peers with their keypairs, counters and staged packets. It is as secret as the keys in it.
///
/// # Errors
/// The encoder's message.
pub(crate) fn pack(state: &State, boot_id: &str, now: f64) -> Result<Vec<u8>, String> {
    let frozen = Frozen {
        format: FORMAT.into(),
        version: VERSION,
        boot_id: boot_id.into(),
        frozen_at: now,
        peers: state.peers.iter().map(|peer| freeze_peer(state, peer)).collect(),
    };
    rmp_serde::to_vec_named(&frozen).map_err(|error| error.to_string())
}

/// Add the peers of a blob to `state`.
///
/// # Errors
/// A message, and `state` is unchanged, if the blob is damaged, of another version or boot, or has a peer id or local
/// index that exists in `state`.
pub(crate) fn unpack(state: &mut State, blob: &[u8], boot_id: &str, now: f64) -> Result<(), String> {
    let damage = |error| format!("the blob is damaged: {error}");
    let preamble: Preamble = rmp_serde::from_slice(blob).map_err(damage)?;
    if preamble.format != FORMAT {
        return Err("this is no blob of a data plane".into());
    }
    if preamble.version != VERSION {
        return Err(format!("the blob has version {}, this program reads {VERSION}", preamble.version));
    }
    if preamble.boot_id != boot_id {
        return Err("the blob is from before the last boot".into());
    }
    let frozen: Frozen = rmp_serde::from_slice(blob).map_err(damage)?;
    let mut peers = HashSet::new();
    let mut indices = HashSet::new();
    let mut restored = Vec::new();
    for peer in &frozen.peers {
        if peer.id == 0 || state.peers.lookup(peer.id).is_some() || !peers.insert(peer.id) {
            return Err(format!("peer {} is here already", peer.id));
        }
        let mut slots = HashSet::new();
        let mut sessions = Vec::new();
        for session in &peer.sessions {
            if !slots.insert(session.slot) {
                return Err("the blob holds a slot twice".into());
            }
            let index = session.local_index;
            if state.keypairs.lookup(index).is_some() || !indices.insert(index) {
                return Err(format!("local index {index:#010x} is in use"));
            }
            sessions.push((session.slot, thaw_keypair(session, frozen.frozen_at, now)?));
        }
        restored.push((thaw_peer(peer)?, sessions));
    }
    for (peer, sessions) in restored {
        let handle = state.peers.add(peer.id);
        *state.peers.get_mut(handle) = peer;
        for (slot, mut keypair) in sessions {
            keypair.peer = handle;
            let keypair = state.keypairs.insert(keypair);
            let peer = state.peers.get_mut(handle);
            match slot {
                Slot::Previous => peer.previous = keypair,
                Slot::Current => peer.current = keypair,
                Slot::Next => peer.next = keypair,
            }
        }
        state.note_restored(handle);
    }
    state.clear_caches();
    Ok(())
}

fn freeze_peer(state: &State, peer: &Peer) -> FrozenPeer {
    let facts = &peer.traffic;
    let slots = [(Slot::Previous, peer.previous), (Slot::Current, peer.current), (Slot::Next, peer.next)];
    FrozenPeer {
        id: peer.id,
        endpoint: peer.endpoint.map(|endpoint| {
            let scope = if let SocketAddr::V6(v6) = endpoint { v6.scope_id() } else { 0 };
            (endpoint.ip().to_string(), endpoint.port(), scope)
        }),
        source: peer.source.map(|source| (source.address.to_string(), source.ifindex)),
        roaming: peer.roaming,
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        rx_packets: peer.rx_packets,
        tx_packets: peer.tx_packets,
        facts: [
            facts.data_sent,
            facts.any_sent,
            facts.data_received,
            facts.any_received,
            facts.unanswered_since,
            facts.unacknowledged_since,
        ],
        staged: peer.staged.iter().map(|one| (ByteBuf::from(one.packet.clone()), one.outer_df)).collect(),
        sessions: slots
            .into_iter()
            .filter_map(|(slot, handle)| Some(freeze_keypair(slot, state.keypairs.get(handle?))))
            .collect(),
    }
}

fn freeze_keypair(slot: Slot, keypair: &Keypair) -> FrozenKeypair {
    let (greatest, words) = keypair.window.parts();
    FrozenKeypair {
        slot,
        suite: keypair.suite.name().into(),
        role: match keypair.role {
            Role::Initiator => 0,
            Role::Responder => 1,
        },
        local_index: keypair.local_index,
        remote_index: keypair.remote_index,
        send_key: ByteBuf::from(*keypair.send.raw()),
        receive_key: ByteBuf::from(*keypair.receive.raw()),
        birth: keypair.birth,
        counter: keypair.counter,
        sends: !keypair.expired,
        renewal_asked: keypair.renewal_requested,
        // A fresh ReplayWindow has greatest 0 and no bit set, where the blob has −1.
        greatest: Greatest((greatest > 0 || !keypair.window.is_fresh(0)).then_some(greatest)),
        window: ByteBuf::from(words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()),
    }
}

/// Return the peer without its keypairs, or a message if a field is out of range.
fn thaw_peer(frozen: &FrozenPeer) -> Result<Peer, String> {
    let mut peer = Peer::new(frozen.id);
    if let Some((host, port, scope)) = &frozen.endpoint {
        peer.set_endpoint(Some(socket_address(host, *port, *scope)?));
        if let Some((host, ifindex)) = &frozen.source {
            peer.source = Some(Source { address: parse_ip(host)?, ifindex: *ifindex });
        }
    }
    peer.roaming = frozen.roaming;
    (peer.rx_bytes, peer.tx_bytes) = (frozen.rx_bytes, frozen.tx_bytes);
    (peer.rx_packets, peer.tx_packets) = (frozen.rx_packets, frozen.tx_packets);
    let [data_sent, any_sent, data_received, any_received, unanswered_since, unacknowledged_since] = frozen.facts;
    peer.traffic = Traffic { data_sent, any_sent, data_received, any_received, unanswered_since, unacknowledged_since };
    peer.staged
        .extend(frozen.staged.iter().map(|(packet, outer_df)| Staged { packet: packet.to_vec(), outer_df: *outer_df }));
    Ok(peer)
}

/// Return the keypair with its counter skipped ahead, or a message if a field is out of range. The caller sets
/// `peer`.
fn thaw_keypair(frozen: &FrozenKeypair, frozen_at: f64, now: f64) -> Result<Keypair, String> {
    let invalid = || "the blob holds a session that is none".to_string();
    let suite = Suite::from_name(&frozen.suite)
        .ok_or_else(|| format!("the blob names a suite that is not known here: {}", frozen.suite))?;
    let role = match frozen.role {
        0 => Role::Initiator,
        1 => Role::Responder,
        _ => return Err(invalid()),
    };
    let key = |bytes: &ByteBuf| -> Result<Key, String> {
        let raw: &[u8; KEY] = bytes.as_slice().try_into().map_err(|_| invalid())?;
        Ok(Key::new(suite, raw))
    };
    let (words, rest) = frozen.window.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let words: [u64; WINDOW_WORDS] = words.try_into().map_err(|_| invalid())?;
    if !rest.is_empty() {
        return Err(invalid());
    }
    let seconds = (now - frozen_at).max(0.0);
    let skip = SKIP.saturating_add((seconds * SKIP_PER_SECOND) as u64);
    Ok(Keypair {
        peer: usize::MAX,
        suite,
        role,
        local_index: frozen.local_index,
        remote_index: frozen.remote_index,
        birth: frozen.birth,
        send: key(&frozen.send_key)?,
        receive: key(&frozen.receive_key)?,
        counter: frozen.counter.saturating_add(skip),
        window: ReplayWindow::from_parts(frozen.greatest.0.unwrap_or(0), words),
        expired: !frozen.sends,
        renewal_requested: frozen.renewal_asked,
    })
}

/// Parse a numeric address, a port and a scope id (interface index, 0 for none).
///
/// # Errors
/// A message if `host` is not numeric or the port is 0.
pub fn socket_address(host: &str, port: u16, scope: u32) -> Result<SocketAddr, String> {
    if port == 0 {
        return Err(format!("no UDP port: {port}"));
    }
    Ok(match parse_ip(host)? {
        IpAddr::V4(v4) => SocketAddr::from((v4, port)),
        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope)),
    })
}

/// Parse a numeric IP address.
fn parse_ip(host: &str) -> Result<IpAddr, String> {
    host.parse().map_err(|_| format!("not a numeric address: {host}"))
}
