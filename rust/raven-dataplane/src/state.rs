//! The state that both directions use: peers, keypairs, prefixes, events, counters, and the rules of whitepaper §6.
//!
//! The mutators of the contract are in `data_plane`. Peers and keypairs are named by their handles here.

use std::net::{IpAddr, Ipv6Addr};

use crate::counters::{Counters, Drop, Offloads};
use crate::cryptokey_routing::{AddressCache, CryptokeyTable};
use crate::events::{Event, EventQueue};
use crate::keypair::{Keypair, KeypairHandle, KeypairTable, Role};
use crate::peer::{MAX_STAGED_PACKETS, PeerId, PeerTable, Staged};

/// The time constants of whitepaper §6.1 that the packet path needs, in seconds; `contract.Timing` has them all.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Age at which the initiator of a keypair begins a new handshake.
    pub rekey_after_time: f64,
    /// Age from which a keypair neither sends nor receives.
    pub reject_after_time: f64,
    /// Between two initiations to one peer.
    pub rekey_timeout: f64,
    /// After receiving data without sending any, a keepalive is sent.
    pub keepalive_timeout: f64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { rekey_after_time: 120.0, reject_after_time: 180.0, rekey_timeout: 5.0, keepalive_timeout: 10.0 }
    }
}

/// The state of a body, without descriptors and buffers.
pub struct State {
    pub timing: Timing,
    /// Offloads in force: allowed, and not refused.
    pub offloads: Offloads,
    /// Offloads that the kernel refused. They stay off, whatever is allowed later.
    refused: Offloads,
    pub peers: PeerTable,
    pub keypairs: KeypairTable,
    /// Outbound: the peers that carry a prefix. The first one gets the traffic.
    pub routes: CryptokeyTable,
    /// Inbound: the peers that a prefix is accepted from.
    pub accepted: CryptokeyTable,
    pub events: EventQueue,
    pub counters: Counters,
    /// MTU of the TUN in bytes; 0 if unknown.
    pub mtu: usize,
    /// Our tunnel address: UDP to it and to `probe_port` is posted as an event.
    pub own_address: Option<Ipv6Addr>,
    pub probe_port: u16,
    /// Results of `routes`, valid until a mutator runs.
    route_cache: AddressCache<Option<usize>>,
    /// Accepted sources and a peer each, valid until a mutator runs. Refusals are not cached.
    accept_cache: AddressCache<usize>,
}

impl State {
    /// Make a state without peers.
    #[must_use]
    pub fn new(timing: Timing, offloads: Offloads) -> Self {
        Self {
            timing,
            offloads,
            refused: Offloads::NONE,
            peers: PeerTable::default(),
            keypairs: KeypairTable::default(),
            routes: CryptokeyTable::default(),
            accepted: CryptokeyTable::default(),
            events: EventQueue::default(),
            counters: Counters::default(),
            mtu: 0,
            own_address: None,
            probe_port: 0,
            route_cache: AddressCache::default(),
            accept_cache: AddressCache::default(),
        }
    }

    /// Change which offloads are allowed. Those that the kernel refused stay off.
    pub fn allow_offloads(&mut self, allowed: Offloads) {
        self.offloads = allowed.without(self.refused);
    }

    /// Switch one offload off for good, because the kernel refused it.
    pub fn disable_refused(&mut self, offload: impl Fn(&mut Offloads) -> &mut bool) {
        *offload(&mut self.offloads) = false;
        *offload(&mut self.refused) = true;
    }

    /// Empty the caches of lookups. Every mutator that changes prefixes or peers calls this.
    pub fn clear_caches(&mut self) {
        self.route_cache.clear();
        self.accept_cache.clear();
    }

    /// Return the peer that carries packets to `destination`.
    pub fn lookup_route(&mut self, destination: IpAddr) -> Option<usize> {
        if let Some(peer) = self.route_cache.lookup(destination) {
            return peer;
        }
        let peer = self.routes.lookup(destination).first().copied();
        self.route_cache.insert(destination, peer);
        peer
    }

