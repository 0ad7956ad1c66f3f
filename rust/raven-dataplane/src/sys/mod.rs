//! The system calls of the packet path. Nearly all `unsafe` code of this crate is in this module, behind safe
//! functions.
//!
//! Descriptors are borrowed: nothing here opens or closes one.

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

/// Return CLOCK_BOOTTIME in seconds. It advances while the machine is suspended, because sessions age then too.
#[must_use]
pub fn boottime() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes; the clock exists on every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Have recvmmsg return destination address, ECN and overflow count, and coalesced datagrams if `gro`. A kernel
/// without one of these is no error: the datagrams arrive all the same.
pub fn request_ancillary(fd: RawFd, v6: bool, gro: bool) {
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

/// Switch UDP_GRO. A kernel without it (Linux before 5.0) delivers single datagrams, which is no error.
pub fn set_gro(fd: RawFd, gro: bool) {
    let _ = set_option(fd, libc::SOL_UDP, udp::UDP_GRO, i32::from(gro));
}

/// Return true if a datagram or an error waits to be read.
#[must_use]
pub fn is_readable(fd: RawFd) -> bool {
    poll(&[Interest { fd, write: false }], 0)[0]
}

/// Return the result of a system call, or errno if it is negative.
fn result_or_errno(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Read one frame from the TUN; return its length.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a slice we may write.
    result_or_errno(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Write one frame, gathered from `parts`, to the TUN.
pub fn write(fd: RawFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: IoSlice is guaranteed to be laid out as iovec, and each points to memory borrowed for this call.
    result_or_errno(unsafe { libc::writev(fd, parts.as_ptr().cast(), parts.len() as libc::c_int) })
}

/// A descriptor to poll, for reading, and for writing too if `write`. poll(2) ignores a negative `fd`.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    pub fd: RawFd,
    pub write: bool,
}

/// Wait at most `milliseconds`, and return which descriptors are ready (or have an error).
pub fn poll<const N: usize>(interests: &[Interest; N], milliseconds: i32) -> [bool; N] {
    let mut polled = interests.map(|Interest { fd, write }| libc::pollfd {
        fd,
        events: libc::POLLIN | if write { libc::POLLOUT } else { 0 },
        revents: 0,
    });
    // SAFETY: `polled` is an array of N such structs that we may write.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
    // A closed descriptor (POLLNVAL) counts as not ready.
    polled.map(|one| count > 0 && one.revents & !libc::POLLNVAL != 0)
}

/// Set an integer socket option.
pub fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` lives through the call and `length` is its size.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) };
    result_or_errno(result as isize).map(|_| ())
}

/// Return an integer socket option.
pub fn get_option(fd: RawFd, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `length` bytes.
    let result = unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) };
    result_or_errno(result as isize).map(|_| value)
}
