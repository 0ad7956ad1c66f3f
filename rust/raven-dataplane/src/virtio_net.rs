//! struct virtio_net_hdr (include/uapi/linux/virtio_net.h), the ten bytes before every frame of the TUN
//! (IFF_VNET_HDR).

/// Bytes of the header.
pub const LEN: usize = 10;

/// Flag: the checksum at `csum_start + csum_offset` is partial.
pub const NEEDS_CSUM: u8 = 1;
/// `gso_type` of a single packet.
pub const GSO_NONE: u8 = 0;
/// `gso_type` of a TCP superpacket over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type` of a TCP superpacket over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type` of a UDP superpacket, either family (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Flag in `gso_type`: TCP with CWR set.
pub const GSO_ECN: u8 = 0x80;

/// The header of a frame. On the TUN, fields are in the machine's byte order. The kernel's header documents the
/// fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl Header {
    /// Parse the bytes before a frame.
    #[must_use]
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: u16_at(2),
            gso_size: u16_at(4),
            csum_start: u16_at(6),
            csum_offset: u16_at(8),
        }
    }

    /// Return the bytes to write before a frame.
    #[must_use]
    pub fn pack(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// Return `gso_type` without the ECN flag.
    #[must_use]
    pub fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}