    /// Return true if an inner packet from `source` is accepted from this peer: the peer is among those of the
    /// longest accepted prefix, over all peers, that contains the address.
    pub fn accepts_source(&mut self, source: IpAddr, peer: usize) -> bool {
        if self.accept_cache.lookup(source) == Some(peer) {
            return true;
        }
        let accepted = self.accepted.lookup(source).contains(&peer);
        if accepted {
            self.accept_cache.insert(source, peer);
        }
        accepted
    }

    /// Return the keypair to send `packets` messages under; None if it is absent, expired, too old, or its counter is
    /// used up (whitepaper §6.1).
    #[must_use]
    pub fn sending_keypair(&self, peer: usize, packets: usize, now: f64) -> Option<KeypairHandle> {
        let handle = self.peers.get(peer).current?;
        let keypair = self.keypairs.get(handle);
        let last = keypair.counter.checked_add(packets as u64)?;
        let sends = !keypair.expired
            && now < keypair.birth + self.timing.reject_after_time
            && last <= keypair.suite.reject_after_messages();
        sends.then_some(handle)
    }

    /// After sending, request a handshake if the keypair is due for renewal: by messages, and by age for the
    /// initiator (whitepaper §6.2).
    pub fn renew_after_sending(&mut self, peer: usize, handle: KeypairHandle, now: f64) {
        let keypair = self.keypairs.get(handle);
        let old = keypair.role == Role::Initiator && now >= keypair.birth + self.timing.rekey_after_time;
        if (old || keypair.counter > keypair.suite.rekey_after_messages())
            && self.peers.get(peer).handshake_requested.is_none()
        {
            self.post_handshake_needed(peer, now);
        }
    }

    /// After receiving, request a handshake if the keypair is close to reject-after-time, for the initiator and once
    /// per keypair: a peer that only receives would lose the session otherwise (whitepaper §6.2).
    pub fn renew_after_receiving(&mut self, peer: usize, handle: KeypairHandle, now: f64) {
        let timing = &self.timing;
        let late = timing.reject_after_time - timing.keepalive_timeout - timing.rekey_timeout;
        let keypair = self.keypairs.get_mut(handle);
        if keypair.renewal_requested || keypair.role != Role::Initiator || now < keypair.birth + late {
            return;
        }
        keypair.renewal_requested = true;
        if self.peers.get(peer).handshake_requested.is_none() {
            self.post_handshake_needed(peer, now);
        }
    }

    /// Post `HandshakeNeeded` because packets wait: once per cause, and again after rekey-timeout.
    pub fn request_handshake(&mut self, peer: usize, now: f64) {
        if self.peers.get(peer).handshake_requested.is_none_or(|requested| now - requested >= self.timing.rekey_timeout)
        {
            self.post_handshake_needed(peer, now);
        }
    }

    /// Post `HandshakeNeeded` and record the time.
    fn post_handshake_needed(&mut self, handle: usize, now: f64) {
        let peer = self.peers.get_mut(handle);
        peer.handshake_requested = Some(now);
        let peer = peer.id;
        self.events.post(Event::HandshakeNeeded { peer });
    }

    /// Record that an authenticated message left; `data` unless it was a keepalive.
    pub fn note_sent(&mut self, handle: usize, data: bool, now: f64) {
        let peer = self.peers.get_mut(handle);
        if peer.note_sent(data, now) {
            self.events.mark_urgent();
        }
        if !std::mem::replace(&mut peer.report_pending, true) {
            self.events.mark_changed(handle);
        }
    }

    /// Record that an authenticated message arrived; `data` unless it was a keepalive.
    pub fn note_received(&mut self, handle: usize, data: bool, now: f64) {
        let peer = self.peers.get_mut(handle);
        if peer.note_received(data, now) {
            self.events.mark_urgent();
        }
        if !std::mem::replace(&mut peer.report_pending, true) {
            self.events.mark_changed(handle);
        }
    }

