//! Keypairs: the transport keys of a session with their counters, and the table of all keypairs by local index.
//!
//! Each peer has three slots of keypair handles (previous, current, next); `state` moves keypairs between them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::aead::{Key, Suite};
use crate::replay::ReplayWindow;

/// Our role in the handshake that made a keypair: it decides the slot, and which end rekeys by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Initiator,
    Responder,
}

/// One keypair with its counters. The keys are wiped on drop.
pub struct Keypair {
    /// Handle of the peer in `PeerTable`.
    pub peer: usize,
    pub suite: Suite,
    pub role: Role,
    /// Receiver index of messages we get, chosen by us.
    pub local_index: u32,
    /// Receiver index of messages we send, chosen by the peer.
    pub remote_index: u32,
    /// End of the handshake, in seconds on the body's clock.
    pub birth: f64,
    pub send: Key,
    pub receive: Key,
    /// Counter of the next message we send.
    pub counter: u64,
    pub window: ReplayWindow,
    /// No longer used for sending, whatever its age (`expire_keypairs`); receiving goes on.
    pub expired: bool,
    /// A handshake was requested on receiving, which happens once per keypair (whitepaper §6.2).
    pub renewal_requested: bool,
}

/// Index of a keypair in [`KeypairTable`]. Reused after removal: no slot of a peer may keep it then.
pub type KeypairHandle = usize;

/// The keypairs of all peers, by handle and by local index.
///
/// Boxed, so that a table that grows moves pointers, not keys.
#[derive(Default)]
pub struct KeypairTable {
    /// By handle; None if the handle is free.
    entries: Vec<Option<Box<Keypair>>>,
    /// Handles to reuse.
    free: Vec<KeypairHandle>,
    by_index: HashMap<u32, KeypairHandle, BuildHasherDefault<IndexHasher>>,
}

impl KeypairTable {
    /// Add a keypair and return its handle, or None if the local index is in use.
    pub fn insert(&mut self, keypair: Keypair) -> Option<KeypairHandle> {
        if self.by_index.contains_key(&keypair.local_index) {
            return None;
        }
        let handle = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.by_index.insert(keypair.local_index, handle);
        self.entries[handle] = Some(Box::new(keypair));
        Some(handle)
    }

    /// Remove and wipe a keypair; return its local index, which is free again. None if the handle is unused.
    pub fn remove(&mut self, handle: KeypairHandle) -> Option<u32> {
        let keypair = self.entries.get_mut(handle)?.take()?;
        self.by_index.remove(&keypair.local_index);
        self.free.push(handle);
        Some(keypair.local_index)
    }

    /// Return the handle of the keypair with this local index.
    #[must_use]
    pub fn lookup(&self, local_index: u32) -> Option<KeypairHandle> {
        self.by_index.get(&local_index).copied()
    }

    /// Return a keypair.
    ///
    /// # Panics
    /// If the handle is unused.
    #[must_use]
    pub fn get(&self, handle: KeypairHandle) -> &Keypair {
        self.entries[handle].as_ref().expect("slots hold live entries only")
    }

    /// Return a keypair to change. Panics as [`Self::get`] does.
    pub fn get_mut(&mut self, handle: KeypairHandle) -> &mut Keypair {
        self.entries[handle].as_mut().expect("slots hold live entries only")
    }
}

/// A hash that only spreads bits (2^64 divided by the golden ratio). Local indices are random and chosen by us, so a
/// sender can not make them collide.
#[derive(Default)]
struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
