//! Packets of one flow joined into superpackets on their way to the TUN (what the kernel calls GRO).
//!
//! Nothing is copied: packets stay where they were decrypted, in one arena, and an [`Output`] lists which slices of
//! it follow a header made here. Outputs come in the order in which their first packet came; a packet that can not
//! join seals its flow, and one whose flow is not visible seals all, so no flow is ever reordered.

use std::io::IoSlice;

use crate::checksum::{self, sum};
use crate::packet::{self, IPV4_HEADER, IPV6_HEADER, TCP, UDP};
use crate::virtio_net;

/// No superpacket holds more; a UDP one must not, on kernels that check (UDP_MAX_SEGMENTS, 64 before Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;
const MAX_LENGTH: usize = 65535;
/// IPv6 and TCP with all options.
const MAX_HEADER: usize = IPV6_HEADER + 60;
const TABLE: usize = 1024;
const PROBES: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const NONE: u32 = u32::MAX;

/// A packet in the arena.
#[derive(Clone, Copy, Debug)]
struct Segment {
    at: u32,
    length: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    first: u32,
    last: u32,
    count: u32,
    /// Bytes of IP and transport header; 0 for a packet that joins nothing.
    header: u16,
    transport: u16,
    /// Payload of the first packet, and so of all but the last.
    size: u16,
    total: u32,
    /// TCP sequence number and IPv4 identification the next packet must have.
    sequence: u32,
    id: u16,
    push: bool,
    sealed: bool,
    protocol: u8,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    generation: u32,
    hash: u32,
    lane: u32,
}

/// What a packet must look like to be joined.
struct Candidate {
    transport: usize,
    header: usize,
    protocol: u8,
    joins: bool,
}

/// The flow table of one batch. `push` packets, read `outputs`, then `clear`.
pub struct Coalescer {
    lanes: Vec<Lane>,
    segments: Vec<Segment>,
    table: Box<[Entry; TABLE]>,
    generation: u32,
    pub tcp: bool,
    pub udp: bool,
}

/// One frame for the TUN.
pub struct Output<'a> {
    coalescer: &'a Coalescer,
    lane: Lane,
}

impl Coalescer {
    #[must_use]
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self {
            lanes: Vec::with_capacity(2048),
            segments: Vec::with_capacity(8192),
            table: Box::new([Entry { generation: 0, hash: 0, lane: 0 }; TABLE]),
            generation: 1,
            tcp,
            udp,
        }
    }

    /// How many packets were pushed since `clear`.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.segments.len()
    }

    /// Takes the packet at `arena[at..at + length]`; its own header says `length` ([`packet::length`]).
    pub fn push(&mut self, arena: &[u8], at: usize, length: usize) {
        let bytes = &arena[at..at + length];
        if let Some(candidate) = classify(bytes, self.tcp, self.udp) {
            self.push_visible(arena, at, length, &candidate);
        } else {
            self.seal_all();
            self.add_lane(at, length, None);
        }
    }

    fn push_visible(&mut self, arena: &[u8], at: usize, length: usize, candidate: &Candidate) {
        let bytes = &arena[at..at + length];
        let hash = flow_hash(bytes, candidate);
        let mut free = None;
        for probe in 0..PROBES {
            let handle = (hash as usize).wrapping_add(probe) & (TABLE - 1);
            let entry = self.table[handle];
            if entry.generation != self.generation {
                free = Some(handle);
                break;
            }
            if entry.hash != hash {
                continue;
            }
            let lane = &self.lanes[entry.lane as usize];
            let first = &arena[self.segments[lane.first as usize].at as usize..];
            if lane.protocol != candidate.protocol || !same_flow(first, bytes, candidate) {
                continue;
            }
            if candidate.joins && lane.accepts(first, bytes, candidate) {
                self.append(entry.lane, bytes, at, candidate);
            } else {
                self.table[handle].lane = self.lanes.len() as u32;
                self.add_lane(at, length, Some((bytes, candidate)));
            }
            return;
        }
        if let Some(handle) = free {
            self.table[handle] = Entry { generation: self.generation, hash, lane: self.lanes.len() as u32 };
        }
        self.add_lane(at, length, Some((bytes, candidate)));
    }

    fn add_segment(&mut self, at: usize, length: usize) -> u32 {
        let index = self.segments.len() as u32;
        self.segments.push(Segment { at: at as u32, length: length as u32, next: NONE });
        index
    }

    fn add_lane(&mut self, at: usize, length: usize, visible: Option<(&[u8], &Candidate)>) {
        let segment = self.add_segment(at, length);
        let mut lane = Lane {
            first: segment,
            last: segment,
            count: 1,
            header: 0,
            transport: 0,
            size: 0,
            total: length as u32,
            sequence: 0,
            id: 0,
            push: false,
            sealed: true,
            protocol: 0,
        };
        if let Some((bytes, candidate)) = visible {
            let size = length - candidate.header;
            lane.protocol = candidate.protocol;
            lane.header = candidate.header as u16;
            lane.transport = candidate.transport as u16;
            lane.size = size as u16;
            lane.sealed = !candidate.joins;
            lane.note(bytes, candidate, size);
        }
        self.lanes.push(lane);
    }

    fn append(&mut self, lane: u32, bytes: &[u8], at: usize, candidate: &Candidate) {
        let segment = self.add_segment(at, bytes.len());
        let lane = &mut self.lanes[lane as usize];
        self.segments[lane.last as usize].next = segment;
        let size = bytes.len() - candidate.header;
        lane.last = segment;
        lane.count += 1;
        lane.total += size as u32;
        lane.sealed |= size < usize::from(lane.size);
        lane.note(bytes, candidate, size);
    }

    /// Lets nothing join what is here so far.
    fn seal_all(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.table.fill(Entry { generation: 0, hash: 0, lane: 0 });
            self.generation = 1;
        }
    }

    /// Frames to write, in order.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = Output<'_>> {
        self.lanes.iter().map(|lane| Output { coalescer: self, lane: *lane })
    }

    /// One of them.
    #[must_use]
    pub fn output(&self, index: usize) -> Output<'_> {
        Output { coalescer: self, lane: self.lanes[index] }
    }

    pub fn clear(&mut self) {
        self.lanes.clear();
        self.segments.clear();
        self.seal_all();
    }
}

