//! Inbound packets, from the sockets to the TUN: receive, open, check, coalesce packets of one flow, write.
//!
//! Datagrams are opened where recvmmsg put them, and the TUN writer gathers superpackets from there: no copy in
//! between. The arena is in use until [`Inbound::flush`].

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
use crate::wire::{self, Message};

/// Least cost of a datagram in bytes of budget: short ones take as much time as this many bytes of long ones.
const MIN_DATAGRAM_COST: usize = 512;
/// Average bytes per slot of one receive from which traffic counts as bulk. Bulk is received [`BULK_SLOTS`] slots at
/// a time, so that it is written to the TUN before it leaves the core's cache.
const BULK_BYTES: usize = 8 << 10;
/// Slots of one receive during bulk, each up to 64 KiB.
const BULK_SLOTS: usize = 4;

/// The inbound direction of a body: receive buffers, coalescer and TUN writer.
pub struct Inbound {
    receiver: Receiver,
    /// Empty between two receives.
    coalescer: Coalescer,
    /// None without a TUN.
    tun_writer: Option<TunWriter>,
    /// Slots of the next receive: [`SLOTS`], or [`BULK_SLOTS`] after bulk.
    slots: usize,
    /// The kernel's counts of lost datagrams at the last receive (SO_RXQ_OVFL), IPv4 and IPv6. None while a replaced
    /// socket is read.
    overflows: Option<[u32; 2]>,
}

/// An authenticated transport message, decrypted in the arena.
struct Opened {
    /// Handle of the sender.
    peer: usize,
    keypair: KeypairHandle,
    /// Offset of the plaintext in the arena.
    at: usize,
    /// Bytes of the plaintext, padding included; 0 for a keepalive.
    length: usize,
}

impl Inbound {
    /// Make the inbound direction; without a TUN, packets are dropped as `NoTun`.
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

    /// Apply a change of the allowed offloads. Called between two pumps, when the coalescer is empty.
    pub fn offloads_changed(&mut self, state: &State) {
        (self.coalescer.tcp, self.coalescer.udp) = (state.offloads.tun_gro, state.offloads.tun_gro_udp);
        if let Some(tun_writer) = &mut self.tun_writer {
            tun_writer.offloads_changed(state);
        }
    }

    /// Reset the overflow counts: those of new sockets start at zero.
    pub fn sockets_changed(&mut self) {
        self.overflows = Some([0; 2]);
    }

    /// Pump a socket that is no longer in use, without counting its lost datagrams: its count is not that of the
    /// socket in use.
    pub fn pump_replaced(
        &mut self,
        state: &mut State,
        fd: RawFd,
        now: f64,
        budget: usize,
        on_promoted: impl FnMut(&mut State, usize),
    ) {
        let overflows = self.overflows.take();
        self.pump(state, fd, now, budget, on_promoted);
        self.overflows = overflows;
    }

    /// Process up to `budget` bytes from this socket, short datagrams counted as [`MIN_DATAGRAM_COST`].
    ///
    /// `on_promoted` is called with the peer whose new keypair was confirmed; it sends the staged packets.
    pub fn pump(
        &mut self,
        state: &mut State,
        fd: RawFd,
        now: f64,
        budget: usize,
        mut on_promoted: impl FnMut(&mut State, usize),
    ) {
        let mut spent = 0;
        while spent < budget {
            let count = match self.receiver.receive(fd, self.slots) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // For example an ICMP error for an earlier datagram. The call has cleared it.
                Err(_) => {
                    spent += 64 * MIN_DATAGRAM_COST;
                    continue;
                }
            };
            state.counters.udp_reads += 1;
            let before = state.counters.udp_rx_datagrams;
            let mut bytes = 0;
            for slot in 0..count {
                let meta = *self.receiver.meta(slot);
                bytes += meta.length;
                self.open_received(state, slot, &meta, now, &mut on_promoted);
            }
            let datagrams = (state.counters.udp_rx_datagrams - before) as usize;
            spent += bytes.max(datagrams * MIN_DATAGRAM_COST);
            self.flush(state);
            let full = count == self.slots;
            let bulk = bytes / count.max(1) >= BULK_BYTES;
            self.slots = if bulk { BULK_SLOTS } else { SLOTS };
            if !full && !bulk {
                break; // usually nothing is left; during bulk, usually more has arrived meanwhile
            }
        }
    }

    /// Open the content of one receive slot: a datagram, or a GRO train of several with one size from one address.
    fn open_received(
        &mut self,
        state: &mut State,
        slot: usize,
        meta: &Meta,
        now: f64,
        on_promoted: &mut impl FnMut(&mut State, usize),
    ) {
        if let (Some(total), Some(overflows)) = (meta.overflow, &mut self.overflows) {
            let seen = &mut overflows[usize::from(meta.address.is_v6())];
            state.counters.count_drop(Drop::SocketOverflow, total.wrapping_sub(*seen) as usize);
            *seen = total;
        }
        if meta.truncated || meta.length == 0 {
            state.counters.udp_rx_datagrams += 1;
            state.counters.count_drop(Drop::Malformed, 1);
            return;
        }
        let segment = if meta.segment == 0 { meta.length } else { meta.segment };
        let mut last_lookup = None;
        for start in (0..meta.length).step_by(segment) {
            state.counters.udp_rx_datagrams += 1;
            let (at, length) = (slot * SLOT + start, segment.min(meta.length - start));
            let datagram = &mut self.receiver.arena_mut()[at..at + length];
            if let Some(opened) = open(state, datagram, meta, at, now, &mut last_lookup) {
                self.handle_authentic(state, meta, &opened, now, on_promoted);
            }
        }
    }

    /// Handle an authenticated message: update the peer's endpoint, keypair slots and times, and pass the packet on.
    fn handle_authentic(
        &mut self,
        state: &mut State,
        meta: &Meta,
        opened: &Opened,
        now: f64,
        on_promoted: &mut impl FnMut(&mut State, usize),
    ) {
        update_endpoint(state, opened.peer, meta);
        if state.promote(opened.peer, opened.keypair) {
            on_promoted(state, opened.peer);
        }
        state.note_received(opened.peer, opened.length > 0, now);
        state.renew_after_receiving(opened.peer, opened.keypair, now);
        if opened.length == 0 {
            return; // a keepalive
        }
        match check_inner(state, self.receiver.arena_mut(), opened, meta.ecn) {
            Err(reason) => state.counters.count_drop(reason, 1),
            Ok(None) => {}
            Ok(Some(_)) if self.tun_writer.is_none() => state.counters.count_drop(Drop::NoTun, 1),
            Ok(Some(length)) => {
                state.counters.tun_tx_packets += 1;
                self.coalescer.push(self.receiver.arena(), opened.at, length);
            }
        }
    }

    /// Write the collected packets to the TUN. The arena is free for the next receive afterwards.
    fn flush(&mut self, state: &mut State) {
        if let Some(tun_writer) = &mut self.tun_writer {
            tun_writer.flush(state, self.receiver.arena(), &mut self.coalescer);
        }
    }
}

