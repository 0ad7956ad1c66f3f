//! Coalescing: packets of one flow become superpackets for the TUN, which cost one write (the kernel's term: GRO).
//!
//! No payload is copied. Packets stay in the arena where they were decrypted, and an [`Output`] lists the slices of
//! the arena that follow a header made here. The kernel takes the fields of a superpacket as checked, so only valid
//! packets are coalesced, and segmenting a superpacket again gives the same packets.
//!
//! Order: outputs are in the order of their first packets. A packet that can not be appended to its flow's last item
//! becomes the flow's last item, and a packet of unknown flow (a fragment, for example) closes all items. So no flow
//! is reordered.

use std::io::IoSlice;

use crate::checksum::{self, sum};
use crate::packet::{self, IPV4_HEADER, IPV6_HEADER, TCP, UDP};
use crate::virtio_net;

/// Limit of packets in a superpacket. Kernels check it for UDP (UDP_MAX_SEGMENTS, 64 before Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;
/// Limit of a superpacket in bytes: the length field of IPv4.
const MAX_LENGTH: usize = 65535;
/// Longest header of a superpacket: IPv6 without extension headers, TCP with all options.
const MAX_HEADER: usize = IPV6_HEADER + 60;
/// Entries of the flow table, a power of two.
const TABLE_SLOTS: usize = 1024;
/// Entries probed for a flow. A flow that finds none gets an item per packet.
const MAX_PROBES: usize = 8;
/// TCP flags.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// End of an item's list of segments.
const END: u32 = u32::MAX;

/// A packet in the arena, and the next one of its item.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Offset in the arena.
    at: u32,
    length: u32,
    /// Index of the next segment of the item, or [`END`].
    next: u32,
}

/// Packets of one flow that become one frame: the segments from `first` to `last`. Later packets are appended at the
/// end.
#[derive(Clone, Copy, Debug)]
struct Item {
    /// Indices of the first and the last segment.
    first: u32,
    last: u32,
    /// Packets.
    count: u32,
    /// Bytes of IP and transport header; 0 for a packet of unknown flow.
    header: u16,
    /// Offset of the transport header.
    transport: u16,
    /// Payload bytes of the first packet, and so of all but the last.
    size: u16,
    /// Bytes of the superpacket, with one header.
    total: u32,
    /// TCP sequence number that the next packet must have.
    sequence: u32,
    /// IPv4 identification that the next packet must have if DF is not set.
    id: u16,
    /// The last packet has PSH.
    push: bool,
    /// No packet can be appended.
    closed: bool,
    protocol: u8,
}

/// An entry of the flow table: open addressing with linear probing.
#[derive(Clone, Copy, Debug)]
struct FlowEntry {
    /// The entry is in use if this is the coalescer's generation.
    generation: u32,
    /// Of the flow: see [`flow_hash`].
    hash: u32,
    /// Index of the flow's last item.
    item: u32,
}

/// The fields of a TCP or UDP packet that decide whether it can be coalesced.
struct Candidate {
    /// Offset of the transport header.
    transport: usize,
    /// Offset of the payload.
    header: usize,
    protocol: u8,
    /// The packet is valid and of a kind that can be coalesced.
    joinable: bool,
}

/// Collects the packets of one batch: `push` packets, write the `outputs`, then `clear`. The arena is unchanged
/// meanwhile.
pub struct Coalescer {
    /// Frames, in the order of their first packets.
    items: Vec<Item>,
    /// Packets, in the order of `push`.
    segments: Vec<Segment>,
    /// Flows with an item that packets may be appended to.
    table: Box<[FlowEntry; TABLE_SLOTS]>,
    /// Incremented to empty `table` without writing to it. Never 0 while in use.
    generation: u32,
    /// TCP packets may be coalesced.
    pub tcp: bool,
    /// UDP packets may be coalesced.
    pub udp: bool,
}

/// One frame for the TUN: a packet as it is, or a superpacket.
pub struct Output<'a> {
    coalescer: &'a Coalescer,
    item: Item,
}

