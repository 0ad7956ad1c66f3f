//! The system calls of the packet path. Nearly all `unsafe` of this crate is in this folder; what leaves it is safe.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;

mod pages;
mod socket_address;
mod udp;
mod uring;

pub use pages::Pages;
pub use socket_address::{RawAddress, Source};
pub use udp::{Meta, Outgoing, Receiver, SLOT, SLOTS, send};
pub use uring::{Outcome, UringWriter, WRITES};

/// Seconds on CLOCK_BOOTTIME, which goes on while the machine sleeps, as sessions age then too.
#[must_use]
pub fn boottime() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes; the clock exists on every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Receive with destination address, ECN and overflow count, as trains if wanted. Without any of these a datagram is
/// still a datagram, so a kernel that lacks one is no error.
pub fn ask_for_ancillary(fd: RawFd, v6: bool, gro: bool) {
    let of_family = if v6 {
        [(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)]
    } else {
        [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IP, libc::IP_RECVTOS)]
    };
    for (level, option) in of_family {
        let _ = set_option(fd, level, option, 1);
    }
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    set_gro(fd, gro);
}

/// Switches UDP_GRO; a kernel without it (Linux before 5.0) delivers single datagrams, which is no error.
pub fn set_gro(fd: RawFd, gro: bool) {
    let _ = set_option(fd, libc::SOL_UDP, udp::UDP_GRO, i32::from(gro));
}

/// Whether a datagram or an error waits to be read.
#[must_use]
pub fn is_readable(fd: RawFd) -> bool {
    poll(&[Interest { fd, write: false }], 0)[0]
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// One frame from the TUN.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a slice we may write.
    check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// One frame to the TUN, gathered from `parts`.
pub fn write(fd: RawFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: IoSlice is guaranteed to be laid out as iovec, and each points to memory borrowed for this call.
    check(unsafe { libc::writev(fd, parts.as_ptr().cast(), parts.len() as libc::c_int) })
}

/// What to wait for: room for writing besides something to read, or the latter alone. A negative `fd` is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    pub fd: RawFd,
    pub write: bool,
}

/// Which of these are ready, after at most so many milliseconds.
pub fn poll<const N: usize>(interests: &[Interest; N], milliseconds: i32) -> [bool; N] {
    let mut polled = interests.map(|Interest { fd, write }| libc::pollfd {
        fd,
        events: libc::POLLIN | if write { libc::POLLOUT } else { 0 },
        revents: 0,
    });
    // SAFETY: `polled` is an array of N such structs that we may write.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
    // A descriptor that is gone (POLLNVAL) is not ready for anything.
    polled.map(|one| count > 0 && one.revents & !libc::POLLNVAL != 0)
}

/// Sets an integer socket option.
pub fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` lives through the call and `length` is its size.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) };
    check(result as isize).map(|_| ())
}

/// Reads an integer socket option.
pub fn option(fd: RawFd, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `length` bytes.
    let result = unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) };
    check(result as isize).map(|_| value)
}
