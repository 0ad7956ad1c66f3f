//! From the outer world to the TUN: receive, open, check, join packets of a flow, write.

use std::io;
use std::os::fd::RawFd;

use crate::coalesce::Coalescer;
use crate::counters::Drop;
use crate::events::Event;
use crate::keypair::KeypairHandle;
use crate::packet;
use crate::state::State;
use crate::sys::{Meta, Receiver, SLOT, SLOTS};
use crate::tun_writer::TunWriter;
use crate::wire::{self, Claim};

/// What a datagram costs of a budget, however short it is.
const BYTES_A_DATAGRAM: usize = 512;
/// Trains of this size on average are taken few at a time, to be written before they leave the core's cache.
const BULK: usize = 8 << 10;
const SLOTS_BULK: usize = 4;

pub struct Inbound {
    receiver: Receiver,
    coalescer: Coalescer,
    tun_writer: Option<TunWriter>,
    slots: usize,
    /// The kernel's count of lost datagrams as last seen, IPv4 and IPv6; None while another socket is read.
    overflows: Option<[u32; 2]>,
}

/// A transport message that was opened: what to do about it is the body's.
struct Opened {
    peer: usize,
    keypair: KeypairHandle,
    at: usize,
    length: usize,
}

impl Inbound {
    #[must_use]
    pub fn new(tun: Option<RawFd>, state: &State) -> Self {
        Self {
            receiver: Receiver::default(),
            coalescer: Coalescer::new(state.offloads.tun_gro, state.offloads.tun_gro_udp),
            tun_writer: tun.map(TunWriter::new),
            slots: SLOTS,
            overflows: Some([0; 2]),
        }
    }

    /// Joins, and writes together, what is allowed now. Between two pumps nothing is collected.
    pub fn offloads_changed(&mut self, state: &State) {
        (self.coalescer.tcp, self.coalescer.udp) = (state.offloads.tun_gro, state.offloads.tun_gro_udp);
        if let Some(tun_writer) = &mut self.tun_writer {
            tun_writer.offloads_changed(state);
        }
    }

    pub fn sockets_changed(&mut self) {
        self.overflows = Some([0; 2]);
    }

    /// Pumps a socket that is no longer in use. Its count of lost datagrams is not that of the socket in use, so it is
    /// left out.
    pub fn pump_replaced(
        &mut self,
        state: &mut State,
        fd: RawFd,
        now: f64,
        budget: usize,
        promoted: impl FnMut(&mut State, usize),
    ) {
        let overflows = self.overflows.take();
        self.pump(state, fd, now, budget, promoted);
        self.overflows = overflows;
    }

    /// Moves up to `budget` bytes from this socket, small datagrams counted as 512. `promoted` is called with the peer
    /// whose new keypair was confirmed, and sends what waited for that.
    pub fn pump(
        &mut self,
        state: &mut State,
        fd: RawFd,
        now: f64,
        budget: usize,
        mut promoted: impl FnMut(&mut State, usize),
    ) {
        let mut spent = 0;
        while spent < budget {
            let count = match self.receiver.receive(fd, self.slots) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier datagram, say; reading it has cleared it.
                Err(_) => {
                    spent += 64 * BYTES_A_DATAGRAM;
                    continue;
                }
            };
            state.counters.udp_reads += 1;
            let before = state.counters.udp_rx_datagrams;
            let mut bytes = 0;
            for slot in 0..count {
                let meta = *self.receiver.meta(slot);
                bytes += meta.length;
                self.train(state, slot, &meta, now, &mut promoted);
            }
            let datagrams = (state.counters.udp_rx_datagrams - before) as usize;
            spent += bytes.max(datagrams * BYTES_A_DATAGRAM);
            self.flush(state);
            let full = count == self.slots;
            let bulk = bytes / count.max(1) >= BULK;
            self.slots = if bulk { SLOTS_BULK } else { SLOTS };
            if !full && !bulk {
                break; // nothing is left, as a rule; of bulk more has come meanwhile, as a rule
            }
        }
    }

    /// One receive: a datagram, or several of one size from one address.
    fn train(
        &mut self,
        state: &mut State,
        slot: usize,
        meta: &Meta,
        now: f64,
        promoted: &mut impl FnMut(&mut State, usize),
    ) {
        if let (Some(total), Some(overflows)) = (meta.overflow, &mut self.overflows) {
            let seen = &mut overflows[usize::from(meta.name.is_v6())];
            state.counters.drop(Drop::SocketOverflow, total.wrapping_sub(*seen) as usize);
            *seen = total;
        }
        if meta.truncated || meta.length == 0 {
            state.counters.udp_rx_datagrams += 1;
            state.counters.drop(Drop::Malformed, 1);
            return;
        }
        let segment = if meta.segment == 0 { meta.length } else { meta.segment };
        let mut found = None;
        for start in (0..meta.length).step_by(segment) {
            state.counters.udp_rx_datagrams += 1;
            let (at, length) = (slot * SLOT + start, segment.min(meta.length - start));
            let datagram = &mut self.receiver.arena_mut()[at..at + length];
            if let Some(opened) = open(state, datagram, meta, at, now, &mut found) {
                self.admit(state, meta, &opened, now, promoted);
            }
        }
    }

    /// An authenticated message: who sent it is there, has these keys, and said this.
    fn admit(
        &mut self,
        state: &mut State,
        meta: &Meta,
        opened: &Opened,
        now: f64,
        promoted: &mut impl FnMut(&mut State, usize),
    ) {
        came_from(state, opened.peer, meta);
        if state.promote(opened.peer, opened.keypair) {
            promoted(state, opened.peer);
        }
        state.note_received(opened.peer, opened.length > 0, now);
        state.renew_after_receiving(opened.peer, opened.keypair, now);
        if opened.length == 0 {
            return; // a keepalive
        }
        match judge(state, self.receiver.arena_mut(), opened, meta.ecn) {
            Err(why) => state.counters.drop(why, 1),
            Ok(None) => {}
            Ok(Some(_)) if self.tun_writer.is_none() => state.counters.drop(Drop::NoTun, 1),
            Ok(Some(length)) => {
                state.counters.tun_tx_packets += 1;
                self.coalescer.push(self.receiver.arena(), opened.at, length);
            }
        }
    }

    /// Writes what was collected; the arena is free again.
    fn flush(&mut self, state: &mut State) {
        if let Some(tun_writer) = &mut self.tun_writer {
            tun_writer.flush(state, self.receiver.arena(), &mut self.coalescer);
        }
    }
}