/// Open a transport message in place. Return None for every other datagram, which is posted to the tunnel, or dropped
/// and counted.
///
/// `last_lookup` caches the index lookup across the datagrams of one receive slot, which usually have the same index.
fn open(
    state: &mut State,
    datagram: &mut [u8],
    meta: &Meta,
    at: usize,
    now: f64,
    last_lookup: &mut Option<(u32, Option<KeypairHandle>)>,
) -> Option<Opened> {
    if !meta.address.can_be_answered() {
        state.counters.count_drop(Drop::Malformed, 1);
        return None;
    }
    let (receiver, counter) = match wire::parse(datagram) {
        Message::Transport { receiver, counter } => (receiver, counter),
        Message::Malformed => {
            state.counters.count_drop(Drop::Malformed, 1);
            return None;
        }
        Message::Other => {
            if let Some(endpoint) = meta.address.to_socket_addr()
                && !state.events.post_datagram(datagram, endpoint, meta.source)
            {
                state.counters.count_drop(Drop::HandshakeQueueFull, 1);
            }
            return None;
        }
    };
    let handle = match *last_lookup {
        Some((index, handle)) if index == receiver => handle,
        _ => {
            let handle = state.keypairs.lookup(receiver);
            *last_lookup = Some((receiver, handle));
            handle
        }
    };
    let Some(handle) = handle else {
        state.counters.count_drop(Drop::UnknownIndex, 1);
        return None;
    };
    let keypair = state.keypairs.get_mut(handle);
    let expired = now >= keypair.birth + state.timing.reject_after_time;
    let opened = if expired || counter >= keypair.suite.reject_after_messages() {
        Err(Drop::ExpiredKeypair)
    } else if !keypair.window.is_fresh(counter) {
        Err(Drop::Replayed)
    } else if keypair.receive.open(counter, &mut datagram[wire::HEADER..]).is_err() {
        Err(Drop::BadTag)
    } else {
        keypair.window.mark(counter);
        Ok(keypair.peer)
    };
    match opened {
        Ok(peer) => {
            let entry = state.peers.get_mut(peer);
            entry.rx_bytes += datagram.len() as u64;
            entry.rx_packets += 1;
            let length = datagram.len() - wire::SHORTEST;
            Some(Opened { peer, keypair: handle, at: at + wire::HEADER, length })
        }
        Err(reason) => {
            state.counters.count_drop(reason, 1);
            None
        }
    }
}

/// Move the peer's endpoint to the sender of an authenticated message (roaming, whitepaper §2.1), and its source to
/// the address the message arrived at. With roaming off, only post `EndpointMoved`, once per foreign endpoint.
fn update_endpoint(state: &mut State, handle: usize, meta: &Meta) {
    let peer = state.peers.get_mut(handle);
    if meta.address == peer.address {
        peer.source = meta.source;
        return;
    }
    let Some(endpoint) = meta.address.to_socket_addr() else { return };
    if peer.roaming {
        peer.set_endpoint(Some(endpoint));
        peer.source = meta.source;
    } else if peer.foreign_endpoint == meta.address {
        return;
    } else {
        peer.foreign_endpoint = meta.address;
    }
    let peer = peer.id;
    state.events.post(Event::EndpointMoved { peer, endpoint, source: meta.source });
}

/// Check the inner packet of an opened message: length, source, ECN (RFC 6040). Return its length for the TUN, or
/// None if it is a probe packet, which is posted to the tunnel.
///
/// # Errors
/// The reason for which the packet is dropped.
fn check_inner(state: &mut State, arena: &mut [u8], opened: &Opened, outer_ecn: u8) -> Result<Option<usize>, Drop> {
    let plain = &mut arena[opened.at..opened.at + opened.length];
    let length = packet::length(plain).ok_or(Drop::MalformedInner)?;
    let packet = &mut plain[..length];
    if !state.accepts_source(packet::source(packet), opened.peer) {
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
        let peer = state.peers.get(opened.peer).id;
        let queued = state.events.post_inner_packet(peer, packet, outer_ecn == packet::CE);
        return if queued { Ok(None) } else { Err(Drop::HandshakeQueueFull) };
    }
    Ok(Some(length))
}