impl Lane {
    /// What the packet at the end says about the next one.
    fn note(&mut self, bytes: &[u8], candidate: &Candidate, size: usize) {
        let transport = &bytes[candidate.transport..];
        if candidate.protocol == TCP {
            self.sequence = be32(transport, 4).wrapping_add(size as u32);
            if transport[13] & PSH != 0 {
                self.push = true;
                self.sealed = true;
            }
        }
        if !packet::is_v6(bytes) {
            self.id = u16::from_be_bytes([bytes[4], bytes[5]]).wrapping_add(1);
        }
    }

    /// Whether `bytes`, of this lane's flow, may stand at its end. `first` starts with the lane's first packet.
    fn accepts(&self, first: &[u8], bytes: &[u8], candidate: &Candidate) -> bool {
        let size = bytes.len() - candidate.header;
        if self.sealed
            || candidate.header != usize::from(self.header)
            || size > usize::from(self.size)
            || self.count as usize >= MAX_SEGMENTS
            || self.total as usize + size > MAX_LENGTH
            || !same_ip_header(first, bytes, self.id)
        {
            return false;
        }
        if candidate.protocol == UDP {
            return true;
        }
        let (a, b) = (&first[candidate.transport..candidate.header], &bytes[candidate.transport..candidate.header]);
        be32(b, 4) == self.sequence && a[8..12] == b[8..12] && a[14..16] == b[14..16] && a[18..] == b[18..]
    }
}

