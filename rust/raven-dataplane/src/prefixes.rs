//! Longest-prefix match over both families. The trie is prefix-trie's; a cache in front of it is the caller's, who
//! knows how long an answer holds.

use std::net::IpAddr;

use prefix_trie::PrefixMap as Trie;

/// A network; bits beyond `length` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// None if `length` is more than the family has bits. Host bits are cleared.
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

/// PrefixMap to values.
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
    /// The value of the longest prefix over `address`.
    #[must_use]
    pub fn longest_match(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(v4) => self.v4.get_lpm(&(u32::from(v4), 32)).map(|(_, value)| value),
            IpAddr::V6(v6) => self.v6.get_lpm(&(u128::from(v6), 128)).map(|(_, value)| value),
        }
    }

    /// The value of exactly this prefix.
    pub fn get_mut(&mut self, prefix: Prefix) -> Option<&mut T> {
        match prefix.address {
            IpAddr::V4(v4) => self.v4.get_mut(&(u32::from(v4), prefix.length)),
            IpAddr::V6(v6) => self.v6.get_mut(&(u128::from(v6), prefix.length)),
        }
    }

    pub fn insert(&mut self, prefix: Prefix, value: T) {
        match prefix.address {
            IpAddr::V4(v4) => drop(self.v4.insert((u32::from(v4), prefix.length), value)),
            IpAddr::V6(v6) => drop(self.v6.insert((u128::from(v6), prefix.length), value)),
        }
    }

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
    fn host_bits_are_cleared() {
        assert_eq!(prefix("10.1.2.3", 8), prefix("10.0.0.0", 8));
        assert_eq!(prefix("10.1.2.3", 0), prefix("0.0.0.0", 0));
        assert_eq!(Prefix::new("10.0.0.0".parse().expect("an address"), 33), None);
    }

    #[test]
    fn an_address_of_the_other_family_matches_no_default() {
        let mut map = PrefixMap::default();
        map.insert(prefix("0.0.0.0", 0), 4);
        assert_eq!(map.longest_match("::1".parse().expect("an address")), None);
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_a_list(
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
