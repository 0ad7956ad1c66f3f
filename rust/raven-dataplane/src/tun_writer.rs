//! Writes to the TUN: superpackets and single packets, several per system call (io_uring) where the kernel allows it.
//!
//! A kernel that refuses superpackets gets their packets one by one; after [`MAX_REFUSALS`] in a row coalescing is
//! off.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::RawFd;

use crate::coalesce::{Coalescer, HEADER_ROOM, MAX_SEGMENTS, Output};
use crate::counters::Drop;
use crate::state::State;
use crate::sys::{self, Outcome, UringWriter, WRITES};
use crate::virtio_net;

/// Superpackets that the TUN may refuse in a row before coalescing of that protocol is switched off.
const MAX_REFUSALS: u32 = 3;

/// Writes frames to the TUN descriptor, which belongs to the caller.
pub struct TunWriter {
    tun: RawFd,
    /// Made when it is first needed. None also if `tun_batch` is off.
    uring: Option<UringWriter>,
    headers: Box<[[u8; HEADER_ROOM]; WRITES]>,
    /// Refused superpackets in a row.
    refusals: u32,
}

impl TunWriter {
    /// Make a writer without a ring.
    #[must_use]
    pub fn new(tun: RawFd) -> Self {
        Self { tun, uring: None, headers: Box::new([[0; HEADER_ROOM]; WRITES]), refusals: 0 }
    }

    /// Write all frames of `coalescer` in order, and clear it. Packets that the TUN refuses are dropped as
    /// `TunWriteFailed`.
    pub fn flush(&mut self, state: &mut State, arena: &[u8], coalescer: &mut Coalescer) {
        let mut done = 0;
        while done < coalescer.outputs().len() {
            let many = (coalescer.outputs().len() - done).min(WRITES);
            if many > 1 && self.has_uring(state) {
                self.write_batch(state, arena, coalescer, done..done + many);
                done += many;
            } else {
                self.write_one(state, arena, &coalescer.output(done));
                done += 1;
            }
        }
        coalescer.clear();
        if self.refusals >= MAX_REFUSALS {
            self.refusals = 0;
            (coalescer.tcp, coalescer.udp) = (state.offloads.tun_gro, state.offloads.tun_gro_udp);
        }
    }

    /// Apply a change of the allowed offloads: close the ring if `tun_batch` is off.
    pub fn offloads_changed(&mut self, state: &State) {
        if !state.offloads.tun_batch {
            self.uring = None;
        }
    }

    /// Return true if several frames can be written by one call; sets the ring up on first use, and switches
    /// `tun_batch` off if that fails.
    fn has_uring(&mut self, state: &mut State) -> bool {
        if state.offloads.tun_batch && self.uring.is_none() {
            self.uring = UringWriter::new().ok();
            if self.uring.is_none() {
                state.disable_refused(|offloads| &mut offloads.tun_batch);
            }
        }
        state.offloads.tun_batch
    }

    /// Write the outputs in `range` by one system call.
    fn write_batch(&mut self, state: &mut State, arena: &[u8], coalescer: &Coalescer, range: Range<usize>) {
        let Some(mut uring) = self.uring.take() else { return };
        let mut lengths = [0; WRITES];
        for ((length, header), index) in lengths.iter_mut().zip(self.headers.iter_mut()).zip(range.clone()) {
            *length = coalescer.output(index).write_header(arena, header);
        }
        let headers = &self.headers;
        let outcomes = uring.write(self.tun, range.len(), |index, parts| {
            let output = coalescer.output(range.start + index);
            parts.push(IoSlice::new(&headers[index][..lengths[index]]));
            parts.extend(output.slices(arena));
        });
        state.counters.tun_writes += 1;
        for (outcome, index) in outcomes.iter().zip(range) {
            let output = coalescer.output(index);
            match outcome {
                Outcome::Written => self.handle_result(state, arena, &output, Ok(())),
                Outcome::Failed(code) => self.handle_result(state, arena, &output, Err(*code)),
                Outcome::NotAttempted => {
                    state.disable_refused(|offloads| &mut offloads.tun_batch);
                    self.write_one(state, arena, &output);
                }
            }
        }
        if state.offloads.tun_batch {
            self.uring = Some(uring);
        }
    }

