//! The outer UDP sockets: packets are sealed in place, leave in batches (UDP_SEGMENT), several per sendmmsg, and
//! batches that the kernel refuses are sent another way:
//!
//! * EIO, EINVAL: the socket supports no UDP_SEGMENT. Datagrams leave one by one from then on.
//! * EMSGSIZE: the path MTU is below the segment size, and the kernel does not fragment batches. Datagrams of that
//!   size leave one by one for this peer, until its endpoint or keypair changes.
//! * EINVAL, EADDRNOTAVAIL, ENODEV, ENETUNREACH with a chosen source: the source is gone. It is cleared, and the
//!   batch sent again from the address that the kernel chooses.
//! * ENOBUFS: tried once more.
//! * EAGAIN: the socket is full. All batches wait, [`Transmitter::blocked`] returns the socket, and the caller stops
//!   reading the TUN.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use crate::aead::TAG;
use crate::counters::Drop;
use crate::keypair::KeypairHandle;
use crate::state::State;
use crate::sys::{self, Outgoing, Pages, RawAddress, Source};
use crate::wire;

/// Bytes of the arena: five batches, so that batches can be filled across frames and still fit into a core's cache.
const ARENA: usize = 320 << 10;
/// Waiting batches after which the arena is flushed.
const MAX_BATCHES: usize = 64;
/// Bytes of the arena once a socket was full.
const ARENA_WAITING: usize = 1 << 20;
/// Limit of waiting batches while a socket is full.
const MAX_BATCHES_WAITING: usize = 8192;
/// Datagrams in a batch: UDP_MAX_SEGMENTS before Linux 6.9. Newer kernels accept 128, but receivers expect at most
/// 64: GRO never makes more, and wireguard-go on the same host has no buffers for more.
const MAX_SEGMENTS: usize = 64;
/// Bytes of a batch: 65,535 less the headers of IPv4 and UDP.
const MAX_TRAIN: usize = 65507;
/// Waiting bytes from which complete batches are sent although more can be read. A high value makes fewer calls, and
/// a receiver on the same host is woken for more data at a time.
const SEND_EARLY: usize = 224 << 10;
/// IP_PMTUDISC_PROBE, the same value for IPv6: set DF and ignore the kernel's estimate of the path MTU.
const PMTUDISC_PROBE: i32 = 3;
/// DS field of handshake messages: AF41, as the Linux kernel's WireGuard marks them (RFC 4594).
const AF41: u8 = 0x88;

/// Consecutive datagrams in the arena to one address, sent as one message.
#[derive(Clone, Copy, Debug)]
struct Batch {
    /// Offset in the arena.
    start: usize,
    /// Bytes of all datagrams.
    length: usize,
    /// Bytes of each datagram but the last, which may be shorter.
    segment: usize,
    count: usize,
    /// Handle of the peer; None for raw datagrams, and after the peer was removed.
    peer: Option<usize>,
    address: RawAddress,
    source: Option<Source>,
    traffic_class: u8,
    outer_df: bool,
    /// No datagram can be appended: the last one was shorter, or UDP_SEGMENT is not used.
    closed: bool,
}

/// The keypair and outer header fields of a packet to seal.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    pub peer: usize,
    pub keypair: KeypairHandle,
    /// ECN field of the outer header.
    pub ecn: u8,
    pub outer_df: bool,
}

/// The sending side of the two outer sockets, whose descriptors belong to the caller.
///
/// Invariant: batches lie in the arena in order, without gaps, up to `fill`.
pub struct Transmitter {
    /// Sealed datagrams, one after the other.
    arena: Pages,
    /// Offset of the first free byte.
    fill: usize,
    /// In the order in which they leave.
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
    /// Send on these descriptors from now on. Batches that wait for the ones before are dropped.
    pub fn set_sockets(&mut self, state: &mut State, v4: Option<RawFd>, v6: Option<RawFd>) {
        self.drop_waiting(state);
        (self.v4, self.v6) = (v4, v6);
    }

    /// Return the socket that is full, if one is. The caller calls `resume` once it is writable.
    #[must_use]
    pub fn blocked(&self) -> Option<RawFd> {
        self.blocked
    }

    /// Send the waiting batches: the full socket is writable again.
    pub fn resume(&mut self, state: &mut State) {
        self.blocked = None;
        self.flush(state);
    }

    /// Drop all waiting batches, counted as `SendFailed`.
    pub fn drop_waiting(&mut self, state: &mut State) {
        let waiting = self.batches.iter().map(|batch| batch.count).sum();
        state.counters.count_drop(Drop::SendFailed, waiting);
        self.batches.clear();
        self.fill = 0;
        self.blocked = None;
    }

