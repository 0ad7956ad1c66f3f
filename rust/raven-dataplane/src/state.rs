//! All that packets are judged by: peers, keypairs, prefixes, counters. Mutators live in `control`.

use std::net::{IpAddr, Ipv6Addr};

use crate::counters::{Counters, Drop, Offloads};
use crate::cryptokey_routing::{AddressCache, CryptokeyTable};
use crate::events::{Event, EventQueue};
use crate::keypair::{Keypair, KeypairHandle, KeypairTable, Role};
use crate::peer::{MAX_STAGED_PACKETS, PeerId, PeerTable, Staged};

/// Whitepaper §6.1, as far as packets feel them; seconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub rekey_after_time: f64,
    pub reject_after_time: f64,
    pub rekey_timeout: f64,
    pub keepalive_timeout: f64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { rekey_after_time: 120.0, reject_after_time: 180.0, rekey_timeout: 5.0, keepalive_timeout: 10.0 }
    }
}

pub struct State {
    pub timing: Timing,
    /// In force: allowed, and not refused.
    pub offloads: Offloads,
    /// What the kernel refused; it stays off whatever is allowed later.
    refused: Offloads,
    pub peers: PeerTable,
    pub keypairs: KeypairTable,
    /// Egress: the peers that carry a prefix, the first one first.
    pub routes: CryptokeyTable,
    /// Ingress: the peers a prefix is accepted from.
    pub accepted: CryptokeyTable,
    pub events: EventQueue,
    pub counters: Counters,
    /// Of the TUN; 0 if unknown.
    pub mtu: usize,
    pub own_address: Option<Ipv6Addr>,
    pub probe_port: u16,
    /// Answers of `routes`, valid until a mutator runs.
    route_cache: AddressCache<Option<usize>>,
    /// Addresses that were accepted, and from whom.
    accept_cache: AddressCache<usize>,
}

impl State {
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

    /// Changes which offloads are allowed.
    pub fn allow_offloads(&mut self, allowed: Offloads) {
        self.offloads = allowed.except(self.refused);
    }

    /// Gives one offload up for good, because the kernel refused it.
    pub fn give_up(&mut self, offload: impl Fn(&mut Offloads) -> &mut bool) {
        *offload(&mut self.offloads) = false;
        *offload(&mut self.refused) = true;
    }

    /// To be called whenever prefixes or peers change.
    pub fn clear_caches(&mut self) {
        self.route_cache.clear();
        self.accept_cache.clear();
    }

    /// Who carries packets to `destination`.
    pub fn route(&mut self, destination: IpAddr) -> Option<usize> {
        if let Some(peer) = self.route_cache.get(destination) {
            return peer;
        }
        let peer = self.routes.longest_match(destination).first().copied();
        self.route_cache.put(destination, peer);
        peer
    }

    /// Whether a packet from `source` may come from this peer: the longest accepted prefix over it, across all peers,
    /// must count the peer among its accepters.
    pub fn accepts(&mut self, source: IpAddr, peer: usize) -> bool {
        if self.accept_cache.get(source) == Some(peer) {
            return true;
        }
        let accepted = self.accepted.longest_match(source).contains(&peer);
        if accepted {
            self.accept_cache.put(source, peer);
        }
        accepted
    }

    /// The keypair to send `packets` under, if the peer has one that may.
    #[must_use]
    pub fn sending_keypair(&self, peer: usize, packets: usize, now: f64) -> Option<KeypairHandle> {
        let handle = self.peers.at(peer).current?;
        let keypair = self.keypairs.get(handle);
        let last = keypair.counter.checked_add(packets as u64)?;
        let sends = !keypair.expired
            && now < keypair.birth + self.timing.reject_after_time
            && last <= keypair.suite.reject_after_messages();
        sends.then_some(handle)
    }

    /// After sending: a new session is due once this many messages were sent, and by age for who began it (§6.2).
    pub fn renew_after_sending(&mut self, peer: usize, handle: KeypairHandle, now: f64) {
        let keypair = self.keypairs.get(handle);
        let old = keypair.role == Role::Initiator && now >= keypair.birth + self.timing.rekey_after_time;
        if (old || keypair.counter > keypair.suite.rekey_after_messages()) && self.peers.at(peer).asked.is_none() {
            self.post_handshake_needed(peer, now);
        }
    }

    /// After receiving: an initiator that only listens renews shortly before the session would die, once (§6.2).
    pub fn renew_after_receiving(&mut self, peer: usize, handle: KeypairHandle, now: f64) {
        let timing = &self.timing;
        let late = timing.reject_after_time - timing.keepalive_timeout - timing.rekey_timeout;
        let keypair = self.keypairs.get_mut(handle);
        if keypair.renewal_asked || keypair.role != Role::Initiator || now < keypair.birth + late {
            return;
        }
        keypair.renewal_asked = true;
        if self.peers.at(peer).asked.is_none() {
            self.post_handshake_needed(peer, now);
        }
    }

