//! Segmentation: a superpacket from the TUN is cut into the packets it stands for (TSO and USO in software).
//!
//! [`Segmentation::new`] checks a frame once; writing its segments can not fail afterwards. The length of the headers
//! is computed from the frame, because the kernel's `hdr_len` is unreliable for forwarded packets.

use crate::checksum::{self, copy_and_sum, sum};
use crate::packet::{self, IPV4_HEADER, IPV6_HEADER, TCP, UDP};
use crate::virtio_net;

/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Limit of segments in a frame, our own. 64 KiB at the smallest segment that Linux lets a peer negotiate
/// (net.ipv4.tcp_min_snd_mss, 48) are fewer.
const MAX_SEGMENTS: usize = 1400;

/// The frame contradicts itself, or is of a kind that was not requested from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOffload;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One complete packet.
    Plain,
    /// One packet with a partial checksum: offsets of the first summed byte and of the checksum field.
    Partial { start: usize, field: usize },
    /// A superpacket: offsets of transport header and payload, and payload bytes per segment.
    Segments { transport: Transport, transport_at: usize, header: usize, size: usize },
}

/// How one frame is segmented. Valid only with the frame it was made for.
#[derive(Clone, Copy, Debug)]
pub struct Segmentation {
    kind: Kind,
    count: usize,
    /// Bytes of the frame without its virtio-net header.
    length: usize,
}

impl Segmentation {
    /// Check a frame. `frame` is one IP packet (RFC 791, RFC 8200), possibly longer than the MTU, that passed
    /// [`packet::is_ip`].
    ///
    /// # Errors
    /// [`BadOffload`] if header and frame contradict each other.
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
        if !transport_starts_at(frame, transport_at, protocol) {
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

    /// Return the number of packets in the frame.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Return the length of packet `index` in bytes.
    #[must_use]
    pub fn packet_length(&self, index: usize) -> usize {
        match self.kind {
            Kind::Plain | Kind::Partial { .. } => self.length,
            Kind::Segments { header, size, .. } => header + size.min(self.length - header - index * size),
        }
    }

    /// Write packet `index`, with complete checksums, to the front of `target`, which has at least
    /// `packet_length(index)` bytes. `frame` is that of `new`.
    pub fn write(&self, index: usize, frame: &[u8], target: &mut [u8]) {
        match self.kind {
            Kind::Plain => target[..self.length].copy_from_slice(frame),
            Kind::Partial { start, field } => {
                target[..start].copy_from_slice(&frame[..start]);
                // The field holds the sum of the pseudo-header, not complemented, and is part of the summed bytes.
                let total = copy_and_sum(&mut target[start..], &frame[start..]);
                store_checksum(&mut target[field..field + 2], total, true);
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

/// Copy the first `header` bytes. If both buffers have 96 bytes, copy that many: a fixed size compiles to a few
/// instructions instead of a call. The payload, written later, overwrites the excess.
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

/// Set the sequence number; clear FIN and PSH except in the last segment, and CWR except in the first.
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

/// Set length, IPv4 identification (counting up from the frame's) and IPv4 header checksum of segment `index`.
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

/// Compute and store the TCP or UDP checksum. `payload_sum` is the sum of the bytes after `header`.
fn finish_transport(packet: &mut [u8], transport: Transport, at: usize, header: usize, payload_sum: u64) {
    let (protocol, offset) = match transport {
        Transport::Tcp => (TCP, TCP_CHECKSUM),
        Transport::Udp => (UDP, UDP_CHECKSUM),
    };
    packet[at + offset..at + offset + 2].fill(0);
    let addresses = if packet::is_v6(packet) { 8..40 } else { 12..20 };
    let pseudo = checksum::pseudo_header(&packet[addresses], protocol, packet.len() - at);
    let total = pseudo + sum(&packet[at..header]) + payload_sum;
    store_checksum(&mut packet[at + offset..at + offset + 2], total, transport == Transport::Udp);
}

/// Store the checksum of a sum. For UDP a computed zero is sent as all ones, because zero means "no checksum" (RFC
/// 768). For an unknown protocol that is harmless, because both are zero in one's-complement arithmetic.
fn store_checksum(field: &mut [u8], total: u64, ones_for_zero: bool) {
    let value = checksum::finish(total);
    field.copy_from_slice(if ones_for_zero && value == [0, 0] { &[0xff, 0xff] } else { &value });
}

/// Return true if the IP headers, read in order, end at `transport_at` with `protocol`, and their length field is the
/// frame's length.
fn transport_starts_at(frame: &[u8], transport_at: usize, protocol: u8) -> bool {
    let u16_at = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if !packet::is_v6(frame) {
        return packet::header_length_v4(frame) == transport_at
            && transport_at >= IPV4_HEADER
            && frame[9] == protocol
            && usize::from(u16_at(2)) == frame.len()
            && u16_at(6) & 0x3fff == 0;
    }
    if usize::from(u16_at(4)) + IPV6_HEADER != frame.len() {
        return false;
    }
    let (mut kind, mut at) = (frame[6], IPV6_HEADER);
    // Hop-by-hop options, routing, destination options: extension headers that a transport header can follow.
    while matches!(kind, 0 | 43 | 60) && at + 8 <= transport_at {
        (kind, at) = (frame[at], at + (usize::from(frame[at + 1]) + 1) * 8);
    }
    kind == protocol && at == transport_at
}

#[cfg(test)]
mod tests;
