//! Which peers hold which prefixes: once for where packets go, once for where they may come from.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::prefixes::{Prefix, PrefixMap};

/// Places of peers by prefix, and back, so that forgetting a peer does not walk the table.
#[derive(Default)]
pub struct CryptokeyTable {
    prefixes: PrefixMap<Vec<usize>>,
    held: HashMap<usize, HashSet<Prefix>>,
}

impl CryptokeyTable {
    /// The holders of the longest prefix over `address`.
    #[must_use]
    pub fn longest_match(&self, address: IpAddr) -> &[usize] {
        self.prefixes.longest_match(address).map_or(&[], Vec::as_slice)
    }

    /// Gives `prefix` to these peers, whoever had it; to nobody if there are none.
    pub fn set(&mut self, prefix: Prefix, peers: Vec<usize>) {
        for peer in self.prefixes.remove(prefix).unwrap_or_default() {
            self.release(peer, prefix);
        }
        if peers.is_empty() {
            return;
        }
        for peer in &peers {
            self.held.entry(*peer).or_default().insert(prefix);
        }
        self.prefixes.insert(prefix, peers);
    }

    /// One more holder.
    pub fn add(&mut self, prefix: Prefix, peer: usize) {
        if !self.held.entry(peer).or_default().insert(prefix) {
            return;
        }
        match self.prefixes.get_mut(prefix) {
            Some(peers) => peers.push(peer),
            None => self.prefixes.insert(prefix, vec![peer]),
        }
    }

    /// One holder less; nothing happens if it is none.
    pub fn remove(&mut self, prefix: Prefix, peer: usize) {
        self.release(peer, prefix);
        let Some(peers) = self.prefixes.get_mut(prefix) else { return };
        peers.retain(|one| *one != peer);
        if peers.is_empty() {
            self.prefixes.remove(prefix);
        }
    }

    /// Takes a peer out of every prefix; one that it held alone goes.
    pub fn remove_peer(&mut self, peer: usize) {
        for prefix in self.held.remove(&peer).unwrap_or_default() {
            self.remove(prefix, peer);
        }
    }

    fn release(&mut self, peer: usize, prefix: Prefix) {
        if let Some(held) = self.held.get_mut(&peer) {
            held.remove(&prefix);
            if held.is_empty() {
                self.held.remove(&peer);
            }
        }
    }
}

const HITS: usize = 256;

/// Answers given lately, by address. To be cleared when anything changes that they depend on.
pub struct AddressCache<T> {
    entries: Box<[Option<(IpAddr, T)>; HITS]>,
}

impl<T: Copy> Default for AddressCache<T> {
    fn default() -> Self {
        Self { entries: Box::new([None; HITS]) }
    }
}

impl<T: Copy> AddressCache<T> {
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<T> {
        self.entries[slot(address)].filter(|(known, _)| *known == address).map(|(_, answer)| answer)
    }

    pub fn put(&mut self, address: IpAddr, answer: T) {
        self.entries[slot(address)] = Some((address, answer));
    }

    pub fn clear(&mut self) {
        self.entries.fill(None);
    }
}

fn slot(address: IpAddr) -> usize {
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
    fn a_prefix_moves_from_one_peer_to_another() {
        let mut routes = CryptokeyTable::default();
        routes.set(prefix("10.1.0.0", 16), vec![1]);
        routes.set(prefix("10.1.0.0", 16), vec![2, 3]);
        assert_eq!(routes.longest_match(address("10.1.2.3")), [2, 3]);
        routes.remove_peer(1);
        assert_eq!(routes.longest_match(address("10.1.2.3")), [2, 3]);
        routes.remove_peer(2);
        assert_eq!(routes.longest_match(address("10.1.2.3")), [3]);
        routes.remove_peer(3);
        assert_eq!(routes.longest_match(address("10.1.2.3")), []);
    }

    #[test]
    fn several_peers_may_send_from_a_prefix() {
        let mut accepted = CryptokeyTable::default();
        let net = prefix("fd00::", 64);
        for peer in [1, 2, 2] {
            accepted.add(net, peer);
        }
        assert_eq!(accepted.longest_match(address("fd00::9")), [1, 2]);
        accepted.remove(net, 1);
        accepted.remove(net, 7);
        assert_eq!(accepted.longest_match(address("fd00::9")), [2]);
        accepted.remove(net, 2);
        assert_eq!(accepted.longest_match(address("fd00::9")), []);
        assert!(accepted.held.is_empty());
    }

    #[test]
    fn an_address_that_shares_a_slot_is_no_hit() {
        let mut cache = AddressCache::default();
        let one = address("10.0.0.1");
        let other = (0..100_000u32)
            .map(|n| IpAddr::V4(n.into()))
            .find(|other| slot(*other) == slot(one) && *other != one)
            .expect("a collision");
        cache.put(one, 5);
        assert_eq!((cache.get(one), cache.get(other)), (Some(5), None));
        cache.clear();
        assert_eq!(cache.get(one), None);
    }
}
