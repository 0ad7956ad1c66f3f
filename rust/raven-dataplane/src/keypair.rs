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
    /// Place of the peer in its table.
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

/// A keypair's place in [`Keypairs`].
pub type Place = usize;

/// All keypairs of a body.
#[derive(Default)]
pub struct Keypairs {
    places: Vec<Option<Box<Keypair>>>,
    free: Vec<Place>,
    by_index: HashMap<u32, Place, BuildHasherDefault<IndexHasher>>,
}

impl Keypairs {
    /// None if the local index is in use.
    pub fn insert(&mut self, keypair: Keypair) -> Option<Place> {
        if self.by_index.contains_key(&keypair.local_index) {
            return None;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.by_index.insert(keypair.local_index, place);
        self.places[place] = Some(Box::new(keypair));
        Some(place)
    }

    /// Wipes a keypair and says which index is free again.
    pub fn remove(&mut self, place: Place) -> Option<u32> {
        let keypair = self.places.get_mut(place)?.take()?;
        self.by_index.remove(&keypair.local_index);
        self.free.push(place);
        Some(keypair.local_index)
    }

    #[must_use]
    pub fn find(&self, local_index: u32) -> Option<Place> {
        self.by_index.get(&local_index).copied()
    }

    #[must_use]
    pub fn get(&self, place: Place) -> &Keypair {
        self.places[place].as_ref().expect("slots hold live places only")
    }

    pub fn get_mut(&mut self, place: Place) -> &mut Keypair {
        self.places[place].as_mut().expect("slots hold live places only")
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
