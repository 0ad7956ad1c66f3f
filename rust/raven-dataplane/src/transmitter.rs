//! Sealed datagrams on their way out: gathered into trains (UDP_SEGMENT) where they lie, sent in batches, and carried
//! over what the kernel refuses:
//!
//! * EIO, EINVAL: no train ever passes this socket. One by one from then on.
//! * EMSGSIZE: the path's MTU is below a segment, and trains are not fragmented. One by one for this peer, until it
//!   moves.
//! * a chosen source that is gone: forgotten, and sent again from wherever the kernel likes.
//! * EAGAIN: the socket is full. Everything waits, [`Transmitter::blocked`] says for which socket, and the TUN is not
//!   to be read meanwhile.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use crate::aead::TAG;
use crate::counters::Drop;
use crate::keypair::KeypairHandle;
use crate::state::State;
use crate::sys::{self, Outgoing, Pages, RawAddress, Source};
use crate::wire;

/// Sealed bytes that may wait. Five trains, so that they can be filled across frames and still lie in a core's cache.
const ARENA: usize = 320 << 10;
const MAX_BATCHES: usize = 64;
/// The same while a socket is full.
const ARENA_WAITING: usize = 1 << 20;
const MAX_BATCHES_WAITING: usize = 8192;
/// UDP_MAX_SEGMENTS before Linux 6.9. Newer kernels take 128, but receivers count on 64: GRO never makes more, and
/// wireguard-go on the same host has no room for them.
const MAX_SEGMENTS: usize = 64;
/// Of a train: 65,535 less the headers of IPv4 and UDP.
const MAX_TRAIN: usize = 65507;
/// Once this much waits, what can't grow any more is sent, though there is more to read: fewer calls, and whoever
/// receives on the same host is woken for more at a time.
const SEND_EARLY: usize = 224 << 10;
/// IP_PMTUDISC_PROBE, alike for IPv6: DF set, whatever the kernel believes about the path.
const PMTUDISC_PROBE: i32 = 3;
/// DS field of handshake messages, as the Linux kernel marks them (RFC 4594's class for such).
const AF41: u8 = 0x88;

/// Consecutive datagrams to one address.
#[derive(Clone, Copy, Debug)]
struct Batch {
    start: usize,
    length: usize,
    /// Bytes of all but the last.
    segment: usize,
    count: usize,
    /// None for raw datagrams, and when the peer is gone.
    peer: Option<usize>,
    name: RawAddress,
    source: Option<Source>,
    traffic_class: u8,
    outer_df: bool,
    /// Nothing may follow, as the last one was shorter or trains are not to be.
    closed: bool,
}

/// How a packet is to leave.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    pub peer: usize,
    pub keypair: KeypairHandle,
    /// Of the outer header.
    pub ecn: u8,
    pub outer_df: bool,
}

pub struct Transmitter {
    arena: Pages,
    fill: usize,
    batches: Vec<Batch>,
    v4: Option<RawFd>,
    v6: Option<RawFd>,
    blocked: Option<RawFd>,
}

impl Default for Transmitter {
    fn default() -> Self {
        Self {
            arena: Pages::new(ARENA),
            fill: 0,
            batches: Vec::with_capacity(MAX_BATCHES + 1),
            v4: None,
            v6: None,
            blocked: None,
        }
    }
}

impl Transmitter {
    pub fn use_sockets(&mut self, state: &mut State, v4: Option<RawFd>, v6: Option<RawFd>) {
        self.abandon(state);
        (self.v4, self.v6) = (v4, v6);
    }

    /// The socket that is full, if one is: call `resume` once it is writable.
    #[must_use]
    pub fn blocked(&self) -> Option<RawFd> {
        self.blocked
    }

    pub fn resume(&mut self, state: &mut State) {
        self.blocked = None;
        self.flush(state);
    }

