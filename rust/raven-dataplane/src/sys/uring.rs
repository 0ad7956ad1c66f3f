//! Several writes by one system call: io_uring, used as nothing but that.
//!
//! What is woken by one frame (whoever reads the flow) gets the processor when the call ends, not after each frame.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, types};

/// Writes one call can hold.
pub const WRITES: usize = 64;

/// What became of one write of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// The error's number.
    Failed(i32),
    /// The kernel was not asked, or can't write that way.
    Untried,
}

pub struct UringWriter {
    ring: IoUring,
    /// Kept for its room.
    parts: Vec<IoSlice<'static>>,
    ends: Vec<usize>,
    outcomes: Vec<Outcome>,
}

impl UringWriter {
    /// Fails where the kernel has no io_uring or does not let us have it (kernel.io_uring_disabled, seccomp).
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::new(WRITES as u32)?;
        Ok(Self { ring, parts: Vec::new(), ends: Vec::new(), outcomes: Vec::new() })
    }

    /// Writes `count` frames (at most [`WRITES`]) to `fd` without waiting, in order; `gather` appends the parts of one.
    /// Linux before 6.4 does not know whether writing to a TUN would wait: then all are untried.
    pub fn write<'a>(
        &mut self,
        fd: RawFd,
        count: usize,
        mut gather: impl FnMut(usize, &mut Vec<IoSlice<'a>>),
    ) -> &[Outcome] {
        let mut parts: Vec<IoSlice<'a>> = mem::take(&mut self.parts);
        self.ends.clear();
        for index in 0..count.min(WRITES) {
            gather(index, &mut parts);
            self.ends.push(parts.len());
        }
        self.outcomes.clear();
        self.outcomes.resize(count, Outcome::Untried);
        self.submit(fd, &parts);
        parts.clear();
        self.parts = parts.into_iter().map(|_| IoSlice::new(&[])).collect(); // the same memory, for any lifetime
        &self.outcomes
    }

    fn submit(&mut self, fd: RawFd, parts: &[IoSlice<'_>]) {
        let mut start = 0;
        for (index, end) in self.ends.iter().enumerate() {
            let frame = &parts[start..*end];
            start = *end;
            // RWF_NOWAIT: it is done or refused before the call returns, and never left to another thread.
            let entry = opcode::Writev::new(types::Fd(fd), frame.as_ptr().cast(), frame.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
                .user_data(index as u64);
            // SAFETY: IoSlice is laid out as iovec. `parts` and what they point to are borrowed until this function
            // ends, which is not before every write that was handed over has ended.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                break;
            }
        }
        let mut ended = 0;
        while ended < self.ends.len() {
            let submitted = self.ring.submit_and_wait(self.ends.len() - ended);
            for completion in self.ring.completion() {
                self.outcomes[completion.user_data() as usize] = match -completion.result() {
                    ..=0 => Outcome::Written,
                    libc::EOPNOTSUPP => Outcome::Untried,
                    code => Outcome::Failed(code),
                };
                ended += 1;
            }
            match submitted {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    fn write(batch: &mut UringWriter, to: &UnixDatagram, frames: &[&[u8]]) -> Vec<Outcome> {
        let outcomes = batch.write(to.as_raw_fd(), frames.len(), |index, parts| {
            let (head, tail) = frames[index].split_at(1);
            parts.extend([IoSlice::new(head), IoSlice::new(tail)]);
        });
        outcomes.to_vec()
    }

    /// None where io_uring can't be had.
    fn batch() -> Option<UringWriter> {
        UringWriter::new().inspect_err(|why| eprintln!("SKIPPED: no io_uring here ({why})")).ok()
    }

    #[test]
    fn all_are_written_in_order_and_again() {
        let Some(mut batch) = batch() else { return };
        let (near, far) = UnixDatagram::pair().expect("a socket pair");
        for round in 0..3_u8 {
            let frames: Vec<Vec<u8>> = (0..8_u8).map(|number| vec![round, number, 7]).collect();
            let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let outcomes = write(&mut batch, &near, &slices);
            if outcomes[0] == Outcome::Untried {
                return eprintln!("SKIPPED: this kernel can't write to a socket that way");
            }
            assert_eq!(outcomes, [Outcome::Written; 8]);
            for frame in &frames {
                let mut got = [0; 16];
                let length = far.recv(&mut got).expect("one frame");
                assert_eq!(&got[..length], frame);
            }
        }
    }

    #[test]
    fn nobody_waits_for_room() {
        let Some(mut batch) = batch() else { return };
        let (near, _far) = UnixDatagram::pair().expect("a socket pair");
        let frame: &[u8] = &[1; 4096];
        let frames = vec![frame; WRITES];
        for _ in 0..100 {
            let outcomes = write(&mut batch, &near, &frames);
            if outcomes[0] == Outcome::Untried {
                return eprintln!("SKIPPED: this kernel can't write to a socket that way");
            }
            if let Some(first) = outcomes.iter().position(|outcome| *outcome != Outcome::Written) {
                return assert_eq!(outcomes[first..], vec![Outcome::Failed(libc::EAGAIN); WRITES - first]);
            }
        }
        panic!("a socket that nobody reads takes everything");
    }

    #[test]
    fn a_descriptor_that_is_none_fails_each() {
        let Some(mut batch) = batch() else { return };
        let frame: &[u8] = &[1, 2];
        let outcomes = batch.write(-1, 2, |_, parts| parts.push(IoSlice::new(frame)));
        assert_eq!(outcomes, [Outcome::Failed(libc::EBADF); 2]);
    }
}
