//! Cryptokey routing (WireGuard whitepaper §2): the peers of each prefix.
//!
//! A body has two such tables: routes (the peers that carry packets to a prefix) and accepted sources (the peers that
//! may send from a prefix). They are separate because the two ends of a change never switch at the same instant.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::prefixes::{Prefix, PrefixMap};

/// Peer handles by prefix, with the reverse index: removing a peer costs O(prefixes of that peer), not O(table).
#[derive(Default)]
pub struct CryptokeyTable {
    /// Peer handles, in order of preference for routes.
    prefixes: PrefixMap<Vec<usize>>,
    /// Reverse index by peer handle. Invariant: holds exactly the pairs of `prefixes`, and no empty set.
    prefixes_of: HashMap<usize, HashSet<Prefix>>,
}

impl CryptokeyTable {
    /// Return the peers of the longest prefix that contains `address`; empty if none does.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> &[usize] {
        self.prefixes.longest_match(address).map_or(&[], Vec::as_slice)
    }

    /// Set the peers of `prefix`, replacing those before; remove the prefix if `peers` is empty.
    pub fn set(&mut self, prefix: Prefix, peers: Vec<usize>) {
        for peer in self.prefixes.remove(prefix).unwrap_or_default() {
            self.unlink(peer, prefix);
        }
        if peers.is_empty() {
            return;
        }
        for peer in &peers {
            self.prefixes_of.entry(*peer).or_default().insert(prefix);
        }
        self.prefixes.insert(prefix, peers);
    }

    /// Add a peer to `prefix`; no effect if it is there.
    pub fn add(&mut self, prefix: Prefix, peer: usize) {
        if !self.prefixes_of.entry(peer).or_default().insert(prefix) {
            return;
        }
        match self.prefixes.get_mut(prefix) {
            Some(peers) => peers.push(peer),
            None => self.prefixes.insert(prefix, vec![peer]),
        }
    }

    /// Remove a peer from `prefix`; no effect if it is not there. A prefix without peers is removed.
    pub fn remove(&mut self, prefix: Prefix, peer: usize) {
        self.unlink(peer, prefix);
        let Some(peers) = self.prefixes.get_mut(prefix) else { return };
        peers.retain(|one| *one != peer);
        if peers.is_empty() {
            self.prefixes.remove(prefix);
        }
    }

    /// Remove a peer from every prefix. A prefix without peers is removed.
    pub fn remove_peer(&mut self, peer: usize) {
        for prefix in self.prefixes_of.remove(&peer).unwrap_or_default() {
            self.remove(prefix, peer);
        }
    }

    /// Remove one pair from the reverse index.
    fn unlink(&mut self, peer: usize, prefix: Prefix) {
        if let Some(prefixes) = self.prefixes_of.get_mut(&peer) {
            prefixes.remove(&prefix);
            if prefixes.is_empty() {
                self.prefixes_of.remove(&peer);
            }
        }
    }
}

/// Slots of an [`AddressCache`]. [`slot_of`] takes the top 8 bits of its hash.
const CACHE_SLOTS: usize = 256;

/// Recent lookup results by address: a direct-mapped cache that needs no trie walk for a flow's next packet.
///
/// The owner calls `clear` whenever a prefix or a peer changes.
pub struct AddressCache<T> {
    entries: Box<[Option<(IpAddr, T)>; CACHE_SLOTS]>,
}

impl<T: Copy> Default for AddressCache<T> {
    fn default() -> Self {
        Self { entries: Box::new([None; CACHE_SLOTS]) }
    }
}

impl<T: Copy> AddressCache<T> {
    /// Return the cached value of `address`, or None if its slot holds another address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        self.entries[slot_of(address)].filter(|(known, _)| *known == address).map(|(_, answer)| answer)
    }

    /// Cache the value of `address`; the address in its slot before is evicted.
    pub fn insert(&mut self, address: IpAddr, answer: T) {
        self.entries[slot_of(address)] = Some((address, answer));
    }

    /// Remove every value.
    pub fn clear(&mut self) {
        self.entries.fill(None);
    }
}

/// Return the slot of an address: multiplicative hashing with 2^64 divided by the golden ratio.
fn slot_of(address: IpAddr) -> usize {
    let bits = match address {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            (bits >> 64) as u64 ^ bits as u64
        }
    };
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(text.parse().expect("an address"), length).expect("a prefix")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn setting_a_prefix_replaces_its_peers() {
        let mut routes = CryptokeyTable::default();
        routes.set(prefix("10.1.0.0", 16), vec![1]);
        routes.set(prefix("10.1.0.0", 16), vec![2, 3]);
        assert_eq!(routes.lookup(address("10.1.2.3")), [2, 3]);
        routes.remove_peer(1);
        assert_eq!(routes.lookup(address("10.1.2.3")), [2, 3]);
        routes.remove_peer(2);
        assert_eq!(routes.lookup(address("10.1.2.3")), [3]);
        routes.remove_peer(3);
        assert_eq!(routes.lookup(address("10.1.2.3")), []);
    }

    #[test]
    fn a_prefix_can_have_several_peers() {
        let mut accepted = CryptokeyTable::default();
        let net = prefix("fd00::", 64);
        for peer in [1, 2, 2] {
            accepted.add(net, peer);
        }
        assert_eq!(accepted.lookup(address("fd00::9")), [1, 2]);
        accepted.remove(net, 1);
        accepted.remove(net, 7);
        assert_eq!(accepted.lookup(address("fd00::9")), [2]);
        accepted.remove(net, 2);
        assert_eq!(accepted.lookup(address("fd00::9")), []);
        assert!(accepted.prefixes_of.is_empty());
    }

    #[test]
    fn an_address_with_the_same_cache_slot_is_a_miss() {
        let mut cache = AddressCache::default();
        let one = address("10.0.0.1");
        let other = (0..100_000u32)
            .map(|n| IpAddr::V4(n.into()))
            .find(|other| slot_of(*other) == slot_of(one) && *other != one)
            .expect("a collision");
        cache.insert(one, 5);
        assert_eq!((cache.lookup(one), cache.lookup(other)), (Some(5), None));
        cache.clear();
        assert_eq!(cache.lookup(one), None);
    }
}
