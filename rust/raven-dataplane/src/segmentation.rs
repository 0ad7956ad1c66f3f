//! Superpackets of the TUN, cut into the packets they stand for (what the kernel calls segmentation).
//!
//! A [`Segmentation`] is made once per frame and checks everything about it; writing segment after segment then can't fail.
//! Headers are recomputed from the frame, since the kernel's `hdr_len` is not to be trusted on forwarded packets.

use crate::checksum::{self, copy_and_sum, sum};
use crate::packet::{self, IPV4_HEADER, IPV6_HEADER, TCP, UDP};
use crate::virtio_net;

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Ours. 64 KiB at the smallest segment Linux lets a peer negotiate (net.ipv4.tcp_min_snd_mss, 48) are fewer.
const MAX_SEGMENTS: usize = 1400;

/// The frame contradicts itself, or is of a kind nobody asked the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOffload;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One packet, complete as it is.
    Plain,
    /// One packet whose checksum we must finish: where it starts and where it is stored.
    Partial {
        start: usize,
        field: usize,
    },
    Segments {
        transport: Transport,
        transport_at: usize,
        header: usize,
        size: usize,
    },
}

/// How to cut one frame.
#[derive(Clone, Copy, Debug)]
pub struct Segmentation {
    kind: Kind,
    count: usize,
    /// Of the frame without its virtio-net header.
    length: usize,
}

