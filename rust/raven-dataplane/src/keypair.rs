//! Transport keys of one session, and where they are found: by our index, and by slot of their peer.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::aead::{Key, Suite};
use crate::replay::Window;

/// Who began the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Initiator,
    Responder,
}

/// One session's keys and counters.
pub struct Keypair {
    /// KeypairHandle of the peer in its table.
    pub peer: usize,
    pub suite: Suite,
    pub role: Role,
    pub local_index: u32,
    pub remote_index: u32,
    pub birth: f64,
    pub send: Key,
    pub receive: Key,
    /// Of the next message we send.
    pub counter: u64,
    pub window: Window,
    /// Never again used for sending, though its age would allow it.
    pub expired: bool,
    /// An initiator that only listens asked for the next session already.
    pub renewal_asked: bool,
}

/// A keypair's place in [`KeypairTable`].
pub type KeypairHandle = usize;

/// All keypairs of a body.
#[derive(Default)]
pub struct KeypairTable {
    entries: Vec<Option<Box<Keypair>>>,
    free: Vec<KeypairHandle>,
    by_index: HashMap<u32, KeypairHandle, BuildHasherDefault<IndexHasher>>,
}

impl KeypairTable {
    /// None if the local index is in use.
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

    /// Wipes a keypair and says which index is free again.
    pub fn remove(&mut self, handle: KeypairHandle) -> Option<u32> {
        let keypair = self.entries.get_mut(handle)?.take()?;
        self.by_index.remove(&keypair.local_index);
        self.free.push(handle);
        Some(keypair.local_index)
    }

    #[must_use]
    pub fn find(&self, local_index: u32) -> Option<KeypairHandle> {
        self.by_index.get(&local_index).copied()
    }

    #[must_use]
    pub fn get(&self, handle: KeypairHandle) -> &Keypair {
        self.entries[handle].as_ref().expect("slots hold live entries only")
    }

    pub fn get_mut(&mut self, handle: KeypairHandle) -> &mut Keypair {
        self.entries[handle].as_mut().expect("slots hold live entries only")
    }
}

/// Indices are random and ours, so spreading their bits is all a hash has to do.
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
