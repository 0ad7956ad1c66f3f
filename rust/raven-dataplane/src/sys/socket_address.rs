//! Socket addresses in the kernel's layout, so that no packet needs a conversion.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes of an IPv4 address as the kernel takes it.
const V4: usize = size_of::<libc::sockaddr_in>();
/// Bytes of an IPv6 address as the kernel takes it.
const V6: usize = size_of::<libc::sockaddr_in6>();

/// A sockaddr_in or sockaddr_in6; all zero when unset. Compared byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct RawAddress {
    bytes: [u8; V6],
}

impl Default for RawAddress {
    fn default() -> Self {
        Self { bytes: [0; V6] }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut bytes = [0; V6];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        Self { bytes }
    }
}

impl RawAddress {
    /// Return the address, or None if it is of another family. The scope is kept for link-local addresses only, where
    /// it has a meaning.
    #[must_use]
    pub fn to_socket_addr(self) -> Option<SocketAddr> {
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        let family = i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        if family == libc::AF_INET {
            let octets: [u8; 4] = self.bytes[4..8].try_into().ok()?;
            Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(octets), port)))
        } else if family == libc::AF_INET6 {
            let octets: [u8; 16] = self.bytes[8..24].try_into().ok()?;
            let ip = Ipv6Addr::from(octets);
            let scope = u32::from_ne_bytes(self.bytes[24..28].try_into().ok()?);
            let scope = if ip.is_unicast_link_local() { scope } else { 0 };
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        } else {
            None
        }
    }

    /// Return true if the port is not 0: a datagram may come from port 0 (RFC 768), but none can be sent there.
    #[must_use]
    pub fn can_be_answered(&self) -> bool {
        self.bytes[2..4] != [0, 0]
    }

    /// Return true if the family is AF_INET6.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]])) == libc::AF_INET6
    }

    /// Return the first `length` bytes, which the kernel wrote, and zeros: the buffer may hold the end of a longer
    /// address.
    pub(super) fn truncated_to(mut self, length: libc::socklen_t) -> Self {
        if let Some(rest) = self.bytes.get_mut(length as usize..) {
            rest.fill(0);
        }
        self
    }

    /// Return the pointer for msg_name. Sending only reads through it.
    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.bytes.as_mut_ptr().cast()
    }

    /// Return the length for msg_namelen when sending.
    pub(super) fn len(&self) -> libc::socklen_t {
        (if self.is_v6() { V6 } else { V4 }) as libc::socklen_t
    }

    /// Value of msg_namelen when receiving: room for either family.
    pub(super) const ROOM: libc::socklen_t = V6 as libc::socklen_t;
}

/// The local address and interface that a datagram arrived at (IP_PKTINFO). Answers leave from that address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub address: IpAddr,
    pub ifindex: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_round_trip() {
        for text in ["192.0.2.1:4500", "[2001:db8::1]:1", "[fe80::1%3]:51820"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(RawAddress::from(address).to_socket_addr(), Some(address));
        }
    }

    #[test]
    fn the_end_of_a_longer_address_is_zeroed() {
        let (v4, v6) = ("192.0.2.1:4500", "[2001:db8::1]:1");
        let [v4, v6] = [v4, v6].map(|text| RawAddress::from(text.parse::<SocketAddr>().expect("an address")));
        let mut slot = v6;
        slot.bytes[..V4].copy_from_slice(&v4.bytes[..V4]);
        assert_eq!(slot.truncated_to(V4 as libc::socklen_t), v4);
    }

    #[test]
    fn the_scope_of_a_global_address_is_dropped() {
        let address: SocketAddr = "[2001:db8::1%3]:1".parse().expect("an address");
        assert_eq!(RawAddress::from(address).to_socket_addr(), "[2001:db8::1]:1".parse().ok());
    }
}