    /// Write one output by one system call.
    fn write_one(&mut self, state: &mut State, arena: &[u8], output: &Output<'_>) {
        let mut header = [0; HEADER_ROOM];
        let length = output.write_header(arena, &mut header);
        let mut parts = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
        parts[0] = IoSlice::new(&header[..length]);
        for (part, slice) in parts[1..].iter_mut().zip(output.slices(arena)) {
            *part = slice;
        }
        state.counters.tun_writes += 1;
        let written = sys::write(self.tun, &parts[..=output.count()])
            .map(|_| ())
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        self.handle_result(state, arena, output, written);
    }

    /// Handle the result of one frame. After EINVAL for a superpacket its packets are written one by one, because the
    /// kernel may refuse superpackets (Linux 6.6.44 did).
    fn handle_result(&mut self, state: &mut State, arena: &[u8], output: &Output<'_>, written: Result<(), i32>) {
        let joined = output.count() > 1;
        match written {
            Err(libc::EINVAL) if joined => {
                // The packets are written after frames of the same batch that follow them. So that this reordering
                // happens only once, batches are switched off: kernels without this defect do not get here.
                state.disable_refused(|offloads| &mut offloads.tun_batch);
                self.refusals += 1;
                if self.refusals == MAX_REFUSALS {
                    disable_gro(state, output.is_tcp());
                }
                for (at, length) in output.packets() {
                    state.counters.tun_writes += 1;
                    let packet = IoSlice::new(&arena[at..at + length]);
                    if sys::write(self.tun, &[IoSlice::new(&[0; virtio_net::LEN]), packet]).is_err() {
                        count_lost(state, 1);
                    }
                }
            }
            _ => {
                if joined {
                    self.refusals = 0;
                }
                if written.is_err() {
                    count_lost(state, output.count());
                }
            }
        }
    }
}

/// Count packets that the TUN refused; they were counted as written before.
fn count_lost(state: &mut State, count: usize) {
    state.counters.count_drop(Drop::TunWriteFailed, count);
    state.counters.tun_tx_packets -= count as u64;
}

/// Switch coalescing of TCP or UDP off for good.
fn disable_gro(state: &mut State, tcp: bool) {
    if tcp {
        state.disable_refused(|offloads| &mut offloads.tun_gro);
        state.counters.fallbacks.tun_gro += 1;
    } else {
        state.disable_refused(|offloads| &mut offloads.tun_gro_udp);
        state.counters.fallbacks.tun_gro_udp += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Offloads;
    use crate::state::Timing;
    use crate::test_packets::{ACK, Flow};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    /// The kernel's refusal is simulated, because current kernels accept valid superpackets. Descriptors and packets
    /// are real.
    #[test]
    fn a_superpacket_refused_within_a_batch_is_written_packet_by_packet() {
        let (inside, wire) = UnixDatagram::pair().expect("a socket pair");
        let mut state = State::new(Timing::default(), Offloads::default());
        let flow = Flow { v6: false, port: 7 };
        let packets = [flow.tcp(1, ACK, &[1; 100]), flow.tcp(101, ACK, &[2; 100])];
        let arena = packets.concat();
        let mut coalescer = Coalescer::new(true, true);
        coalescer.push(&arena, 0, packets[0].len());
        coalescer.push(&arena, packets[0].len(), packets[1].len());
        assert_eq!(coalescer.outputs().len(), 1, "the packets are coalesced");
        let mut tun_writer = TunWriter::new(inside.as_raw_fd());
        tun_writer.handle_result(&mut state, &arena, &coalescer.output(0), Err(libc::EINVAL));
        for packet in &packets {
            let mut frame = [0; 256];
            let length = wire.recv(&mut frame).expect("a frame");
            assert_eq!(frame[..virtio_net::LEN], [0; virtio_net::LEN]);
            assert_eq!(&frame[virtio_net::LEN..length], packet);
        }
        assert!(!state.offloads.tun_batch, "batches are off, so that later frames can not overtake again");
        assert!(state.offloads.tun_gro, "one refusal does not switch coalescing off");
        assert_eq!(state.counters.drops, [0; Drop::ALL.len()]);
    }
}
