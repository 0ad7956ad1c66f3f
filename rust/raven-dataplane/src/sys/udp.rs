//! Batches of datagrams: recvmmsg with UDP_GRO, sendmmsg with UDP_SEGMENT, and their control messages (cmsg(3),
//! udp(7)).

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use super::{Pages, RawAddress, Source, result_or_errno};

/// Bytes of a receive slot: room for one datagram or one GRO train. No IP packet is longer.
pub const SLOT: usize = 65536;
/// Receive slots: datagrams or GRO trains that one recvmmsg can return.
pub const SLOTS: usize = 64;
/// Limit of messages in one sendmmsg.
const SEND_SLOTS: usize = 32;

/// Socket option and control message of segmentation on sending (linux/udp.h).
const UDP_SEGMENT: i32 = 103;
/// Socket option and control message of coalescing on receiving (linux/udp.h).
pub(super) const UDP_GRO: i32 = 104;
/// Bytes of cmsghdr.
const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();
/// Alignment of control messages (CMSG_ALIGN), and bytes of cmsg_len.
const CMSG_ALIGN: usize = size_of::<usize>();
/// Bytes of a control buffer: more than all control messages of either direction need.
const CONTROL: usize = 192;

/// A buffer for control messages, aligned as cmsghdr requires.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// The sender, length and control messages of one receive slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// Sender.
    pub address: RawAddress,
    /// Bytes received.
    pub length: usize,
    /// Bytes of each datagram of a GRO train but the last; 0 for a single datagram.
    pub segment: usize,
    /// ECN field of the outer header.
    pub ecn: u8,
    /// Local address and interface, if the kernel gave them.
    pub source: Option<Source>,
    /// Datagrams this socket has lost since it was made (SO_RXQ_OVFL), modulo 2^32; None if none.
    pub overflow: Option<u32>,
    /// The datagram or its control messages were truncated (MSG_TRUNC, MSG_CTRUNC).
    pub truncated: bool,
}

/// The buffers of one recvmmsg.
pub struct Receiver {
    arena: Pages,
    names: Box<[RawAddress; SLOTS]>,
    controls: Box<[Control; SLOTS]>,
    metas: Box<[Meta; SLOTS]>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            arena: Pages::new(SLOT * SLOTS),
            names: Box::new([RawAddress::default(); SLOTS]),
            controls: Box::new([Control([0; CONTROL]); SLOTS]),
            metas: Box::new([Meta::default(); SLOTS]),
        }
    }
}

impl Receiver {
    /// Receive at most `limit` datagrams or trains without waiting; return how many slots were filled.
    ///
    /// # Errors
    /// errno of recvmmsg; WouldBlock if nothing waits.
    pub fn receive(&mut self, fd: RawFd, limit: usize) -> io::Result<usize> {
        let limit = limit.min(SLOTS);
        let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; SLOTS];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; SLOTS];
        for (index, slot) in self.arena.chunks_exact_mut(SLOT).take(limit).enumerate() {
            let part = parts[index].write(libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: SLOT });
            let mut message = empty_message();
            message.msg_name = self.names[index].as_mut_ptr();
            message.msg_namelen = RawAddress::ROOM;
            message.msg_iov = part;
            message.msg_iovlen = 1;
            message.msg_control = self.controls[index].0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL as _;
            headers[index].write(libc::mmsghdr { msg_hdr: message, msg_len: 0 });
        }
        let first = headers.as_mut_ptr().cast();
        // SAFETY: the first `limit` headers are initialised; all they point to outlives the call and is ours to write.
        let result = unsafe { libc::recvmmsg(fd, first, limit as _, libc::MSG_DONTWAIT as _, std::ptr::null_mut()) };
        let count = result_or_errno(result as isize)?;
        for (index, header) in headers.iter().take(count).enumerate() {
            // SAFETY: `count` is at most `limit`, and those were initialised above.
            let header = unsafe { header.assume_init_ref() };
            #[allow(clippy::unnecessary_cast)] // 32 bits with musl
            let control_length = header.msg_hdr.msg_controllen as usize;
            let control = &self.controls[index].0[..control_length.min(CONTROL)];
            let meta = &mut self.metas[index];
            *meta = Meta {
                address: self.names[index].truncated_to(header.msg_hdr.msg_namelen),
                length: (header.msg_len as usize).min(SLOT),
                truncated: header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
                ..Meta::default()
            };
            parse_control(control, meta);
        }
        Ok(count)
    }

    /// Return the sender and control data of a filled slot.
    #[must_use]
    pub fn meta(&self, index: usize) -> &Meta {
        &self.metas[index]
    }

    /// Return all slots, one after the other: slot `index` starts at `index * SLOT`.
    #[must_use]
    pub fn arena(&self) -> &[u8] {
        &self.arena
    }

    /// Return all slots to change: datagrams are decrypted in place.
    pub fn arena_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }
}

/// Return an empty msghdr. A struct literal is impossible, because musl's msghdr has private padding fields.
fn empty_message() -> libc::msghdr {
    // SAFETY: all zero bytes are a valid msghdr: null pointers and zero lengths.
    unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() }
}

