//! Fields of inner IP packets (RFC 791, RFC 8200) that routing, source checks and ECN need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;

/// ECN codepoints (RFC 3168 §5), the two low bits of the traffic class: not ECN-capable.
pub const NOT_ECT: u8 = 0;
/// ECN-capable transport, ECT(1).
pub const ECT_1: u8 = 1;
/// Congestion experienced.
pub const CE: u8 = 3;

/// Return true if this can be an IP packet: version 4 or 6, and room for the fixed header.
#[must_use]
pub fn is_ip(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(first) if first >> 4 == 4 => bytes.len() >= IPV4_HEADER,
        Some(first) if first >> 4 == 6 => bytes.len() >= IPV6_HEADER,
        _ => false,
    }
}

/// Return a packet's length by its own header, or None if it is no IP packet or longer than `bytes`.
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    if !is_ip(bytes) {
        return None;
    }
    let length = if is_v6(bytes) {
        // usize, because in 16 bits a payload length of 65,496 or more would wrap around to a short packet.
        IPV6_HEADER + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]))
    } else {
        usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))
    };
    (length >= IPV4_HEADER && length <= bytes.len()).then_some(length)
}

/// Return the length of an IPv4 header by its IHL field, in bytes.
#[must_use]
pub fn header_length_v4(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0x0f) * 4
}

/// Return true for IPv6. `packet` has passed [`is_ip`].
#[must_use]
pub fn is_v6(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
}

/// Return the source address. `packet` has passed [`is_ip`].
#[must_use]
pub fn source(packet: &[u8]) -> IpAddr {
    address(packet, 12, 8)
}

/// Return the destination address. `packet` has passed [`is_ip`].
#[must_use]
pub fn destination(packet: &[u8]) -> IpAddr {
    address(packet, 16, 24)
}

/// Return the address at offset `v4` or `v6`, by the packet's version.
fn address(packet: &[u8], v4: usize, v6: usize) -> IpAddr {
    if is_v6(packet) {
        let octets: [u8; 16] = packet[v6..v6 + 16].try_into().expect("sixteen bytes");
        IpAddr::V6(Ipv6Addr::from(octets))
    } else {
        let octets: [u8; 4] = packet[v4..v4 + 4].try_into().expect("four bytes");
        IpAddr::V4(Ipv4Addr::from(octets))
    }
}

/// Return the ECN field; [`NOT_ECT`] for a packet too short to have one.
#[must_use]
pub fn ecn(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => second & 3,
        [_, second, ..] => second >> 4 & 3,
        _ => NOT_ECT,
    }
}

/// Set the ECN field, and update the IPv4 header checksum for it (RFC 1624, equation 3).
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    if is_v6(packet) {
        packet[1] = packet[1] & !0x30 | ecn << 4;
        return;
    }
    let old = u16::from_be_bytes([packet[0], packet[1]]);
    packet[1] = packet[1] & !3 | ecn;
    let new = u16::from_be_bytes([packet[0], packet[1]]);
    let checksum = u16::from_be_bytes([packet[10], packet[11]]);
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Return the inner ECN field after decapsulation of an outer header with `outer` (RFC 6040 §4.2); None to drop the
/// packet.
#[must_use]
pub fn decapsulated_ecn(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (CE, _) => Some(CE),
        (_, ECT_1) => Some(ECT_1),
        _ => Some(inner),
    }
}

/// Return true for a UDP packet to this address and port, without IPv6 extension headers: the form of a probe.
#[must_use]
pub fn is_udp_v6_to(packet: &[u8], address: Ipv6Addr, port: u16) -> bool {
    packet.len() >= IPV6_HEADER + 8
        && is_v6(packet)
        && packet[6] == UDP
        && packet[24..40] == address.octets()
        && packet[42..44] == port.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    #[test]
    fn an_ipv6_payload_length_near_64_kib_does_not_wrap() {
        let mut packet = vec![0u8; 70];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&0xffe0u16.to_be_bytes());
        assert_eq!(length(&packet), None);
    }

    #[test]
    fn an_ipv4_total_length_below_its_header_is_no_packet() {
        let mut packet = vec![0u8; 40];
        packet[0] = 0x45;
        packet[3] = 19;
        assert_eq!(length(&packet), None);
        packet[3] = 20;
        assert_eq!(length(&packet), Some(20));
    }

    #[test]
    fn decapsulated_ecn_follows_the_table_of_rfc_6040() {
        // Rows: arriving inner Not-ECT, ECT(1), ECT(0), CE; columns: arriving outer Not-ECT, ECT(1), ECT(0), CE.
        let table = [
            (0, [Some(0), Some(0), Some(0), None]),
            (1, [Some(1), Some(1), Some(1), Some(3)]),
            (2, [Some(2), Some(1), Some(2), Some(3)]),
            (3, [Some(3), Some(3), Some(3), Some(3)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in row.into_iter().enumerate() {
                assert_eq!(decapsulated_ecn(inner, outer as u8), expected, "inner {inner}, outer {outer}");
            }
        }
    }

    #[test]
    fn setting_ecn_keeps_the_header_checksum_valid() {
        let mut packet = [0x45u8, 0x02, 0, 20, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let field = checksum::finish(checksum::sum(&packet));
        packet[10..12].copy_from_slice(&field);
        set_ecn(&mut packet, CE);
        assert_eq!(ecn(&packet), CE);
        assert_eq!(checksum::fold(checksum::sum(&packet)), 0xffff);
    }
}