    /// Drops what waits: nothing may leave any more.
    pub fn abandon(&mut self, state: &mut State) {
        let waiting = self.batches.iter().map(|batch| batch.count).sum();
        state.counters.drop(Drop::SendFailed, waiting);
        self.batches.clear();
        self.fill = 0;
        self.blocked = None;
    }

    /// Takes batches apart that wait for a full socket, if UDP_SEGMENT is no longer allowed.
    pub fn offloads_changed(&mut self, state: &State) {
        if !state.offloads.udp_gso {
            self.batches = self.batches.iter().flat_map(Batch::singles).collect();
        }
    }

    /// The peer at this place is no more; what was sealed for it may still go.
    pub fn forget_peer(&mut self, handle: usize) {
        for batch in &mut self.batches {
            if batch.peer == Some(handle) {
                batch.peer = None;
            }
        }
    }

    /// Seals one packet of `length` bytes, which `write` puts in place; 0 for a keepalive. It leaves with the next
    /// flush at the latest.
    pub fn seal(&mut self, state: &mut State, to: Envelope, length: usize, now: f64, write: impl FnOnce(&mut [u8])) {
        let padded = state.padded(length);
        let total = wire::HEADER + padded + TAG;
        if !self.make_room(state, total) {
            state.counters.drop(Drop::SendFailed, 1);
            return;
        }
        let slot = &mut self.arena[self.fill..self.fill + total];
        let keypair = state.keypairs.get_mut(to.keypair);
        let counter = keypair.counter;
        keypair.counter += 1;
        let (header, rest) = slot.split_at_mut(wire::HEADER);
        header.copy_from_slice(&wire::pack(keypair.remote_index, counter));
        write(&mut rest[..length]);
        rest[length..padded].fill(0);
        keypair.send.seal(counter, rest);
        self.enqueue(state, to, total);
        let peer = state.peers.at_mut(to.peer);
        peer.tx_bytes += total as u64;
        peer.tx_packets += 1;
        state.note_sent(to.peer, length > 0, now);
    }

    /// A raw datagram (handshake messages, cookies), sent at once.
    pub fn send_datagram(&mut self, state: &mut State, data: &[u8], endpoint: SocketAddr, source: Option<Source>) {
        if !self.make_room(state, data.len()) {
            state.counters.drop(Drop::SendFailed, 1);
            return;
        }
        let start = self.fill;
        self.arena[start..start + data.len()].copy_from_slice(data);
        self.fill += data.len();
        self.batches.push(Batch {
            start,
            length: data.len(),
            segment: data.len(),
            count: 1,
            peer: None,
            name: RawAddress::from(endpoint),
            source,
            traffic_class: AF41,
            outer_df: false,
            closed: true,
        });
        self.flush(state);
    }

    /// Whether another datagram of `total` bytes can be taken in, after sending what waits if need be. While a socket
    /// is full there is room for the frame in hand and what the tunnel says, within limits.
    fn make_room(&mut self, state: &mut State, total: usize) -> bool {
        if self.arena.len() - self.fill < total || self.batches.len() >= MAX_BATCHES {
            self.flush(state);
        }
        if self.arena.len() - self.fill < total {
            self.compact();
        }
        if self.arena.len() - self.fill < total && self.arena.len() < ARENA_WAITING {
            let mut wider = Pages::new(ARENA_WAITING);
            wider[..self.fill].copy_from_slice(&self.arena[..self.fill]);
            self.arena = wider;
        }
        self.arena.len() - self.fill >= total && self.batches.len() < MAX_BATCHES_WAITING
    }

    /// Moves what waits to the front of the arena.
    fn compact(&mut self) {
        let gone = self.batches.first().map_or(self.fill, |first| first.start);
        self.arena.copy_within(gone..self.fill, 0);
        self.fill -= gone;
        for batch in &mut self.batches {
            batch.start -= gone;
        }
    }