    /// Split the batches that wait for a full socket into single datagrams, if UDP_SEGMENT is no longer allowed.
    pub fn offloads_changed(&mut self, state: &State) {
        if !state.offloads.udp_gso {
            self.batches = self.batches.iter().flat_map(Batch::split).collect();
        }
    }

    /// Remove the handle of a removed peer from waiting batches, which still leave.
    pub fn detach_peer(&mut self, handle: usize) {
        for batch in &mut self.batches {
            if batch.peer == Some(handle) {
                batch.peer = None;
            }
        }
    }

    /// Seal one packet of `length` bytes, which `write` writes in place; 0 for a keepalive. It leaves with the next
    /// flush at the latest. Dropped as `SendFailed` if there is no room while a socket is full.
    ///
    /// The caller has checked with `State::sending_keypair` that the keypair may send.
    pub fn seal(&mut self, state: &mut State, to: Envelope, length: usize, now: f64, write: impl FnOnce(&mut [u8])) {
        let padded = state.padded_length(length);
        let total = wire::HEADER + padded + TAG;
        if !self.make_room(state, total) {
            state.counters.count_drop(Drop::SendFailed, 1);
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
        let peer = state.peers.get_mut(to.peer);
        peer.tx_bytes += total as u64;
        peer.tx_packets += 1;
        state.note_sent(to.peer, length > 0, now);
    }

    /// Send a raw datagram (handshake message, cookie reply) at once, or let it wait if the socket is full.
    pub fn send_datagram(&mut self, state: &mut State, data: &[u8], endpoint: SocketAddr, source: Option<Source>) {
        if !self.make_room(state, data.len()) {
            state.counters.count_drop(Drop::SendFailed, 1);
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
            address: RawAddress::from(endpoint),
            source,
            traffic_class: AF41,
            outer_df: false,
            closed: true,
        });
        self.flush(state);
    }

    /// Make room in the arena for a datagram of `total` bytes, by flushing, compacting or growing it. Return false if
    /// there is none.
    ///
    /// While a socket is full, the limits leave room for the frame in hand and for datagrams of the tunnel.
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

    /// Move the waiting batches to the front of the arena.
    fn compact(&mut self) {
        let gone = self.batches.first().map_or(self.fill, |first| first.start);
        self.arena.copy_within(gone..self.fill, 0);
        self.fill -= gone;
        for batch in &mut self.batches {
            batch.start -= gone;
        }
    }

