//! Longest-prefix match over both address families. The tries are those of the crate prefix-trie.
//!
//! There is no cache here: the caller caches results, because it can tell how long they are valid.

use std::net::IpAddr;

use prefix_trie::PrefixMap as Trie;

/// A network prefix. Invariant: the bits of the address beyond `length` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Make a prefix and clear its host bits. None if `length` is more than 32 (IPv4) or 128 (IPv6).
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                IpAddr::V4((u32::from(v4) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) if length <= 128 => {
                IpAddr::V6((u128::from(v6) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into())
            }
            _ => return None,
        };
        Some(Self { address, length })
    }
}

/// A map from prefixes of both families to values.
pub struct PrefixMap<T> {
    v4: Trie<(u32, u8), T>,
    v6: Trie<(u128, u8), T>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { v4: Trie::new(), v6: Trie::new() }
    }
}

impl<T> PrefixMap<T> {
    /// Return the value of the longest prefix that contains `address`.
    #[must_use]
    pub fn longest_match(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(v4) => self.v4.get_lpm(&(u32::from(v4), 32)).map(|(_, value)| value),
            IpAddr::V6(v6) => self.v6.get_lpm(&(u128::from(v6), 128)).map(|(_, value)| value),
        }
    }

    /// Return the value of exactly this prefix, to change.
    pub fn get_mut(&mut self, prefix: Prefix) -> Option<&mut T> {
        match prefix.address {
            IpAddr::V4(v4) => self.v4.get_mut(&(u32::from(v4), prefix.length)),
            IpAddr::V6(v6) => self.v6.get_mut(&(u128::from(v6), prefix.length)),
        }
    }

    /// Set the value of a prefix, replacing the one before.
    pub fn insert(&mut self, prefix: Prefix, value: T) {
        match prefix.address {
            IpAddr::V4(v4) => drop(self.v4.insert((u32::from(v4), prefix.length), value)),
            IpAddr::V6(v6) => drop(self.v6.insert((u128::from(v6), prefix.length), value)),
        }
    }

    /// Remove a prefix and return its value.
    pub fn remove(&mut self, prefix: Prefix) -> Option<T> {
        match prefix.address {
            IpAddr::V4(v4) => self.v4.remove(&(u32::from(v4), prefix.length)),
            IpAddr::V6(v6) => self.v6.remove(&(u128::from(v6), prefix.length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(text.parse().expect("an address"), length).expect("a prefix")
    }

    #[test]
    fn a_new_prefix_has_its_host_bits_cleared() {
        assert_eq!(prefix("10.1.2.3", 8), prefix("10.0.0.0", 8));
        assert_eq!(prefix("10.1.2.3", 0), prefix("0.0.0.0", 0));
        assert_eq!(Prefix::new("10.0.0.0".parse().expect("an address"), 33), None);
    }

    #[test]
    fn the_ipv4_default_route_does_not_match_an_ipv6_address() {
        let mut map = PrefixMap::default();
        map.insert(prefix("0.0.0.0", 0), 4);
        assert_eq!(map.longest_match("::1".parse().expect("an address")), None);
    }

    proptest! {
        #[test]
        fn longest_match_agrees_with_a_linear_search(
            entries in proptest::collection::vec((any::<u32>(), 0u8..=32, any::<bool>()), 0..60),
            asked in proptest::collection::vec(any::<u32>(), 20),
        ) {
            let mut map = PrefixMap::default();
            let mut list: Vec<(Prefix, u32)> = Vec::new();
            for (address, length, insert) in &entries {
                let one = Prefix::new(IpAddr::V4((address & 0x8080_8080).into()), *length).expect("a prefix");
                list.retain(|(other, _)| *other != one);
                map.remove(one);
                if *insert {
                    map.insert(one, *address);
                    list.push((one, *address));
                }
            }
            for address in asked {
                let address = IpAddr::V4((address & 0x8080_8080).into());
                let expected = list
                    .iter()
                    .filter(|(one, _)| Prefix::new(address, one.length) == Some(*one))
                    .max_by_key(|(one, _)| one.length)
                    .map(|(_, value)| value);
                prop_assert_eq!(map.longest_match(address), expected);
            }
        }
    }
}