    /// Something waits for a handshake: says so, once per cause and again after rekey-timeout.
    pub fn request_handshake(&mut self, peer: usize, now: f64) {
        if self.peers.at(peer).asked.is_none_or(|asked| now - asked >= self.timing.rekey_timeout) {
            self.post_handshake_needed(peer, now);
        }
    }

    fn post_handshake_needed(&mut self, handle: usize, now: f64) {
        let peer = self.peers.at_mut(handle);
        peer.asked = Some(now);
        let peer = peer.id;
        self.events.push(Event::HandshakeNeeded { peer });
    }

    /// An authenticated packet left; `data` unless it was a keepalive.
    pub fn note_sent(&mut self, handle: usize, data: bool, now: f64) {
        let peer = self.peers.at_mut(handle);
        if peer.sent(data, now) {
            self.events.mark_urgent();
        }
        if !std::mem::replace(&mut peer.moved, true) {
            self.events.moved(handle);
        }
    }

    /// An authenticated packet arrived.
    pub fn note_received(&mut self, handle: usize, data: bool, now: f64) {
        let peer = self.peers.at_mut(handle);
        if peer.received(data, now) {
            self.events.mark_urgent();
        }
        if !std::mem::replace(&mut peer.moved, true) {
            self.events.moved(handle);
        }
    }

    /// A peer came with a history: its facts are to be reported.
    pub fn note_revived(&mut self, handle: usize) {
        let peer = self.peers.at_mut(handle);
        if peer.traffic.unanswered_since != 0.0 || peer.traffic.unacknowledged_since != 0.0 {
            self.events.mark_urgent();
        }
        if !std::mem::replace(&mut peer.moved, true) {
            self.events.moved(handle);
        }
    }

    /// What happened since the last call, then so many of the initiations that prove nothing, Traffic last.
    pub fn drain_events(&mut self, max_initiations: usize) -> Vec<Event> {
        let (mut events, moved) = self.events.take(max_initiations);
        for handle in moved {
            let peer = self.peers.at_mut(handle);
            peer.moved = false;
            peer.told = peer.traffic;
            events.push(Event::Traffic { peer: peer.id, facts: peer.traffic });
        }
        events
    }

    /// Keeps a packet until there is a keypair, and asks for one. The oldest goes when there are too many; an empty
    /// one (a keepalive) only asks.
    pub fn stage(&mut self, peer: usize, staged: Staged, now: f64) {
        if !staged.packet.is_empty() {
            let waiting = &mut self.peers.at_mut(peer).staged;
            if waiting.len() >= MAX_STAGED_PACKETS {
                waiting.pop_front();
                self.counters.drop(Drop::StagedOverflow, 1);
            }
            waiting.push_back(staged);
        }
        self.request_handshake(peer, now);
    }

    /// Wipes a keypair that left its slot.
    pub fn retire(&mut self, peer: PeerId, handle: Option<KeypairHandle>) {
        if let Some(local_index) = handle.and_then(|handle| self.keypairs.remove(handle)) {
            self.events.push(Event::KeypairRetired { peer, local_index });
        }
    }

    /// The first authenticated packet under `next` makes it `current` (whitepaper §5.4.6); the responder's keys are
    /// confirmed. Says whether that happened.
    pub fn promote(&mut self, peer: usize, handle: KeypairHandle) -> bool {
        let entry = self.peers.at_mut(peer);
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
        self.events.push(Event::KeyPromoted { peer: id, local_index });
        true
    }

    /// Puts a new keypair into its slot (wireguard-go's rule): an initiator's becomes current, a responder's next.
    /// False if its index is in use; nothing is changed then.
    pub fn install(&mut self, keypair: Keypair) -> bool {
        let (peer, role) = (keypair.peer, keypair.role);
        let Some(handle) = self.keypairs.insert(keypair) else { return false };
        let entry = self.peers.at_mut(peer);
        entry.handshake_ended();
        entry.gso_limit = usize::MAX; // the path may have become wider
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

    /// Length of the plaintext of a data message with a packet of `length` bytes: padded to 16, but not beyond the
    /// MTU (whitepaper §5.4.6); what is longer than the MTU is padded as its last MTU-sized part would be.
    #[must_use]
    pub fn padded(&self, length: usize) -> usize {
        if self.mtu == 0 {
            return length.next_multiple_of(16);
        }
        let last = if length > self.mtu { length % self.mtu } else { length };
        length - last + last.next_multiple_of(16).min(self.mtu)
    }
}