/// Opens a transport message in place. Everything else is handed up, or dropped and counted. `found` remembers the
/// last index that was looked up.
fn open(
    state: &mut State,
    datagram: &mut [u8],
    meta: &Meta,
    at: usize,
    now: f64,
    found: &mut Option<(u32, Option<KeypairHandle>)>,
) -> Option<Opened> {
    if !meta.name.can_be_answered() {
        state.counters.drop(Drop::Malformed, 1);
        return None;
    }
    let (receiver, counter) = match wire::claim(datagram) {
        Claim::Transport { receiver, counter } => (receiver, counter),
        Claim::Malformed => {
            state.counters.drop(Drop::Malformed, 1);
            return None;
        }
        Claim::Other => {
            if let Some(endpoint) = meta.name.to_socket_addr()
                && !state.events.push_datagram(datagram, endpoint, meta.source)
            {
                state.counters.drop(Drop::HandshakeQueueFull, 1);
            }
            return None;
        }
    };
    let handle = match *found {
        Some((index, handle)) if index == receiver => handle,
        _ => {
            let handle = state.keypairs.find(receiver);
            *found = Some((receiver, handle));
            handle
        }
    };
    let Some(handle) = handle else {
        state.counters.drop(Drop::UnknownIndex, 1);
        return None;
    };
    let keypair = state.keypairs.get_mut(handle);
    let dead = now >= keypair.birth + state.timing.reject_after_time;
    let verdict = if dead || counter >= keypair.suite.reject_after_messages() {
        Err(Drop::ExpiredKeypair)
    } else if !keypair.window.admits(counter) {
        Err(Drop::Replayed)
    } else if keypair.receive.open(counter, &mut datagram[wire::HEADER..]).is_err() {
        Err(Drop::BadTag)
    } else {
        keypair.window.update(counter);
        Ok(keypair.peer)
    };
    match verdict {
        Ok(peer) => {
            let entry = state.peers.at_mut(peer);
            entry.rx_bytes += datagram.len() as u64;
            entry.rx_packets += 1;
            let length = datagram.len() - wire::SHORTEST;
            Some(Opened { peer, keypair: handle, at: at + wire::HEADER, length })
        }
        Err(why) => {
            state.counters.drop(why, 1);
            None
        }
    }
}

/// Where an authenticated message came from is where the peer is (whitepaper §2.1), and where it came to is where
/// answers leave from.
fn came_from(state: &mut State, handle: usize, meta: &Meta) {
    let peer = state.peers.at_mut(handle);
    if meta.name == peer.name {
        peer.source = meta.source;
        return;
    }
    let Some(endpoint) = meta.name.to_socket_addr() else { return };
    if peer.roaming {
        peer.move_to(Some(endpoint));
        peer.source = meta.source;
    } else if peer.foreign == meta.name {
        return;
    } else {
        peer.foreign = meta.name;
    }
    let peer = peer.id;
    state.events.push(Event::EndpointMoved { peer, endpoint, source: meta.source });
}

/// What an opened message holds: the length of a packet for the TUN, or None if it was for the tunnel itself.
fn judge(state: &mut State, arena: &mut [u8], opened: &Opened, outer_ecn: u8) -> Result<Option<usize>, Drop> {
    let plain = &mut arena[opened.at..opened.at + opened.length];
    let length = packet::length(plain).ok_or(Drop::MalformedInner)?;
    let packet = &mut plain[..length];
    if !state.accepts(packet::source(packet), opened.peer) {
        return Err(Drop::SourceNotAccepted);
    }
    if outer_ecn != packet::NOT_ECT {
        let inner = packet::ecn(packet);
        let combined = packet::decapsulated_ecn(inner, outer_ecn).ok_or(Drop::CongestionUnmarkable)?;
        if combined != inner {
            packet::set_ecn(packet, combined);
        }
    }
    if let Some(own) = state.own_address
        && packet::is_udp_v6_to(packet, own, state.probe_port)
    {
        let peer = state.peers.at(opened.peer).id;
        let queued = state.events.push_inner(peer, packet, outer_ecn == packet::CE);
        return if queued { Ok(None) } else { Err(Drop::HandshakeQueueFull) };
    }
    Ok(Some(length))
}
