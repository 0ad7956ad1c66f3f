//! Several writes by one system call. io_uring is used for nothing else.
//!
//! Besides the cost of the calls: a process that a frame wakes (the reader of its flow) runs when the call ends, not
//! after each frame.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, types};

/// Limit of writes in one call.
pub const WRITES: usize = 64;

/// The result of one write of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// Refused, with this errno.
    Failed(i32),
    /// Not submitted, or the kernel can not write to this file without waiting. The caller writes it another way.
    NotAttempted,
}

/// A ring and the buffers of one batch. Not shared between threads.
pub struct UringWriter {
    ring: IoUring,
    /// Empty between calls; kept for its allocation.
    parts: Vec<IoSlice<'static>>,
    /// End of each frame in `parts`.
    ends: Vec<usize>,
    outcomes: Vec<Outcome>,
}

impl UringWriter {
    /// Set up a ring.
    ///
    /// # Errors
    /// If the kernel has no io_uring or forbids it (kernel.io_uring_disabled, seccomp).
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::new(WRITES as u32)?;
        Ok(Self { ring, parts: Vec::new(), ends: Vec::new(), outcomes: Vec::new() })
    }

    /// Write `count` frames (at most [`WRITES`]) to `fd` in order, without waiting; `gather` appends the parts of one
    /// frame.
    ///
    /// Linux before 6.4 can not tell whether a write to a TUN would wait; all outcomes are `NotAttempted` then.
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
        self.outcomes.resize(count, Outcome::NotAttempted);
        self.submit(fd, &parts);
        parts.clear();
        self.parts = parts.into_iter().map(|_| IoSlice::new(&[])).collect(); // the same allocation, of any lifetime
        &self.outcomes
    }

    /// Submit the frames and wait for all completions; fills `outcomes`.
    fn submit(&mut self, fd: RawFd, parts: &[IoSlice<'_>]) {
        let mut start = 0;
        for (index, end) in self.ends.iter().enumerate() {
            let frame = &parts[start..*end];
            start = *end;
            // RWF_NOWAIT: the write is done or refused before the call returns, and not left to a kernel thread.
            let entry = opcode::Writev::new(types::Fd(fd), frame.as_ptr().cast(), frame.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
                .user_data(index as u64);
            // SAFETY: IoSlice is laid out as iovec. `parts` and the memory they point to are borrowed until this
            // function ends, and it does not end before every submitted write has completed.
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
                    libc::EOPNOTSUPP => Outcome::NotAttempted,
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

    /// Return a writer, or None if io_uring is not available.
    fn batch() -> Option<UringWriter> {
        UringWriter::new().inspect_err(|why| eprintln!("SKIPPED: no io_uring here ({why})")).ok()
    }

    #[test]
    fn frames_are_written_in_order_and_the_writer_is_reusable() {
        let Some(mut batch) = batch() else { return };
        let (near, far) = UnixDatagram::pair().expect("a socket pair");
        for round in 0..3_u8 {
            let frames: Vec<Vec<u8>> = (0..8_u8).map(|number| vec![round, number, 7]).collect();
            let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let outcomes = write(&mut batch, &near, &slices);
            if outcomes[0] == Outcome::NotAttempted {
                return eprintln!("SKIPPED: this kernel can not write to a socket with RWF_NOWAIT");
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
    fn a_full_socket_fails_the_rest_without_waiting() {
        let Some(mut batch) = batch() else { return };
        let (near, _far) = UnixDatagram::pair().expect("a socket pair");
        let frame: &[u8] = &[1; 4096];
        let frames = vec![frame; WRITES];
        for _ in 0..100 {
            let outcomes = write(&mut batch, &near, &frames);
            if outcomes[0] == Outcome::NotAttempted {
                return eprintln!("SKIPPED: this kernel can not write to a socket with RWF_NOWAIT");
            }
            if let Some(first) = outcomes.iter().position(|outcome| *outcome != Outcome::Written) {
                return assert_eq!(outcomes[first..], vec![Outcome::Failed(libc::EAGAIN); WRITES - first]);
            }
        }
        panic!("a socket without a reader accepts everything");
    }

    #[test]
    fn an_invalid_descriptor_fails_each_write() {
        let Some(mut batch) = batch() else { return };
        let frame: &[u8] = &[1, 2];
        let outcomes = batch.write(-1, 2, |_, parts| parts.push(IoSlice::new(frame)));
        assert_eq!(outcomes, [Outcome::Failed(libc::EBADF); 2]);
    }
}