    fn enqueue(&mut self, state: &State, to: Envelope, total: usize) {
        let start = self.fill;
        self.fill += total;
        let peer = state.peers.at(to.peer);
        let trains = state.offloads.udp_gso && total < peer.gso_limit && !to.outer_df;
        if let Some(last) = self.batches.last_mut()
            && trains
            && last.may_grow(total)
            && last.peer == Some(to.peer)
            && last.traffic_class == to.ecn
            && last.name == peer.name
        {
            last.length += total;
            last.count += 1;
            last.closed = total < last.segment;
            return;
        }
        self.batches.push(Batch {
            start,
            length: total,
            segment: total,
            count: 1,
            peer: Some(to.peer),
            name: peer.name,
            source: peer.source,
            traffic_class: to.ecn,
            outer_df: to.outer_df,
            closed: !trains,
        });
    }

    /// Sends what can't grow any more, if it is worth a call; the last train may stay.
    pub fn flush_full(&mut self, state: &mut State) {
        let Some((first, last)) = self.batches.first().zip(self.batches.last()) else { return };
        if self.fill - first.start < SEND_EARLY || self.blocked.is_some() {
            return;
        }
        let open = last.may_grow(last.segment);
        self.send_first(state, self.batches.len() - usize::from(open));
    }

    /// Sends everything, unless a socket is full.
    pub fn flush(&mut self, state: &mut State) {
        if self.blocked.is_none() {
            self.send_first(state, self.batches.len());
        }
    }

    fn send_first(&mut self, state: &mut State, count: usize) {
        let mut done = 0;
        while done < count && self.blocked.is_none() {
            let first = self.batches[done];
            let Some(fd) = self.socket(&first.name) else {
                state.counters.drop(Drop::SendFailed, first.count);
                done += 1;
                continue;
            };
            let run = self.run_of_one_kind(&self.batches[done..count]);
            match self.attempt(state, fd, &self.batches[done..done + run]) {
                Ok(sent) => done += sent,
                Err(code) => {
                    if self.recover(state, fd, first, code) {
                        done += 1;
                    }
                }
            }
        }
        self.batches.drain(..done);
        if self.batches.is_empty() {
            self.fill = 0;
        }
    }

    /// How many of these go to the same socket and need no option changed.
    fn run_of_one_kind(&self, batches: &[Batch]) -> usize {
        let first = &batches[0];
        if first.outer_df {
            return 1;
        }
        batches.iter().take_while(|batch| batch.name.is_v6() == first.name.is_v6() && !batch.outer_df).count()
    }

    fn socket(&self, name: &RawAddress) -> Option<RawFd> {
        if name.is_v6() { self.v6 } else { self.v4 }
    }

