//! A peer as packets see it: where it is, its three key slots, what waits for a handshake, and traffic facts.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::keypair::Place;
use crate::sys::{Name, Source};

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
    pub name: Name,
    pub source: Option<Source>,
    pub roaming: bool,
    /// With roaming off: the foreign endpoint that was reported last.
    pub foreign: Name,
    pub current: Option<Place>,
    pub next: Option<Place>,
    pub previous: Option<Place>,
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
    pub train_limit: usize,
}

impl Peer {
    #[must_use]
    pub fn new(id: PeerId) -> Self {
        Self { id, roaming: true, train_limit: usize::MAX, ..Self::default() }
    }

    /// Send there from now on, from whatever address the kernel chooses.
    pub fn move_to(&mut self, endpoint: Option<SocketAddr>) {
        self.endpoint = endpoint;
        self.name = endpoint.map(Name::from).unwrap_or_default();
        self.foreign = Name::default();
        self.source = None;
        self.train_limit = usize::MAX;
    }

    pub fn slots(&self) -> impl Iterator<Item = Place> + use<> {
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

/// Peers by id and by place; places do not move while a peer lives.
#[derive(Default)]
pub struct Peers {
    places: Vec<Option<Box<Peer>>>,
    free: Vec<usize>,
    by_id: HashMap<PeerId, usize>,
}

impl Peers {
    /// The place of `id`, made if need be.
    pub fn ensure(&mut self, id: PeerId) -> usize {
        if let Some(place) = self.by_id.get(&id) {
            return *place;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(Box::new(Peer::new(id)));
        self.by_id.insert(id, place);
        place
    }

    pub fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let place = self.by_id.remove(&id)?;
        self.free.push(place);
        self.places[place].take()
    }

    #[must_use]
    pub fn find(&self, id: PeerId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    #[must_use]
    pub fn at(&self, place: usize) -> &Peer {
        self.places[place].as_ref().expect("tables hold live places only")
    }

    pub fn at_mut(&mut self, place: usize) -> &mut Peer {
        self.places[place].as_mut().expect("tables hold live places only")
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.places.iter().flatten().map(AsRef::as_ref)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.places.iter_mut().flatten().map(AsMut::as_mut)
    }
}