impl Coalescer {
    /// Make an empty coalescer for TCP, UDP or both.
    #[must_use]
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self {
            items: Vec::with_capacity(2048),
            segments: Vec::with_capacity(8192),
            table: Box::new([FlowEntry { generation: 0, hash: 0, item: 0 }; TABLE_SLOTS]),
            generation: 1,
            tcp,
            udp,
        }
    }

    /// Return the number of packets pushed since `clear`.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.segments.len()
    }

    /// Add the packet `arena[at..at + length]`, whose header has this length ([`packet::length`]).
    pub fn push(&mut self, arena: &[u8], at: usize, length: usize) {
        let bytes = &arena[at..at + length];
        if let Some(candidate) = classify(bytes, self.tcp, self.udp) {
            self.push_classified(arena, at, length, &candidate);
        } else {
            self.close_all();
            self.add_item(at, length, None);
        }
    }

    /// Append the packet to its flow's last item, or begin a new item.
    fn push_classified(&mut self, arena: &[u8], at: usize, length: usize, candidate: &Candidate) {
        let bytes = &arena[at..at + length];
        let hash = flow_hash(bytes, candidate);
        let mut free = None;
        for probe in 0..MAX_PROBES {
            let handle = (hash as usize).wrapping_add(probe) & (TABLE_SLOTS - 1);
            let entry = self.table[handle];
            if entry.generation != self.generation {
                free = Some(handle);
                break;
            }
            if entry.hash != hash {
                continue;
            }
            let item = &self.items[entry.item as usize];
            let first = &arena[self.segments[item.first as usize].at as usize..];
            if item.protocol != candidate.protocol || !same_flow(first, bytes, candidate) {
                continue;
            }
            if candidate.joinable && item.can_append(first, bytes, candidate) {
                self.append(entry.item, bytes, at, candidate);
            } else {
                self.table[handle].item = self.items.len() as u32;
                self.add_item(at, length, Some((bytes, candidate)));
            }
            return;
        }
        if let Some(handle) = free {
            self.table[handle] = FlowEntry { generation: self.generation, hash, item: self.items.len() as u32 };
        }
        self.add_item(at, length, Some((bytes, candidate)));
    }

    /// Add a packet to the segment list and return its index.
    fn add_segment(&mut self, at: usize, length: usize) -> u32 {
        let index = self.segments.len() as u32;
        self.segments.push(Segment { at: at as u32, length: length as u32, next: END });
        index
    }

    /// Begin an item with this packet; without a classification the item is closed.
    fn add_item(&mut self, at: usize, length: usize, classified: Option<(&[u8], &Candidate)>) {
        let segment = self.add_segment(at, length);
        let mut item = Item {
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
            closed: true,
            protocol: 0,
        };
        if let Some((bytes, candidate)) = classified {
            let size = length - candidate.header;
            item.protocol = candidate.protocol;
            item.header = candidate.header as u16;
            item.transport = candidate.transport as u16;
            item.size = size as u16;
            item.closed = !candidate.joinable;
            item.record_last(bytes, candidate, size);
        }
        self.items.push(item);
    }

    /// Append a packet to an item that can take it. A shorter packet closes the item.
    fn append(&mut self, item: u32, bytes: &[u8], at: usize, candidate: &Candidate) {
        let segment = self.add_segment(at, bytes.len());
        let item = &mut self.items[item as usize];
        self.segments[item.last as usize].next = segment;
        let size = bytes.len() - candidate.header;
        item.last = segment;
        item.count += 1;
        item.total += size as u32;
        item.closed |= size < usize::from(item.size);
        item.record_last(bytes, candidate, size);
    }

    /// Close all items, by emptying the flow table.
    fn close_all(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.table.fill(FlowEntry { generation: 0, hash: 0, item: 0 });
            self.generation = 1;
        }
    }

    /// Return the frames to write, in order.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = Output<'_>> {
        self.items.iter().map(|item| Output { coalescer: self, item: *item })
    }

    /// Return the frame at this index of `outputs`.
    #[must_use]
    pub fn output(&self, index: usize) -> Output<'_> {
        Output { coalescer: self, item: self.items[index] }
    }

    /// Remove all packets. The arena can be reused.
    pub fn clear(&mut self) {
        self.items.clear();
        self.segments.clear();
        self.close_all();
    }
}