impl Output<'_> {
    /// How many packets it stands for.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lane.count as usize
    }

    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.lane.protocol == TCP
    }

    /// The packets themselves: (offset, length) in the arena.
    pub fn packets(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut next = self.lane.first;
        std::iter::from_fn(move || {
            let segment = self.coalescer.segments.get(next as usize)?;
            next = segment.next;
            Some((segment.at as usize, segment.length as usize))
        })
    }

    /// What follows the header: a packet as it is, or the payloads of a superpacket's.
    pub fn slices<'a>(&self, arena: &'a [u8]) -> impl Iterator<Item = IoSlice<'a>> {
        let header = if self.count() > 1 { usize::from(self.lane.header) } else { 0 };
        self.packets().map(move |(at, length)| IoSlice::new(&arena[at + header..at + length]))
    }

    /// Writes what precedes `slices`: an empty virtio-net header, or for a superpacket that, IP and transport headers.
    /// Returns how many bytes.
    pub fn write_header(&self, arena: &[u8], target: &mut [u8; virtio_net::LEN + MAX_HEADER]) -> usize {
        if self.count() == 1 {
            target[..virtio_net::LEN].fill(0);
            return virtio_net::LEN;
        }
        let lane = &self.lane;
        let header = usize::from(lane.header);
        let transport = usize::from(lane.transport);
        let first = self.coalescer.segments[lane.first as usize].at as usize;
        let packet = &mut target[virtio_net::LEN..virtio_net::LEN + header];
        packet.copy_from_slice(&arena[first..first + header]);
        let total = lane.total as usize;
        let v6 = packet::is_v6(packet);
        if v6 {
            packet[4..6].copy_from_slice(&((total - IPV6_HEADER) as u16).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            packet[10..12].fill(0);
            let field = checksum::finish(sum(&packet[..IPV4_HEADER]));
            packet[10..12].copy_from_slice(&field);
        }
        let (gso_type, csum_offset) = match (lane.protocol, v6) {
            (TCP, false) => (virtio_net::GSO_TCPV4, 16),
            (TCP, true) => (virtio_net::GSO_TCPV6, 16),
            _ => (virtio_net::GSO_UDP_L4, 6),
        };
        if lane.protocol == TCP {
            packet[transport + 13] |= if lane.push { PSH } else { 0 };
        } else {
            packet[transport + 4..transport + 6].copy_from_slice(&((total - transport) as u16).to_be_bytes());
        }
        // A partial checksum: the pseudo header's sum, not complemented; the kernel adds the rest.
        let addresses = if v6 { 8..40 } else { 12..20 };
        let pseudo = checksum::pseudo_header(&packet[addresses], lane.protocol, total - transport);
        let field = transport + csum_offset;
        packet[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        let virtio = virtio_net::Header {
            flags: virtio_net::NEEDS_CSUM,
            gso_type,
            hdr_len: lane.header,
            gso_size: lane.size,
            csum_start: lane.transport,
            csum_offset: csum_offset as u16,
        };
        target[..virtio_net::LEN].copy_from_slice(&virtio.pack());
        virtio_net::LEN + header
    }
}

/// Longest header [`Output::write_header`] makes.
pub const HEADER_ROOM: usize = virtio_net::LEN + MAX_HEADER;

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// TCP or UDP with its ports in sight; None for what may belong to any flow, fragments and IPv6 extension headers
/// among it.
fn classify(bytes: &[u8], tcp: bool, udp: bool) -> Option<Candidate> {
    let (protocol, transport) = if packet::is_v6(bytes) {
        (bytes[6], IPV6_HEADER)
    } else {
        let fragment = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff != 0;
        if fragment || packet::header_length_v4(bytes) != IPV4_HEADER {
            return None;
        }
        (bytes[9], IPV4_HEADER)
    };
    match protocol {
        TCP => classify_tcp(bytes, transport, tcp),
        UDP => classify_udp(bytes, transport, udp),
        _ => None,
    }
}

fn classify_tcp(bytes: &[u8], transport: usize, enabled: bool) -> Option<Candidate> {
    let tcp = bytes.get(transport..).filter(|tcp| tcp.len() >= 20)?;
    let header = transport + usize::from(tcp[12] >> 4) * 4;
    let joins = enabled
        && header >= transport + 20
        && header < bytes.len()
        && tcp[13] & !PSH == ACK
        && tcp[12] & 0x0f == 0
        && checksum_holds(bytes, TCP, transport);
    Some(Candidate { transport, header: header.min(bytes.len()), protocol: TCP, joins })
}

fn classify_udp(bytes: &[u8], transport: usize, enabled: bool) -> Option<Candidate> {
    let udp = bytes.get(transport..).filter(|udp| udp.len() >= 8)?;
    let header = transport + 8;
    let joins = enabled
        && bytes.len() > header
        && usize::from(u16::from_be_bytes([udp[4], udp[5]])) == udp.len()
        // Without a checksum (IPv4 may) the kernel would be told to make one: not the same packet.
        && udp[6..8] != [0, 0]
        && checksum_holds(bytes, UDP, transport);
    Some(Candidate { transport, header, protocol: UDP, joins })
}

/// Both checksums: the kernel makes those of a superpacket anew, and must not mend what came broken.
fn checksum_holds(bytes: &[u8], protocol: u8, transport: usize) -> bool {
    let v6 = packet::is_v6(bytes);
    if !v6 && checksum::fold(sum(&bytes[..IPV4_HEADER])) != 0xffff {
        return false;
    }
    let addresses = if v6 { 8..40 } else { 12..20 };
    let pseudo = checksum::pseudo_header(&bytes[addresses], protocol, bytes.len() - transport);
    checksum::fold(pseudo + sum(&bytes[transport..])) == 0xffff
}

/// Addresses and ports.
fn same_flow(first: &[u8], bytes: &[u8], candidate: &Candidate) -> bool {
    let v6 = packet::is_v6(bytes);
    let addresses = if v6 { 8..40 } else { 12..20 };
    let ports = candidate.transport..candidate.transport + 4;
    packet::is_v6(first) == v6 && first[addresses.clone()] == bytes[addresses] && first[ports.clone()] == bytes[ports]
}

/// Whether the kernel, cutting `first` with `bytes` joined to it, would make the IP header of `bytes` again: traffic
/// class with ECN, flow label or flags, hop limit; without DF the identification has to count up.
fn same_ip_header(first: &[u8], bytes: &[u8], next_id: u16) -> bool {
    if packet::is_v6(bytes) {
        return first[..4] == bytes[..4] && first[7] == bytes[7];
    }
    let keeps_id = bytes[6] & 0x40 != 0 || u16::from_be_bytes([bytes[4], bytes[5]]) == next_id;
    first[1] == bytes[1] && first[6..9] == bytes[6..9] && keeps_id
}

fn flow_hash(bytes: &[u8], candidate: &Candidate) -> u32 {
    let at = candidate.transport;
    let mut hash = u64::from(be32(bytes, at));
    let addresses = if packet::is_v6(bytes) { &bytes[8..40] } else { &bytes[12..20] };
    for word in addresses.as_chunks::<8>().0 {
        hash = (hash ^ u64::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32
}

#[cfg(test)]
mod tests;