/// Copy the control messages that are known to `meta`. Malformed ones end the parsing.
fn parse_control(mut rest: &[u8], meta: &mut Meta) {
    while rest.len() >= CMSG_HEADER {
        let length = usize::from_ne_bytes(rest[..CMSG_ALIGN].try_into().expect("a word"));
        let level = i32_at(&rest[CMSG_ALIGN..]);
        let kind = i32_at(&rest[CMSG_ALIGN + 4..]);
        if length < CMSG_HEADER || length > rest.len() {
            return;
        }
        let data = &rest[CMSG_HEADER..length];
        match (level, kind) {
            (libc::SOL_UDP, UDP_GRO) if data.len() >= 4 => meta.segment = usize::try_from(i32_at(data)).unwrap_or(0),
            (libc::IPPROTO_IP, libc::IP_TOS) if !data.is_empty() => meta.ecn = data[0] & 3,
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if data.len() >= 4 => meta.ecn = (i32_at(data) & 3) as u8,
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() >= 12 => {
                // in_pktinfo: interface, local address that the kernel would answer from, destination in the header.
                let octets: [u8; 4] = data[4..8].try_into().expect("four bytes");
                meta.source =
                    Some(Source { address: IpAddr::V4(Ipv4Addr::from(octets)), ifindex: i32_at(data) as u32 });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() >= 20 => {
                let octets: [u8; 16] = data[..16].try_into().expect("sixteen bytes");
                let address = IpAddr::V6(Ipv6Addr::from(octets));
                meta.source = Some(Source { address, ifindex: i32_at(&data[16..]) as u32 });
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if data.len() >= 4 => meta.overflow = Some(i32_at(data) as u32),
            _ => {}
        }
        let next = length.next_multiple_of(CMSG_ALIGN);
        rest = rest.get(next..).unwrap_or_default();
    }
}

/// Return the first four bytes as an integer in native byte order.
fn i32_at(bytes: &[u8]) -> i32 {
    i32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// One message to send: a datagram, or a train of datagrams of one size that the kernel segments.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// Destination.
    pub address: RawAddress,
    pub data: &'a [u8],
    /// Bytes per datagram of a train (UDP_SEGMENT); 0 for a single datagram.
    pub segment: u16,
    /// The traffic class (DS field and ECN) of the outer header.
    pub traffic_class: u8,
    /// Local address to send from; None lets the kernel choose.
    pub source: Option<Source>,
}

/// Send the first messages of `count`, at most 32, by one sendmmsg; return how many the kernel accepted.
///
/// # Errors
/// errno of the first message. An error of a later one ends the call after those before it.
pub fn send<'a>(fd: RawFd, count: usize, message: impl Fn(usize) -> Outgoing<'a>) -> io::Result<usize> {
    let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; SEND_SLOTS];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; SEND_SLOTS];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; SEND_SLOTS];
    let mut names = [const { MaybeUninit::<RawAddress>::uninit() }; SEND_SLOTS];
    let count = count.min(SEND_SLOTS);
    for index in 0..count {
        let outgoing = message(index);
        let part = parts[index]
            .write(libc::iovec { iov_base: outgoing.data.as_ptr().cast_mut().cast(), iov_len: outgoing.data.len() });
        let control = controls[index].write(Control([0; CONTROL]));
        let control_length = write_control(&mut control.0, &outgoing);
        let mut message = empty_message();
        message.msg_name = names[index].write(outgoing.address).as_mut_ptr();
        message.msg_namelen = outgoing.address.len();
        message.msg_iov = part;
        message.msg_iovlen = 1;
        if control_length > 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = control_length as _;
        }
        headers[index].write(libc::mmsghdr { msg_hdr: message, msg_len: 0 });
    }
    let first = headers.as_mut_ptr().cast();
    // SAFETY: the first `count` headers are initialised; the memory they point to is borrowed for the call, and
    // sendmmsg only reads it.
    result_or_errno(unsafe { libc::sendmmsg(fd, first, count as _, libc::MSG_DONTWAIT as _) } as isize)
}

/// Write the control messages of a message; return their length, 0 if there are none.
fn write_control(control: &mut [u8; CONTROL], outgoing: &Outgoing<'_>) -> usize {
    let mut at = 0;
    let v6 = outgoing.address.is_v6();
    match outgoing.source {
        // The address alone, as in the kernel's WireGuard: routing chooses the interface. With a given interface that
        // has no route to the peer, the kernel would resolve the peer on that link, without success and without an
        // error. Only a link-local address needs its interface.
        Some(Source { address: IpAddr::V4(address), .. }) if !v6 => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&address.octets());
            at += add_control(&mut control[at..], libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(Source { address: IpAddr::V6(address), ifindex }) if v6 => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&address.octets());
            if address.is_unicast_link_local() {
                info[16..].copy_from_slice(&ifindex.to_ne_bytes());
            }
            at += add_control(&mut control[at..], libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        _ => {}
    }
    if outgoing.traffic_class != 0 {
        let (level, kind) = if v6 { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) } else { (libc::IPPROTO_IP, libc::IP_TOS) };
        let class = i32::from(outgoing.traffic_class).to_ne_bytes();
        at += add_control(&mut control[at..], level, kind, &class);
    }
    if outgoing.segment != 0 {
        at += add_control(&mut control[at..], libc::SOL_UDP, UDP_SEGMENT, &outgoing.segment.to_ne_bytes());
    }
    at
}

/// Write one control message to the front of `room`; return its length with padding.
fn add_control(room: &mut [u8], level: i32, kind: i32, data: &[u8]) -> usize {
    let length = CMSG_HEADER + data.len();
    room[..CMSG_ALIGN].copy_from_slice(&length.to_ne_bytes());
    room[CMSG_ALIGN..CMSG_ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
    room[CMSG_ALIGN + 4..CMSG_ALIGN + 8].copy_from_slice(&kind.to_ne_bytes());
    room[CMSG_HEADER..length].copy_from_slice(data);
    length.next_multiple_of(CMSG_ALIGN)
}