impl Item {
    /// Record what the last packet, `bytes`, requires of the next one; PSH closes the item.
    fn record_last(&mut self, bytes: &[u8], candidate: &Candidate, size: usize) {
        let transport = &bytes[candidate.transport..];
        if candidate.protocol == TCP {
            self.sequence = be32(transport, 4).wrapping_add(size as u32);
            if transport[13] & PSH != 0 {
                self.push = true;
                self.closed = true;
            }
        }
        if !packet::is_v6(bytes) {
            self.id = u16::from_be_bytes([bytes[4], bytes[5]]).wrapping_add(1);
        }
    }

    /// Return true if `bytes`, a packet of this item's flow, can be appended. `first` starts with the item's first
    /// packet.
    fn can_append(&self, first: &[u8], bytes: &[u8], candidate: &Candidate) -> bool {
        let size = bytes.len() - candidate.header;
        if self.closed
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
    /// Return the number of packets in the frame.
    #[must_use]
    pub fn count(&self) -> usize {
        self.item.count as usize
    }

    /// Return true for TCP, false for UDP and packets of unknown flow.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.item.protocol == TCP
    }

    /// Return the packets: (offset, length) in the arena.
    pub fn packets(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut next = self.item.first;
        std::iter::from_fn(move || {
            let segment = self.coalescer.segments.get(next as usize)?;
            next = segment.next;
            Some((segment.at as usize, segment.length as usize))
        })
    }

