//! From the TUN to the outer world: read, split, find the peer, seal, send in trains.

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

/// What a frame costs of a budget, however short it is.
const BYTES_A_FRAME: usize = 4096;
const MAX_FRAME: usize = virtio_net::LEN + 65535 + packet::IPV6_HEADER;

pub struct Outbound {
    frame: Pages,
    tun: RawFd,
}

impl Outbound {
    #[must_use]
    pub fn new(tun: RawFd) -> Self {
        Self { frame: Pages::new(MAX_FRAME), tun }
    }

    #[must_use]
    pub fn tun(&self) -> RawFd {
        self.tun
    }

    /// Moves up to `budget` bytes, small frames counted as 4 KiB; false when the TUN will never be readable again. It
    /// is read until it is empty before the last datagrams are sent: small packets travel together.
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
            spent += end.max(BYTES_A_FRAME);
            self.forward(state, transmitter, end, now);
            transmitter.flush_full(state);
        }
        transmitter.flush(state);
        alive
    }

    fn forward(&self, state: &mut State, transmitter: &mut Transmitter, end: usize, now: f64) {
        let Some((header, frame)) = self.frame[..end].split_first_chunk().filter(|(_, frame)| packet::is_ip(frame))
        else {
            state.counters.drop(Drop::NotIp, 1);
            return;
        };
        let header = virtio_net::Header::parse(header);
        let Ok(segmentation) = Segmentation::new(&header, frame) else {
            state.counters.drop(Drop::BadOffload, 1);
            return;
        };
        state.counters.tun_rx_packets += segmentation.count() as u64;
        let Some(peer) = state.route(packet::destination(frame)) else {
            state.counters.drop(Drop::NoRoute, segmentation.count());
            return;
        };
        if state.peers.at(peer).endpoint.is_none() {
            state.counters.drop(Drop::NoEndpoint, segmentation.count());
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

/// Seals one packet, or lets it wait for a key; an empty one is a keepalive, which never waits. The caller flushes.
pub fn send_or_stage(state: &mut State, transmitter: &mut Transmitter, peer: usize, staged: Staged, now: f64) {
    if state.peers.at(peer).endpoint.is_none() {
        state.counters.drop(Drop::NoEndpoint, 1);
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

/// Sends what waited for a keypair; false if nothing did.
pub fn send_staged(state: &mut State, transmitter: &mut Transmitter, peer: usize, now: f64) -> bool {
    let count = state.peers.at(peer).staged.len();
    for _ in 0..count {
        if let Some(staged) = state.peers.at_mut(peer).staged.pop_front() {
            send_or_stage(state, transmitter, peer, staged, now);
        }
    }
    count > 0
}