    /// Append the sealed datagram at `fill` to the last batch, or begin a new one.
    fn enqueue(&mut self, state: &State, to: Envelope, total: usize) {
        let start = self.fill;
        self.fill += total;
        let peer = state.peers.get(to.peer);
        let gso = state.offloads.udp_gso && total < peer.gso_limit && !to.outer_df;
        if let Some(last) = self.batches.last_mut()
            && gso
            && last.can_append(total)
            && last.peer == Some(to.peer)
            && last.traffic_class == to.ecn
            && last.address == peer.address
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
            address: peer.address,
            source: peer.source,
            traffic_class: to.ecn,
            outer_df: to.outer_df,
            closed: !gso,
        });
    }

    /// Send the batches that are complete, if [`SEND_EARLY`] bytes wait. The last batch stays if it can still grow.
    pub fn flush_full(&mut self, state: &mut State) {
        let Some((first, last)) = self.batches.first().zip(self.batches.last()) else { return };
        if self.fill - first.start < SEND_EARLY || self.blocked.is_some() {
            return;
        }
        let open = last.can_append(last.segment);
        self.send_first(state, self.batches.len() - usize::from(open));
    }

    /// Send all batches, unless a socket is full.
    pub fn flush(&mut self, state: &mut State) {
        if self.blocked.is_none() {
            self.send_first(state, self.batches.len());
        }
    }

    /// Send the first `count` batches in order, until a socket is full.
    fn send_first(&mut self, state: &mut State, count: usize) {
        let mut done = 0;
        while done < count && self.blocked.is_none() {
            let first = self.batches[done];
            let Some(fd) = self.socket(&first.address) else {
                state.counters.count_drop(Drop::SendFailed, first.count);
                done += 1;
                continue;
            };
            let together = self.sendable_together(&self.batches[done..count]);
            match self.send_once(state, fd, &self.batches[done..done + together]) {
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

    /// Return how many of the first batches one sendmmsg can send: same socket, and no socket option to change.
    fn sendable_together(&self, batches: &[Batch]) -> usize {
        let first = &batches[0];
        if first.outer_df {
            return 1;
        }
        batches.iter().take_while(|batch| batch.address.is_v6() == first.address.is_v6() && !batch.outer_df).count()
    }

    /// Return the socket for an address.
    fn socket(&self, address: &RawAddress) -> Option<RawFd> {
        if address.is_v6() { self.v6 } else { self.v4 }
    }

    /// Send batches by one system call. Return how many of them left, or the errno of the first.
    fn send_once(&self, state: &mut State, fd: RawFd, batches: &[Batch]) -> Result<usize, i32> {
        let send = || sys::send(fd, batches.len(), |index| self.outgoing(&batches[index]));
        state.counters.udp_writes += 1;
        let sent = if batches[0].outer_df { send_unfragmented(fd, batches[0].address.is_v6(), send) } else { send() };
        match sent {
            Ok(sent) => {
                let datagrams: usize = batches[..sent].iter().map(|batch| batch.count).sum();
                state.counters.udp_tx_datagrams += datagrams as u64;
                Ok(sent)
            }
            Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// Return a batch as the message of sendmmsg.
    fn outgoing(&self, batch: &Batch) -> Outgoing<'_> {
        Outgoing {
            address: batch.address,
            data: &self.arena[batch.start..batch.start + batch.length],
            segment: if batch.count > 1 { batch.segment as u16 } else { 0 },
            traffic_class: batch.traffic_class,
            source: batch.source,
        }
    }

    /// Send a refused batch another way, by the rules of the module documentation, or count it as lost. Return false
    /// if it has to wait for a full socket.
    fn recover(&mut self, state: &mut State, fd: RawFd, mut batch: Batch, mut code: i32) -> bool {
        if batch.source.is_some()
            && matches!(code, libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENETUNREACH)
        {
            self.clear_source(state, &batch);
            batch.source = None;
            match self.send_once(state, fd, &[batch]) {
                Ok(_) => return true,
                Err(next) => code = next,
            }
        }
        if code == libc::ENOBUFS {
            match self.send_once(state, fd, &[batch]) {
                Ok(_) => return true,
                Err(next) => code = next,
            }
        }
        if code == libc::EAGAIN {
            self.blocked = Some(fd);
            return false;
        }
        if batch.count > 1 && matches!(code, libc::EIO | libc::EINVAL | libc::EMSGSIZE) {
            self.send_one_by_one(state, fd, &batch, code);
        } else {
            state.counters.count_drop(Drop::SendFailed, batch.count);
        }
        true
    }

    /// Clear a refused source from its peer and from the waiting batches.
    fn clear_source(&mut self, state: &mut State, refused: &Batch) {
        if let Some(peer) = refused.peer {
            let peer = state.peers.get_mut(peer);
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

    /// Send the datagrams of a refused batch without UDP_SEGMENT. If that works, stop using it: for this segment size
    /// and peer (EMSGSIZE), or for good.
    fn send_one_by_one(&mut self, state: &mut State, fd: RawFd, batch: &Batch, code: i32) {
        let datagrams: Vec<Batch> = batch.split().collect();
        let mut rest = &datagrams[..];
        let mut lost = 0;
        while !rest.is_empty() {
            match self.send_once(state, fd, rest) {
                Ok(sent) => rest = &rest[sent..],
                // A lost datagram is not queued, also with EAGAIN: waiting for room would delay all other packets,
                // and the kernel accepted most of the batch just now.
                Err(_) => {
                    lost += 1;
                    rest = &rest[1..];
                }
            }
        }
        state.counters.count_drop(Drop::SendFailed, lost);
        if lost == batch.count {
            return; // UDP_SEGMENT was not the cause
        }
        if code == libc::EMSGSIZE {
            if let Some(peer) = batch.peer {
                let limit = &mut state.peers.get_mut(peer).gso_limit;
                *limit = batch.segment.min(*limit);
            }
        } else if state.offloads.udp_gso {
            state.disable_refused(|offloads| &mut offloads.udp_gso);
            state.counters.fallbacks.udp_gso += 1;
        }
    }
}

impl Batch {
    /// Return true if a datagram of `by` bytes can be appended.
    fn can_append(&self, by: usize) -> bool {
        !self.closed && by <= self.segment && self.count < MAX_SEGMENTS && self.length + by <= MAX_TRAIN
    }

    /// Return the datagrams of a batch as a batch each.
    fn split(&self) -> impl Iterator<Item = Batch> + use<> {
        let batch = *self;
        (0..batch.count).map(move |index| {
            let start = index * batch.segment;
            let length = (batch.length - start).min(batch.segment);
            Batch { start: batch.start + start, length, count: 1, ..batch }
        })
    }
}

/// Send with DF set. IPv4 has no control message for DF, so the socket option changes for the one call.
fn send_unfragmented(fd: RawFd, v6: bool, send: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) } else { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) };
    let before = sys::get_option(fd, level, option)?;
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
            address: RawAddress::default(),
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