impl Segmentation {
    /// `frame` is one IP packet (RFC 791, 8200), maybe far longer than the MTU. Its `length()` was checked.
    pub fn new(header: &virtio_net::Header, frame: &[u8]) -> Result<Self, BadOffload> {
        let length = frame.len();
        if header.gso() == virtio_net::GSO_NONE {
            let kind = if header.flags & virtio_net::NEEDS_CSUM == 0 {
                Kind::Plain
            } else {
                let start = usize::from(header.csum_start);
                let field = start + usize::from(header.csum_offset);
                if start < IPV4_HEADER || field + 2 > length {
                    return Err(BadOffload);
                }
                Kind::Partial { start, field }
            };
            return Ok(Self { kind, count: 1, length });
        }
        if header.flags & virtio_net::NEEDS_CSUM == 0 || header.gso_size == 0 {
            return Err(BadOffload);
        }
        let transport_at = usize::from(header.csum_start);
        let (transport, protocol, least, field) = match header.gso() {
            virtio_net::GSO_TCPV4 | virtio_net::GSO_TCPV6 => (Transport::Tcp, TCP, TCP_HEADER, TCP_CHECKSUM),
            virtio_net::GSO_UDP_L4 => (Transport::Udp, UDP, UDP_HEADER, UDP_CHECKSUM),
            _ => return Err(BadOffload),
        };
        let v6 = packet::is_v6(frame);
        let family_fits = match header.gso() {
            virtio_net::GSO_TCPV4 => !v6,
            virtio_net::GSO_TCPV6 => v6,
            _ => true,
        };
        if !family_fits || usize::from(header.csum_offset) != field || transport_at + least > length {
            return Err(BadOffload);
        }
        if !leads_to(frame, transport_at, protocol) {
            return Err(BadOffload);
        }
        let header_end = transport_at
            + match transport {
                Transport::Tcp => usize::from(frame[transport_at + 12] >> 4) * 4,
                Transport::Udp => UDP_HEADER,
            };
        if header_end < transport_at + least || header_end >= length {
            return Err(BadOffload);
        }
        let size = usize::from(header.gso_size);
        let count = (length - header_end).div_ceil(size);
        if count > MAX_SEGMENTS {
            return Err(BadOffload);
        }
        Ok(Self { kind: Kind::Segments { transport, transport_at, header: header_end, size }, count, length })
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of packet `index`.
    #[must_use]
    pub fn packet_length(&self, index: usize) -> usize {
        match self.kind {
            Kind::Plain | Kind::Partial { .. } => self.length,
            Kind::Segments { header, size, .. } => header + size.min(self.length - header - index * size),
        }
    }

    /// Writes packet `index` to the front of `target`, which holds at least `packet_length(index)`.
    pub fn write(&self, index: usize, frame: &[u8], target: &mut [u8]) {
        match self.kind {
            Kind::Plain => target[..self.length].copy_from_slice(frame),
            Kind::Partial { start, field } => {
                target[..start].copy_from_slice(&frame[..start]);
                // The field holds the sum of the pseudo header, not complemented: it is part of what is added up.
                let total = copy_and_sum(&mut target[start..], &frame[start..]);
                store(&mut target[field..field + 2], total, true);
            }
            Kind::Segments { transport, transport_at, header, size } => {
                let from = header + index * size;
                let payload = &frame[from..(from + size).min(self.length)];
                let packet = &mut target[..header + payload.len()];
                copy_header(packet, frame, header);
                let payload_sum = copy_and_sum(&mut packet[header..], payload);
                let last = index + 1 == self.count;
                match transport {
                    Transport::Tcp => set_tcp_fields(&mut packet[transport_at..header], index, size, last),
                    Transport::Udp => {
                        let length = (packet.len() - transport_at) as u16;
                        packet[transport_at + 4..transport_at + 6].copy_from_slice(&length.to_be_bytes());
                    }
                }
                set_ip_fields(packet, index);
                finish_transport(packet, transport, transport_at, header, payload_sum);
            }
        }
    }
}

/// Copies the first `header` bytes. Where there is room more are, which is a handful of instructions instead of a call;
/// the payload then goes over what was too much.
fn copy_header(packet: &mut [u8], frame: &[u8], header: usize) {
    const ROOM: usize = 96;
    if header <= ROOM
        && let (Some(to), Some(from)) = (packet.first_chunk_mut::<ROOM>(), frame.first_chunk::<ROOM>())
    {
        *to = *from;
    } else {
        packet[..header].copy_from_slice(&frame[..header]);
    }
}

/// Sequence number, and flags that belong to the first or the last segment alone.
fn set_tcp_fields(tcp: &mut [u8], index: usize, size: usize, last: bool) {
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add((index * size) as u32);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if !last {
        tcp[13] &= !(FIN | PSH);
    }
    if index > 0 {
        tcp[13] &= !CWR;
    }
}

fn set_ip_fields(packet: &mut [u8], index: usize) {
    let total = packet.len();
    if packet::is_v6(packet) {
        packet[4..6].copy_from_slice(&((total - IPV6_HEADER) as u16).to_be_bytes());
        return;
    }
    packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[10..12].fill(0);
    let header = packet::header_length_v4(packet);
    let field = checksum::finish(sum(&packet[..header]));
    packet[10..12].copy_from_slice(&field);
}

fn finish_transport(packet: &mut [u8], transport: Transport, at: usize, header: usize, payload_sum: u64) {
    let (protocol, offset) = match transport {
        Transport::Tcp => (TCP, TCP_CHECKSUM),
        Transport::Udp => (UDP, UDP_CHECKSUM),
    };
    packet[at + offset..at + offset + 2].fill(0);
    let addresses = if packet::is_v6(packet) { 8..40 } else { 12..20 };
    let pseudo = checksum::pseudo_header(&packet[addresses], protocol, packet.len() - at);
    let total = pseudo + sum(&packet[at..header]) + payload_sum;
    store(&mut packet[at + offset..at + offset + 2], total, transport == Transport::Udp);
}

/// A computed zero of UDP means "no checksum" on the wire, so it is sent as all ones (RFC 768); where the protocol is
/// not known that does no harm, both being zero in this arithmetic.
fn store(field: &mut [u8], total: u64, ones_for_zero: bool) {
    let value = checksum::finish(total);
    field.copy_from_slice(if ones_for_zero && value == [0, 0] { &[0xff, 0xff] } else { &value });
}

/// Whether the IP headers, read in order, end at `transport_at` with `protocol`, and say the frame's length.
fn leads_to(frame: &[u8], transport_at: usize, protocol: u8) -> bool {
    let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if !packet::is_v6(frame) {
        return packet::header_length_v4(frame) == transport_at
            && transport_at >= IPV4_HEADER
            && frame[9] == protocol
            && usize::from(half(2)) == frame.len()
            && half(6) & 0x3fff == 0;
    }
    if usize::from(half(4)) + IPV6_HEADER != frame.len() {
        return false;
    }
    let (mut kind, mut at) = (frame[6], IPV6_HEADER);
    // Hop-by-hop options, routing, destination options: the extension headers a transport header may follow.
    while matches!(kind, 0 | 43 | 60) && at + 8 <= transport_at {
        (kind, at) = (frame[at], at + (usize::from(frame[at + 1]) + 1) * 8);
    }
    kind == protocol && at == transport_at
}

#[cfg(test)]
mod tests;
