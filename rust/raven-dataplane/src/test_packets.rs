//! Packets for tests, made in a slow and simple way.

use crate::checksum::{finish, pseudo_header, sum, word};
use crate::packet::{TCP, UDP};
use crate::virtio_net;

/// The packets that one end of a flow sends. `port` is the source port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub v6: bool,
    pub port: u16,
}

pub(crate) const ACK: u8 = 0x10;
pub(crate) const PSH: u8 = 0x08;

impl Flow {
    fn addresses(self) -> Vec<u8> {
        if self.v6 { [[0xfd; 16], [0xfc; 16]].concat() } else { vec![10, 1, 0, 1, 10, 2, 0, 1] }
    }

    fn ip(self, protocol: u8, id: u16, transport: &[u8]) -> Vec<u8> {
        let mut packet = if self.v6 {
            let mut header = vec![0x60, 0x02, 0x34, 0x56];
            header.extend((transport.len() as u16).to_be_bytes());
            header.extend([protocol, 64]);
            header
        } else {
            let mut header = vec![0x45, 0x02];
            header.extend((transport.len() as u16 + 20).to_be_bytes());
            header.extend(id.to_be_bytes());
            header.extend([0x40, 0, 64, protocol, 0, 0]);
            header
        };
        packet.extend(self.addresses());
        if !self.v6 {
            let field = finish(sum(&packet));
            packet[10..12].copy_from_slice(&field);
        }
        packet.extend(transport);
        packet
    }

    fn transport_sum(self, protocol: u8, transport: &[u8]) -> u64 {
        pseudo_header(&self.addresses(), protocol, transport.len()) + sum(transport)
    }

    /// Return a TCP packet with timestamps and valid checksums.
    pub(crate) fn tcp(self, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = [self.port.to_be_bytes(), 80u16.to_be_bytes()].concat();
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 9, 0x80, flags, 1, 0, 0, 0, 0, 0]);
        tcp.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        tcp.extend(payload);
        let field = finish(self.transport_sum(TCP, &tcp));
        tcp[16..18].copy_from_slice(&field);
        self.ip(TCP, sequence as u16, &tcp)
    }

    /// Return a UDP packet with valid checksums; `id` is the IPv4 identification.
    pub(crate) fn udp(self, id: u16, payload: &[u8]) -> Vec<u8> {
        let mut udp = [self.port.to_be_bytes(), 53u16.to_be_bytes()].concat();
        udp.extend((payload.len() as u16 + 8).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        let field = finish(self.transport_sum(UDP, &udp));
        udp[6..8].copy_from_slice(&if field == [0, 0] { [0xff, 0xff] } else { field });
        self.ip(UDP, id, &udp)
    }

    /// Return the offset of the transport header.
    pub(crate) fn transport(self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// Return the virtio-net header that makes a packet a superpacket with segments of `size`, and the packet with a
    /// partial checksum.
    pub(crate) fn superpacket(self, mut packet: Vec<u8>, protocol: u8, size: u16) -> (virtio_net::Header, Vec<u8>) {
        let start = self.transport();
        let (gso_type, offset) = match (protocol, self.v6) {
            (TCP, false) => (virtio_net::GSO_TCPV4, 16),
            (TCP, true) => (virtio_net::GSO_TCPV6, 16),
            _ => (virtio_net::GSO_UDP_L4, 6),
        };
        let pseudo = pseudo_header(&self.addresses(), protocol, packet.len() - start);
        let seed = crate::checksum::fold(pseudo).to_ne_bytes();
        packet[start + offset..start + offset + 2].copy_from_slice(&seed);
        let header = virtio_net::Header {
            flags: virtio_net::NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size: size,
            csum_start: start as u16,
            csum_offset: offset as u16,
        };
        (header, packet)
    }
}

/// Return true if both checksums of a packet made here are valid.
pub(crate) fn has_valid_checksums(packet: &[u8]) -> bool {
    let v6 = packet[0] >> 4 == 6;
    let (start, protocol) = if v6 { (40, packet[6]) } else { (20, packet[9]) };
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    let ip = v6 || finish(sum(&packet[..20])) == [0, 0];
    let length = packet.len() - start;
    let total = sum(addresses) + word(u16::from(protocol)) + word(length as u16) + sum(&packet[start..]);
    ip && finish(total) == [0, 0]
}