    /// Report the times of a peer that was restored from a hand-over.
    pub fn note_restored(&mut self, handle: usize) {
        let peer = self.peers.get_mut(handle);
        if peer.traffic.unanswered_since != 0.0 || peer.traffic.unacknowledged_since != 0.0 {
            self.events.mark_urgent();
        }
        if !std::mem::replace(&mut peer.report_pending, true) {
            self.events.mark_changed(handle);
        }
    }

    /// Remove and return the events in order, then at most `max_initiations` initiations without mac2, then `Traffic`
    /// of every peer whose times changed.
    pub fn drain_events(&mut self, max_initiations: usize) -> Vec<Event> {
        let (mut events, changed) = self.events.drain(max_initiations);
        for handle in changed {
            let peer = self.peers.get_mut(handle);
            peer.report_pending = false;
            peer.reported = peer.traffic;
            events.push(Event::Traffic { peer: peer.id, facts: peer.traffic });
        }
        events
    }

    /// Keep a packet until there is a keypair, and request a handshake. The oldest packet is dropped if there are too
    /// many. A keepalive is not kept.
    pub fn stage(&mut self, peer: usize, staged: Staged, now: f64) {
        if !staged.packet.is_empty() {
            let waiting = &mut self.peers.get_mut(peer).staged;
            if waiting.len() >= MAX_STAGED_PACKETS {
                waiting.pop_front();
                self.counters.count_drop(Drop::StagedOverflow, 1);
            }
            waiting.push_back(staged);
        }
        self.request_handshake(peer, now);
    }

    /// Remove and wipe a keypair that left its slot, and post `KeypairRetired`.
    pub fn retire(&mut self, peer: PeerId, handle: Option<KeypairHandle>) {
        if let Some(local_index) = handle.and_then(|handle| self.keypairs.remove(handle)) {
            self.events.post(Event::KeypairRetired { peer, local_index });
        }
    }

    /// Make `next` the `current` keypair, because the first message under it arrived (key confirmation, whitepaper
    /// §5.4.6). Return false if the keypair is not in `next`.
    pub fn promote(&mut self, peer: usize, handle: KeypairHandle) -> bool {
        let entry = self.peers.get_mut(peer);
        if entry.next != Some(handle) {
            return false;
        }
        let gone = entry.previous;
        entry.previous = entry.current;
        entry.current = Some(handle);
        entry.next = None;
        let id = entry.id;
        let local_index = self.keypairs.get(handle).local_index;
        self.retire(id, gone);
        self.events.post(Event::KeyPromoted { peer: id, local_index });
        true
    }

    /// Put a new keypair into its slot, by wireguard-go's rule: an initiator's becomes `current`, a responder's
    /// `next`. Return false, and change nothing, if its local index is in use.
    pub fn install(&mut self, keypair: Keypair) -> bool {
        let (peer, role) = (keypair.peer, keypair.role);
        let Some(handle) = self.keypairs.insert(keypair) else { return false };
        let entry = self.peers.get_mut(peer);
        entry.handshake_ended();
        entry.gso_limit = usize::MAX; // the path MTU may have grown
        let id = entry.id;
        let gone = match role {
            Role::Responder => [entry.previous.take(), entry.next.replace(handle)],
            Role::Initiator => {
                let gone = match entry.next.take() {
                    Some(next) => [entry.previous.replace(next), entry.current.take()],
                    None => [std::mem::replace(&mut entry.previous, entry.current.take()), None],
                };
                entry.current = Some(handle);
                gone
            }
        };
        for handle in gone {
            self.retire(id, handle);
        }
        true
    }

    /// Return the plaintext length of a message with a packet of `length` bytes: padded to a multiple of 16, but not
    /// beyond the MTU (whitepaper §5.4.6). A packet longer than the MTU is padded as its last MTU-sized part would
    /// be.
    #[must_use]
    pub fn padded_length(&self, length: usize) -> usize {
        if self.mtu == 0 {
            return length.next_multiple_of(16);
        }
        let last = if length > self.mtu { length % self.mtu } else { length };
        length - last + last.next_multiple_of(16).min(self.mtu)
    }
}
