//! The blob a frozen body leaves and a new one takes over; `ravenvpn/dataplane/handover.py` says what is in it.
//! Both bodies write and read the same bytes.

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
use crate::replay::Window;
use crate::state::State;
use crate::sys::Source;

const FORMAT: &str = "ravenvpn-dataplane";
const VERSION: u64 = 1;
/// How far counters skip on thawing. A blob thawed twice by mistake must not repeat what was sent after the first
/// time: no machine of ours seals more than 2^23 messages a second, and the clock goes on between the two.
const SKIP: u64 = 1 << 16;
const SKIP_PER_SECOND: f64 = (1u64 << 23) as f64;
const WINDOW_WORDS: usize = 128;

#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u64,
    boot_id: String,
}

#[derive(Serialize, Deserialize)]
struct Frozen {
    format: String,
    version: u64,
    boot_id: String,
    frozen_at: f64,
    peers: Vec<FrozenPeer>,
}

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
    sessions: Vec<FrozenSession>,
}

#[derive(Serialize, Deserialize)]
struct FrozenSession {
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

impl Drop for FrozenSession {
    fn drop(&mut self) {
        self.send_key.zeroize();
        self.receive_key.zeroize();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Slot {
    Previous,
    Current,
    Next,
}

/// −1 or 64 unsigned bits.
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
        struct Signed;
        impl Visitor<'_> for Signed {
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
        deserializer.deserialize_any(Signed)
    }
}

impl Suite {
    /// As in `Peer.spec.suites`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes256Gcm => "aes256gcm",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::ChaCha20Poly1305, Self::Aes256Gcm].into_iter().find(|suite| suite.name() == name)
    }
}

/// Everything of `state` that survives a restart.
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

/// Adds the blob's peers to `state`, or changes nothing.
pub(crate) fn unpack(state: &mut State, blob: &[u8], boot_id: &str, now: f64) -> Result<(), String> {
    let damaged = |error| format!("the blob is damaged: {error}");
    let preamble: Preamble = rmp_serde::from_slice(blob).map_err(damaged)?;
    if preamble.format != FORMAT {
        return Err("this is no blob of a data plane".into());
    }
    if preamble.version != VERSION {
        return Err(format!("the blob has version {}, this program reads {VERSION}", preamble.version));
    }
    if preamble.boot_id != boot_id {
        return Err("the blob is from before the last boot".into());
    }
    let frozen: Frozen = rmp_serde::from_slice(blob).map_err(damaged)?;
    let mut peers = HashSet::new();
    let mut indices = HashSet::new();
    let mut revived = Vec::new();
    for peer in &frozen.peers {
        if peer.id == 0 || state.peers.find(peer.id).is_some() || !peers.insert(peer.id) {
            return Err(format!("peer {} is here already", peer.id));
        }
        let mut slots = HashSet::new();
        let mut sessions = Vec::new();
        for session in &peer.sessions {
            if !slots.insert(session.slot) {
                return Err("the blob holds a slot twice".into());
            }
            let index = session.local_index;
            if state.keypairs.find(index).is_some() || !indices.insert(index) {
                return Err(format!("local index {index:#010x} is in use"));
            }
            sessions.push((session.slot, thaw_session(session, frozen.frozen_at, now)?));
        }
        revived.push((thaw_peer(peer)?, sessions));
    }
    for (peer, sessions) in revived {
        let handle = state.peers.ensure(peer.id);
        *state.peers.at_mut(handle) = peer;
        for (slot, mut keypair) in sessions {
            keypair.peer = handle;
            let keypair = state.keypairs.insert(keypair);
            let peer = state.peers.at_mut(handle);
            match slot {
                Slot::Previous => peer.previous = keypair,
                Slot::Current => peer.current = keypair,
                Slot::Next => peer.next = keypair,
            }
        }
        state.note_revived(handle);
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
            .filter_map(|(slot, handle)| Some(freeze_session(slot, state.keypairs.get(handle?))))
            .collect(),
    }
}

fn freeze_session(slot: Slot, keypair: &Keypair) -> FrozenSession {
    let (greatest, words) = keypair.window.parts();
    FrozenSession {
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
        renewal_asked: keypair.renewal_asked,
        // Our window starts at 0 with nothing seen, where the blob has −1.
        greatest: Greatest((greatest > 0 || !keypair.window.admits(0)).then_some(greatest)),
        window: ByteBuf::from(words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()),
    }
}

fn thaw_peer(frozen: &FrozenPeer) -> Result<Peer, String> {
    let mut peer = Peer::new(frozen.id);
    if let Some((host, port, scope)) = &frozen.endpoint {
        peer.move_to(Some(socket_address(host, *port, *scope)?));
        if let Some((host, ifindex)) = &frozen.source {
            peer.source = Some(Source { address: numeric(host)?, ifindex: *ifindex });
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

fn thaw_session(frozen: &FrozenSession, frozen_at: f64, now: f64) -> Result<Keypair, String> {
    let none = || "the blob holds a session that is none".to_string();
    let suite = Suite::named(&frozen.suite)
        .ok_or_else(|| format!("the blob names a suite that is not known here: {}", frozen.suite))?;
    let role = match frozen.role {
        0 => Role::Initiator,
        1 => Role::Responder,
        _ => return Err(none()),
    };
    let key = |bytes: &ByteBuf| -> Result<Key, String> {
        let raw: &[u8; KEY] = bytes.as_slice().try_into().map_err(|_| none())?;
        Ok(Key::new(suite, raw))
    };
    let (words, rest) = frozen.window.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let words: [u64; WINDOW_WORDS] = words.try_into().map_err(|_| none())?;
    if !rest.is_empty() {
        return Err(none());
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
        window: Window::from_parts(frozen.greatest.0.unwrap_or(0), words),
        expired: !frozen.sends,
        renewal_asked: frozen.renewal_asked,
    })
}

/// A numeric endpoint.
pub fn socket_address(host: &str, port: u16, scope: u32) -> Result<SocketAddr, String> {
    if port == 0 {
        return Err(format!("no UDP port: {port}"));
    }
    Ok(match numeric(host)? {
        IpAddr::V4(v4) => SocketAddr::from((v4, port)),
        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope)),
    })
}

fn numeric(host: &str) -> Result<IpAddr, String> {
    host.parse().map_err(|_| format!("not a numeric address: {host}"))
}
