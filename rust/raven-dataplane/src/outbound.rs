//! Outbound packets, from the TUN to the sockets: read, segment, look up the peer, seal, send in batches.

use std::io;
use std::os::fd::RawFd;

use crate::counters::Drop;
use crate::packet;
use crate::peer::Staged;
use crate::segmentation::Segmentation;
use crate::state::State;
use crate::sys::{self, Pages};
use crate::transmitter::{Envelope, Transmitter};
use crate::virtio_net;

/// Least cost of a frame in bytes of budget: a short one takes as much time as this many bytes of a superpacket.
const MIN_FRAME_COST: usize = 4096;
/// Longest frame of the TUN: virtio-net header, and an IPv6 packet with the longest payload.
const MAX_FRAME: usize = virtio_net::LEN + 65535 + packet::IPV6_HEADER;

/// The outbound direction of a body: the TUN and the buffer of one frame.
pub struct Outbound {
    /// The frame in hand, at most [`MAX_FRAME`] bytes.
    frame: Pages,
    tun: RawFd,
}

impl Outbound {
    /// Make the outbound direction of this TUN.
    #[must_use]
    pub fn new(tun: RawFd) -> Self {
        Self { frame: Pages::new(MAX_FRAME), tun }
    }

    /// Return the TUN's descriptor.
    #[must_use]
    pub fn tun(&self) -> RawFd {
        self.tun
    }

    /// Forward up to `budget` bytes of frames, short ones counted as [`MIN_FRAME_COST`]. Return false if the TUN will
    /// never be readable again.
    ///
    /// The TUN is read until it is empty before the last batch is sent, so that small packets leave together. Stops
    /// when a socket is full.
    pub fn pump(&mut self, state: &mut State, transmitter: &mut Transmitter, now: f64, budget: usize) -> bool {
        let mut spent = 0;
        let mut alive = true;
        while spent < budget && transmitter.blocked().is_none() {
            let end = match sys::read(self.tun, &mut self.frame) {
                Ok(end) => end,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    let code = error.raw_os_error().unwrap_or(0);
                    alive = !matches!(code, libc::EBADFD | libc::EBADF | libc::EIO | libc::ENODEV);
                    break;
                }
            };
            if end == 0 {
                alive = false;
                break;
            }
            state.counters.tun_reads += 1;
            spent += end.max(MIN_FRAME_COST);
            self.forward(state, transmitter, end, now);
            transmitter.flush_full(state);
        }
        transmitter.flush(state);
        alive
    }

    /// Seal the packets of the frame in `self.frame[..end]`, or stage or drop them. The caller flushes.
    fn forward(&self, state: &mut State, transmitter: &mut Transmitter, end: usize, now: f64) {
        let Some((header, frame)) = self.frame[..end].split_first_chunk().filter(|(_, frame)| packet::is_ip(frame))
        else {
            state.counters.count_drop(Drop::NotIp, 1);
            return;
        };
        let header = virtio_net::Header::parse(header);
        let Ok(segmentation) = Segmentation::new(&header, frame) else {
            state.counters.count_drop(Drop::BadOffload, 1);
            return;
        };
        state.counters.tun_rx_packets += segmentation.count() as u64;
        let Some(peer) = state.lookup_route(packet::destination(frame)) else {
            state.counters.count_drop(Drop::NoRoute, segmentation.count());
            return;
        };
        if state.peers.get(peer).endpoint.is_none() {
            state.counters.count_drop(Drop::NoEndpoint, segmentation.count());
            return;
        }
        let Some(keypair) = state.sending_keypair(peer, segmentation.count(), now) else {
            for index in 0..segmentation.count() {
                let mut packet = vec![0; segmentation.packet_length(index)];
                segmentation.write(index, frame, &mut packet);
                send_or_stage(state, transmitter, peer, Staged { packet, outer_df: false }, now);
            }
            return;
        };
        let envelope = Envelope { peer, keypair, ecn: packet::ecn(frame), outer_df: false };
        for index in 0..segmentation.count() {
            transmitter.seal(state, envelope, segmentation.packet_length(index), now, |target| {
                segmentation.write(index, frame, target);
            });
        }
        state.renew_after_sending(peer, keypair, now);
    }
}

/// Seal one packet, or stage it if no keypair is usable. An empty packet is a keepalive, which is never staged. The
/// caller flushes.
pub fn send_or_stage(state: &mut State, transmitter: &mut Transmitter, peer: usize, staged: Staged, now: f64) {
    if state.peers.get(peer).endpoint.is_none() {
        state.counters.count_drop(Drop::NoEndpoint, 1);
        return;
    }
    let Some(keypair) = state.sending_keypair(peer, 1, now) else {
        state.stage(peer, staged, now);
        return;
    };
    let packet = &staged.packet;
    let envelope = Envelope { peer, keypair, ecn: packet::ecn(packet), outer_df: staged.outer_df };
    transmitter.seal(state, envelope, packet.len(), now, |target| target.copy_from_slice(packet));
    state.renew_after_sending(peer, keypair, now);
}

/// Seal the staged packets of a peer; return false if there were none. The caller flushes.
pub fn send_staged(state: &mut State, transmitter: &mut Transmitter, peer: usize, now: f64) -> bool {
    let count = state.peers.get(peer).staged.len();
    for _ in 0..count {
        if let Some(staged) = state.peers.get_mut(peer).staged.pop_front() {
            send_or_stage(state, transmitter, peer, staged, now);
        }
    }
    count > 0
}
