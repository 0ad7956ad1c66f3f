//! A peer as packets see it: where it is, its three key slots, what waits for a handshake, and traffic facts.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::keypair::KeypairHandle;
use crate::sys::{RawAddress, Source};

/// Chosen by the tunnel.
pub type PeerId = u64;

/// Per peer while a handshake runs, as the Linux kernel's MAX_STAGED_PACKETS.
pub const MAX_STAGED_PACKETS: usize = 128;

/// An inner packet that waits for a keypair.
pub struct Staged {
    pub packet: Vec<u8>,
    pub outer_df: bool,
}

/// Instants that timers are made of (whitepaper §6.5), 0.0 for never; as `ravenvpn.dataplane.contract.Traffic`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    pub data_sent: f64,
    pub any_sent: f64,
    pub data_received: f64,
    pub any_received: f64,
    pub unanswered_since: f64,
    pub unacknowledged_since: f64,
}

#[derive(Default)]
pub struct Peer {
    pub id: PeerId,
    pub endpoint: Option<SocketAddr>,
    /// The endpoint as the kernel wants it; meaningless without one.
    pub name: RawAddress,
    pub source: Option<Source>,
    pub roaming: bool,
    /// With roaming off: the foreign endpoint that was reported last.
    pub foreign: RawAddress,
    pub current: Option<KeypairHandle>,
    pub next: Option<KeypairHandle>,
    pub previous: Option<KeypairHandle>,
    pub staged: VecDeque<Staged>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub traffic: Traffic,
    /// What the tunnel was told last.
    pub told: Traffic,
    /// Facts changed since then.
    pub moved: bool,
    /// When a handshake was asked for, if that still stands.
    pub asked: Option<f64>,
    /// Datagrams of this size or more were refused in trains on the present path, and go one by one.
    pub gso_limit: usize,
}

impl Peer {
    #[must_use]
    pub fn new(id: PeerId) -> Self {
        Self { id, roaming: true, gso_limit: usize::MAX, ..Self::default() }
    }

    /// Send there from now on, from whatever address the kernel chooses.
    pub fn move_to(&mut self, endpoint: Option<SocketAddr>) {
        self.endpoint = endpoint;
        self.name = endpoint.map(RawAddress::from).unwrap_or_default();
        self.foreign = RawAddress::default();
        self.source = None;
        self.gso_limit = usize::MAX;
    }

    pub fn slots(&self) -> impl Iterator<Item = KeypairHandle> + use<> {
        [self.previous, self.current, self.next].into_iter().flatten()
    }

    /// A handshake ended, well or not: nothing is owed for what came before it, and what comes after it is news.
    pub fn handshake_ended(&mut self) {
        self.asked = None;
        for facts in [&mut self.traffic, &mut self.told] {
            facts.unanswered_since = 0.0;
            facts.unacknowledged_since = 0.0;
        }
    }

    /// An authenticated packet left; true if that can arm a timer the tunnel has not armed.
    pub fn sent(&mut self, data: bool, now: f64) -> bool {
        let traffic = &mut self.traffic;
        traffic.any_sent = now;
        traffic.unacknowledged_since = 0.0;
        if !data {
            return false;
        }
        traffic.data_sent = now;
        if traffic.unanswered_since == 0.0 {
            traffic.unanswered_since = now;
            return self.told.unanswered_since == 0.0;
        }
        false
    }

    /// An authenticated packet arrived; true as above.
    pub fn received(&mut self, data: bool, now: f64) -> bool {
        let traffic = &mut self.traffic;
        traffic.any_received = now;
        traffic.unanswered_since = 0.0;
        if !data {
            return false;
        }
        traffic.data_received = now;
        if traffic.unacknowledged_since == 0.0 {
            traffic.unacknowledged_since = now;
            return self.told.unacknowledged_since == 0.0;
        }
        false
    }
}

/// PeerTable by id and by place; places do not move while a peer lives.
#[derive(Default)]
pub struct PeerTable {
    entries: Vec<Option<Box<Peer>>>,
    free: Vec<usize>,
    by_id: HashMap<PeerId, usize>,
}

impl PeerTable {
    /// The place of `id`, made if need be.
    pub fn ensure(&mut self, id: PeerId) -> usize {
        if let Some(handle) = self.by_id.get(&id) {
            return *handle;
        }
        let handle = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[handle] = Some(Box::new(Peer::new(id)));
        self.by_id.insert(id, handle);
        handle
    }

    pub fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let handle = self.by_id.remove(&id)?;
        self.free.push(handle);
        self.entries[handle].take()
    }

    #[must_use]
    pub fn find(&self, id: PeerId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    #[must_use]
    pub fn at(&self, handle: usize) -> &Peer {
        self.entries[handle].as_ref().expect("tables hold live entries only")
    }

    pub fn at_mut(&mut self, handle: usize) -> &mut Peer {
        self.entries[handle].as_mut().expect("tables hold live entries only")
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.entries.iter().flatten().map(AsRef::as_ref)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.entries.iter_mut().flatten().map(AsMut::as_mut)
    }
}
