//! Frames for the TUN: what was joined with one header, the rest as it came, several in one system call.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::RawFd;

use crate::coalesce::{Coalescer, HEADER_ROOM, MAX_SEGMENTS, Output};
use crate::counters::Drop;
use crate::state::State;
use crate::sys::{self, Outcome, UringWriter, WRITES};
use crate::virtio_net;

/// Superpackets the TUN may refuse in a row before joining is given up.
const REFUSALS: u32 = 3;

pub struct TunWriter {
    tun: RawFd,
    /// Made when it is first needed; if the kernel has none to give, it is done without.
    uring: Option<UringWriter>,
    headers: Box<[[u8; HEADER_ROOM]; WRITES]>,
    /// In a row.
    refusals: u32,
}

impl TunWriter {
    #[must_use]
    pub fn new(tun: RawFd) -> Self {
        Self { tun, uring: None, headers: Box::new([[0; HEADER_ROOM]; WRITES]), refusals: 0 }
    }

    /// Writes what was collected of `arena`, in order, and forgets it.
    pub fn flush(&mut self, state: &mut State, arena: &[u8], coalescer: &mut Coalescer) {
        let mut done = 0;
        while done < coalescer.outputs().len() {
            let many = (coalescer.outputs().len() - done).min(WRITES);
            if many > 1 && self.has_uring(state) {
                self.write_together(state, arena, coalescer, done..done + many);
                done += many;
            } else {
                self.write_one(state, arena, &coalescer.output(done));
                done += 1;
            }
        }
        coalescer.clear();
        if self.refusals >= REFUSALS {
            self.refusals = 0;
            (coalescer.tcp, coalescer.udp) = (state.offloads.tun_gro, state.offloads.tun_gro_udp);
        }
    }

    /// Closes the ring if several frames a call are no longer allowed.
    pub fn offloads_changed(&mut self, state: &State) {
        if !state.offloads.tun_batch {
            self.uring = None;
        }
    }

    fn has_uring(&mut self, state: &mut State) -> bool {
        if state.offloads.tun_batch && self.uring.is_none() {
            self.uring = UringWriter::new().ok();
            if self.uring.is_none() {
                state.give_up(|offloads| &mut offloads.tun_batch);
            }
        }
        state.offloads.tun_batch
    }

    fn write_together(&mut self, state: &mut State, arena: &[u8], coalescer: &Coalescer, chosen: Range<usize>) {
        let Some(mut uring) = self.uring.take() else { return };
        let mut lengths = [0; WRITES];
        for ((length, header), index) in lengths.iter_mut().zip(self.headers.iter_mut()).zip(chosen.clone()) {
            *length = coalescer.output(index).write_header(arena, header);
        }
        let headers = &self.headers;
        let outcomes = uring.write(self.tun, chosen.len(), |index, parts| {
            let output = coalescer.output(chosen.start + index);
            parts.push(IoSlice::new(&headers[index][..lengths[index]]));
            parts.extend(output.slices(arena));
        });
        state.counters.tun_writes += 1;
        for (outcome, index) in outcomes.iter().zip(chosen) {
            let output = coalescer.output(index);
            match outcome {
                Outcome::Written => self.conclude(state, arena, &output, Ok(())),
                Outcome::Failed(code) => self.conclude(state, arena, &output, Err(*code)),
                Outcome::Untried => {
                    state.give_up(|offloads| &mut offloads.tun_batch);
                    self.write_one(state, arena, &output);
                }
            }
        }
        if state.offloads.tun_batch {
            self.uring = Some(uring);
        }
    }

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
        self.conclude(state, arena, output, written);
    }

    /// EINVAL may be because it was joined: its packets are written one by one then.
    fn conclude(&mut self, state: &mut State, arena: &[u8], output: &Output<'_>, written: Result<(), i32>) {
        let joined = output.count() > 1;
        match written {
            Err(libc::EINVAL) if joined => {
                // They come behind what was written together with them. Once is enough: other kernels take them.
                state.give_up(|offloads| &mut offloads.tun_batch);
                self.refusals += 1;
                if self.refusals == REFUSALS {
                    give_up_joining(state, output.is_tcp());
                }
                for (at, length) in output.packets() {
                    state.counters.tun_writes += 1;
                    let packet = IoSlice::new(&arena[at..at + length]);
                    if sys::write(self.tun, &[IoSlice::new(&[0; virtio_net::LEN]), packet]).is_err() {
                        lose(state, 1);
                    }
                }
            }
            _ => {
                if joined {
                    self.refusals = 0;
                }
                if written.is_err() {
                    lose(state, output.count());
                }
            }
        }
    }
}

fn lose(state: &mut State, count: usize) {
    state.counters.drop(Drop::TunWriteFailed, count);
    state.counters.tun_tx_packets -= count as u64;
}

fn give_up_joining(state: &mut State, tcp: bool) {
    if tcp {
        state.give_up(|offloads| &mut offloads.tun_gro);
        state.counters.fallbacks.tun_gro += 1;
    } else {
        state.give_up(|offloads| &mut offloads.tun_gro_udp);
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

    /// No kernel at hand refuses what is right, so the refusal is told; descriptors and packets are real.
    #[test]
    fn a_superpacket_that_was_refused_among_others_is_written_packet_by_packet() {
        let (inside, wire) = UnixDatagram::pair().expect("a socket pair");
        let mut state = State::new(Timing::default(), Offloads::default());
        let flow = Flow { v6: false, port: 7 };
        let packets = [flow.tcp(1, ACK, &[1; 100]), flow.tcp(101, ACK, &[2; 100])];
        let arena = packets.concat();
        let mut coalescer = Coalescer::new(true, true);
        coalescer.push(&arena, 0, packets[0].len());
        coalescer.push(&arena, packets[0].len(), packets[1].len());
        assert_eq!(coalescer.outputs().len(), 1, "they join");
        let mut tun_writer = TunWriter::new(inside.as_raw_fd());
        tun_writer.conclude(&mut state, &arena, &coalescer.output(0), Err(libc::EINVAL));
        for packet in &packets {
            let mut frame = [0; 256];
            let length = wire.recv(&mut frame).expect("a frame");
            assert_eq!(frame[..virtio_net::LEN], [0; virtio_net::LEN]);
            assert_eq!(&frame[virtio_net::LEN..length], packet);
        }
        assert!(!state.offloads.tun_batch, "what comes next is not to overtake them again");
        assert!(state.offloads.tun_gro, "once is no reason to give that up");
        assert_eq!(state.counters.drops, [0; Drop::ALL.len()]);
    }
}