    /// Return the parts after [`Self::write_header`]: the packet as it is, or the payloads of a superpacket.
    pub fn slices<'a>(&self, arena: &'a [u8]) -> impl Iterator<Item = IoSlice<'a>> {
        let header = if self.count() > 1 { usize::from(self.item.header) } else { 0 };
        self.packets().map(move |(at, length)| IoSlice::new(&arena[at + header..at + length]))
    }

    /// Write the parts before `slices`: a virtio-net header (empty for a single packet), and for a superpacket its IP
    /// and transport headers. Return the number of bytes written.
    pub fn write_header(&self, arena: &[u8], target: &mut [u8; virtio_net::LEN + MAX_HEADER]) -> usize {
        if self.count() == 1 {
            target[..virtio_net::LEN].fill(0);
            return virtio_net::LEN;
        }
        let item = &self.item;
        let header = usize::from(item.header);
        let transport = usize::from(item.transport);
        let first = self.coalescer.segments[item.first as usize].at as usize;
        let packet = &mut target[virtio_net::LEN..virtio_net::LEN + header];
        packet.copy_from_slice(&arena[first..first + header]);
        let total = item.total as usize;
        let v6 = packet::is_v6(packet);
        if v6 {
            packet[4..6].copy_from_slice(&((total - IPV6_HEADER) as u16).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            packet[10..12].fill(0);
            let field = checksum::finish(sum(&packet[..IPV4_HEADER]));
            packet[10..12].copy_from_slice(&field);
        }
        let (gso_type, csum_offset) = match (item.protocol, v6) {
            (TCP, false) => (virtio_net::GSO_TCPV4, 16),
            (TCP, true) => (virtio_net::GSO_TCPV6, 16),
            _ => (virtio_net::GSO_UDP_L4, 6),
        };
        if item.protocol == TCP {
            packet[transport + 13] |= if item.push { PSH } else { 0 };
        } else {
            packet[transport + 4..transport + 6].copy_from_slice(&((total - transport) as u16).to_be_bytes());
        }
        // NEEDS_CSUM: the field holds the sum of the pseudo-header, not complemented, and the kernel adds the rest.
        let addresses = if v6 { 8..40 } else { 12..20 };
        let pseudo = checksum::pseudo_header(&packet[addresses], item.protocol, total - transport);
        let field = transport + csum_offset;
        packet[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        let virtio = virtio_net::Header {
            flags: virtio_net::NEEDS_CSUM,
            gso_type,
            hdr_len: item.header,
            gso_size: item.size,
            csum_start: item.transport,
            csum_offset: csum_offset as u16,
        };
        target[..virtio_net::LEN].copy_from_slice(&virtio.pack());
        virtio_net::LEN + header
    }
}

/// Bytes of the longest header that [`Output::write_header`] writes.
pub const HEADER_ROOM: usize = virtio_net::LEN + MAX_HEADER;

/// Return the big-endian 32-bit word at `at`.
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Classify a TCP or UDP packet. None for a packet of unknown flow: fragments, IPv4 options, IPv6 extension headers,
/// and other protocols.
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

/// Classify TCP. Coalesced are packets with payload whose flags are ACK alone, or with PSH, and whose checksums are
/// valid.
fn classify_tcp(bytes: &[u8], transport: usize, enabled: bool) -> Option<Candidate> {
    let tcp = bytes.get(transport..).filter(|tcp| tcp.len() >= 20)?;
    let header = transport + usize::from(tcp[12] >> 4) * 4;
    let joinable = enabled
        && header >= transport + 20
        && header < bytes.len()
        && tcp[13] & !PSH == ACK
        && tcp[12] & 0x0f == 0
        && checksum_holds(bytes, TCP, transport);
    Some(Candidate { transport, header: header.min(bytes.len()), protocol: TCP, joinable })
}

/// Classify UDP. Coalesced are packets with payload, a matching length field and a valid checksum.
fn classify_udp(bytes: &[u8], transport: usize, enabled: bool) -> Option<Candidate> {
    let udp = bytes.get(transport..).filter(|udp| udp.len() >= 8)?;
    let header = transport + 8;
    let joinable = enabled
        && bytes.len() > header
        && usize::from(u16::from_be_bytes([udp[4], udp[5]])) == udp.len()
        // IPv4 allows UDP without a checksum. Coalesced, the packet would get one from the kernel, and not be the
        // same.
        && udp[6..8] != [0, 0]
        && checksum_holds(bytes, UDP, transport);
    Some(Candidate { transport, header, protocol: UDP, joinable })
}

/// Return true if the IPv4 and the transport checksum are valid. The kernel makes new checksums for the segments of a
/// superpacket, so a corrupt packet must not become part of one: it would look valid.
fn checksum_holds(bytes: &[u8], protocol: u8, transport: usize) -> bool {
    let v6 = packet::is_v6(bytes);
    if !v6 && checksum::fold(sum(&bytes[..IPV4_HEADER])) != 0xffff {
        return false;
    }
    let addresses = if v6 { 8..40 } else { 12..20 };
    let pseudo = checksum::pseudo_header(&bytes[addresses], protocol, bytes.len() - transport);
    checksum::fold(pseudo + sum(&bytes[transport..])) == 0xffff
}

/// Return true if two packets of one protocol have the same addresses and ports. `first` starts with a whole packet.
fn same_flow(first: &[u8], bytes: &[u8], candidate: &Candidate) -> bool {
    let v6 = packet::is_v6(bytes);
    let addresses = if v6 { 8..40 } else { 12..20 };
    let ports = candidate.transport..candidate.transport + 4;
    packet::is_v6(first) == v6 && first[addresses.clone()] == bytes[addresses] && first[ports.clone()] == bytes[ports]
}

/// Return true if the kernel, segmenting a superpacket with `first`'s header, would make the IP header of `bytes`
/// again: equal traffic class with ECN, flow label or flags, and hop limit. Without DF the identification has to
/// count up.
fn same_ip_header(first: &[u8], bytes: &[u8], next_id: u16) -> bool {
    if packet::is_v6(bytes) {
        return first[..4] == bytes[..4] && first[7] == bytes[7];
    }
    let keeps_id = bytes[6] & 0x40 != 0 || u16::from_be_bytes([bytes[4], bytes[5]]) == next_id;
    first[1] == bytes[1] && first[6..9] == bytes[6..9] && keeps_id
}

/// Return the hash of addresses and ports, in 24 bits.
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
