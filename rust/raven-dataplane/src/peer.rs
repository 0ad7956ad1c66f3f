//! The state of one peer (endpoint, keypair slots, staged packets, counters, times behind timers), and the peer
//! table.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::keypair::KeypairHandle;
use crate::sys::{RawAddress, Source};

/// Identifies a peer: a small positive integer, chosen by the tunnel and never reused in one data plane.
pub type PeerId = u64;

/// Limit of staged packets per peer: the Linux kernel's MAX_STAGED_PACKETS.
pub const MAX_STAGED_PACKETS: usize = 128;

/// An inner packet that waits for a keypair. `outer_df` sets DF on the outer packet; an empty packet is a keepalive.
pub struct Staged {
    pub packet: Vec<u8>,
    pub outer_df: bool,
}

/// The times behind a peer's timers (whitepaper §6.5): `ravenvpn.dataplane.contract.Traffic`. Seconds on the body's
/// clock; 0.0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Last data packet (not a keepalive) that left.
    pub data_sent: f64,
    /// Last authenticated packet that left.
    pub any_sent: f64,
    /// Last data packet that passed the keypair's checks.
    pub data_received: f64,
    /// Last authenticated packet that arrived.
    pub any_received: f64,
    /// First data packet sent since anything authenticated arrived.
    pub unanswered_since: f64,
    /// First data packet received since anything authenticated left.
    pub unacknowledged_since: f64,
}

/// One peer of the data plane.
#[derive(Default)]
pub struct Peer {
    pub id: PeerId,
    pub endpoint: Option<SocketAddr>,
    /// The endpoint as a sockaddr; meaningless without an endpoint.
    pub address: RawAddress,
    /// Local address that datagrams to the peer leave from; None lets the kernel choose.
    pub source: Option<Source>,
    /// Authenticated data from another endpoint moves `endpoint`.
    pub roaming: bool,
    /// With roaming off: the other endpoint that was reported last.
    pub foreign_endpoint: RawAddress,
    /// Keypair to send with.
    pub current: Option<KeypairHandle>,
    /// Keypair we made as responder, until its first message arrives (key confirmation).
    pub next: Option<KeypairHandle>,
    /// Keypair that late messages still arrive under.
    pub previous: Option<KeypairHandle>,
    /// Packets that wait for a handshake, the oldest first, at most [`MAX_STAGED_PACKETS`].
    pub staged: VecDeque<Staged>,
    /// Whole transport messages, keepalives among them, here and below.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub traffic: Traffic,
    /// The times of the last report to the tunnel.
    pub reported: Traffic,
    /// Times changed since that report: the peer is in `EventQueue.changed`.
    pub report_pending: bool,
    /// Time of the last `HandshakeNeeded`, until the handshake ends.
    pub handshake_requested: Option<f64>,
    /// Datagrams of this many bytes or more leave without UDP_SEGMENT: the kernel refused a batch of that segment
    /// size on the present path (EMSGSIZE). usize::MAX without a limit.
    pub gso_limit: usize,
}

impl Peer {
    /// Make a peer without endpoint and keypairs, with roaming on.
    #[must_use]
    pub fn new(id: PeerId) -> Self {
        Self { id, roaming: true, gso_limit: usize::MAX, ..Self::default() }
    }

    /// Send there from now on, from the source address that the kernel chooses. The path MTU is unknown again.
    pub fn set_endpoint(&mut self, endpoint: Option<SocketAddr>) {
        self.endpoint = endpoint;
        self.address = endpoint.map(RawAddress::from).unwrap_or_default();
        self.foreign_endpoint = RawAddress::default();
        self.source = None;
        self.gso_limit = usize::MAX;
    }

    /// Return the handles of the keypairs in use.
    pub fn slots(&self) -> impl Iterator<Item = KeypairHandle> + use<> {
        [self.previous, self.current, self.next].into_iter().flatten()
    }

    /// Reset the state that a handshake ends, whether it succeeded or was given up: the request for it, and both
    /// `…_since` times, so that the next data packet can arm a timer again.
    pub fn handshake_ended(&mut self) {
        self.handshake_requested = None;
        for facts in [&mut self.traffic, &mut self.reported] {
            facts.unanswered_since = 0.0;
            facts.unacknowledged_since = 0.0;
        }
    }

    /// Record that an authenticated message left; `data` unless it was a keepalive. Return true if that can arm a
    /// timer which the last report did not arm.
    pub fn note_sent(&mut self, data: bool, now: f64) -> bool {
        let traffic = &mut self.traffic;
        traffic.any_sent = now;
        traffic.unacknowledged_since = 0.0;
        if !data {
            return false;
        }
        traffic.data_sent = now;
        if traffic.unanswered_since == 0.0 {
            traffic.unanswered_since = now;
            return self.reported.unanswered_since == 0.0;
        }
        false
    }

    /// Record that an authenticated message arrived. Arguments and result as in [`Self::note_sent`].
    pub fn note_received(&mut self, data: bool, now: f64) -> bool {
        let traffic = &mut self.traffic;
        traffic.any_received = now;
        traffic.unanswered_since = 0.0;
        if !data {
            return false;
        }
        traffic.data_received = now;
        if traffic.unacknowledged_since == 0.0 {
            traffic.unacknowledged_since = now;
            return self.reported.unacknowledged_since == 0.0;
        }
        false
    }
}

/// The peers by id and by handle. A handle (`usize`) stays valid until the peer is removed, and is reused then.
#[derive(Default)]
pub struct PeerTable {
    /// By handle; None if the handle is free.
    entries: Vec<Option<Box<Peer>>>,
    /// Handles to reuse.
    free: Vec<usize>,
    by_id: HashMap<PeerId, usize>,
}

impl PeerTable {
    /// Return the handle of `id`, after adding the peer if it does not exist.
    pub fn add(&mut self, id: PeerId) -> usize {
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

    /// Remove a peer; None if the id is unknown. The caller has removed its handle from all other tables.
    pub fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        let handle = self.by_id.remove(&id)?;
        self.free.push(handle);
        self.entries[handle].take()
    }

    /// Return the handle of a peer id.
    #[must_use]
    pub fn lookup(&self, id: PeerId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Return a peer.
    ///
    /// # Panics
    /// If the handle is unused.
    #[must_use]
    pub fn get(&self, handle: usize) -> &Peer {
        self.entries[handle].as_ref().expect("tables hold live entries only")
    }

    /// Return a peer to change. Panics as [`Self::get`] does.
    pub fn get_mut(&mut self, handle: usize) -> &mut Peer {
        self.entries[handle].as_mut().expect("tables hold live entries only")
    }

    /// Return all peers, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.entries.iter().flatten().map(AsRef::as_ref)
    }

    /// Return all peers to change, in no particular order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.entries.iter_mut().flatten().map(AsMut::as_mut)
    }
}