    /// One system call for batches of one kind; how many of them left, or the error of the first.
    fn attempt(&self, state: &mut State, fd: RawFd, batches: &[Batch]) -> Result<usize, i32> {
        let send = || sys::send(fd, batches.len(), |index| self.outgoing(&batches[index]));
        state.counters.udp_writes += 1;
        let sent = if batches[0].outer_df { with_df(fd, batches[0].name.is_v6(), send) } else { send() };
        match sent {
            Ok(sent) => {
                let datagrams: usize = batches[..sent].iter().map(|batch| batch.count).sum();
                state.counters.udp_tx_datagrams += datagrams as u64;
                Ok(sent)
            }
            Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    fn outgoing(&self, batch: &Batch) -> Outgoing<'_> {
        Outgoing {
            name: batch.name,
            data: &self.arena[batch.start..batch.start + batch.length],
            segment: if batch.count > 1 { batch.segment as u16 } else { 0 },
            traffic_class: batch.traffic_class,
            source: batch.source,
        }
    }

    /// The kernel refused a batch: sends it another way, or counts it as lost. False if it has to wait.
    fn recover(&mut self, state: &mut State, fd: RawFd, mut batch: Batch, mut code: i32) -> bool {
        if batch.source.is_some()
            && matches!(code, libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENETUNREACH)
        {
            self.clear_source(state, &batch);
            batch.source = None;
            match self.attempt(state, fd, &[batch]) {
                Ok(_) => return true,
                Err(next) => code = next,
            }
        }
        if code == libc::ENOBUFS {
            match self.attempt(state, fd, &[batch]) {
                Ok(_) => return true,
                Err(next) => code = next,
            }
        }
        if code == libc::EAGAIN {
            self.blocked = Some(fd);
            return false;
        }
        if batch.count > 1 && matches!(code, libc::EIO | libc::EINVAL | libc::EMSGSIZE) {
            self.give_up_gso(state, fd, &batch, code);
        } else {
            state.counters.drop(Drop::SendFailed, batch.count);
        }
        true
    }

    fn clear_source(&mut self, state: &mut State, refused: &Batch) {
        if let Some(peer) = refused.peer {
            let peer = state.peers.at_mut(peer);
            if peer.source == refused.source {
                peer.source = None;
            }
        }
        for batch in &mut self.batches {
            if batch.source == refused.source {
                batch.source = None;
            }
        }
    }

    /// The kernel takes no such train: datagram by datagram.
    fn give_up_gso(&mut self, state: &mut State, fd: RawFd, batch: &Batch, code: i32) {
        let singles: Vec<Batch> = batch.singles().collect();
        let mut rest = &singles[..];
        let mut lost = 0;
        while !rest.is_empty() {
            match self.attempt(state, fd, rest) {
                Ok(sent) => rest = &rest[sent..],
                // Waiting for room here would hold up all else; the kernel took most of a train just now.
                Err(_) => {
                    lost += 1;
                    rest = &rest[1..];
                }
            }
        }
        state.counters.drop(Drop::SendFailed, lost);
        if lost == batch.count {
            return; // it was not the train
        }
        if code == libc::EMSGSIZE {
            if let Some(peer) = batch.peer {
                let limit = &mut state.peers.at_mut(peer).gso_limit;
                *limit = batch.segment.min(*limit);
            }
        } else if state.offloads.udp_gso {
            state.give_up(|offloads| &mut offloads.udp_gso);
            state.counters.fallbacks.udp_gso += 1;
        }
    }
}

impl Batch {
    fn may_grow(&self, by: usize) -> bool {
        !self.closed && by <= self.segment && self.count < MAX_SEGMENTS && self.length + by <= MAX_TRAIN
    }

    fn singles(&self) -> impl Iterator<Item = Batch> + use<> {
        let batch = *self;
        (0..batch.count).map(move |index| {
            let start = index * batch.segment;
            let length = (batch.length - start).min(batch.segment);
            Batch { start: batch.start + start, length, count: 1, ..batch }
        })
    }
}

/// Sends with DF set; IPv4 has no control message for that, so the socket's setting changes for one call.
fn with_df(fd: RawFd, v6: bool, send: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) } else { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) };
    let before = sys::option(fd, level, option)?;
    sys::set_option(fd, level, option, PMTUDISC_PROBE)?;
    let sent = send();
    sys::set_option(fd, level, option, before)?;
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Offloads;
    use crate::state::Timing;

    #[test]
    fn batches_that_wait_are_split_when_gso_is_switched_off() {
        let mut state = State::new(Timing::default(), Offloads::default());
        let mut transmitter = Transmitter::default();
        transmitter.batches.push(Batch {
            start: 0,
            length: 250,
            segment: 100,
            count: 3,
            peer: None,
            name: RawAddress::default(),
            source: None,
            traffic_class: 0,
            outer_df: false,
            closed: true,
        });
        transmitter.fill = 250;
        transmitter.offloads_changed(&state);
        assert_eq!(transmitter.batches.len(), 1);
        state.allow_offloads(Offloads { udp_gso: false, ..Offloads::default() });
        transmitter.offloads_changed(&state);
        let parts: Vec<_> = transmitter.batches.iter().map(|batch| (batch.start, batch.length, batch.count)).collect();
        assert_eq!(parts, [(0, 100, 1), (100, 100, 1), (200, 50, 1)]);
    }
}
