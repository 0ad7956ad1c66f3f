//! The packet path of ravenvpn, without Python: TUN frames in, sealed datagrams out, and back.
//!
//! [`DataPlane`] implements the data plane of `ravenvpn/dataplane/contract.py`, which specifies its behaviour.
//!
//! * Outbound, from the TUN to the sockets: `outbound` (read, [`segmentation`], route lookup, seal), then
//!   `transmitter` (batches with UDP_SEGMENT, recovery from send errors).
//! * Inbound, from the sockets to the TUN: `inbound` (receive, open, check, [`coalesce`]), then `tun_writer`.
//! * State that both directions use: `state`, `peer`, `keypair`, `cryptokey_routing`, `events`, [`Counters`].
//! * Threads: `fair_lock` serialises the event loop and the thread of `standby_pump`. Every other type of this crate
//!   is used by the one holder of that lock.
//!
//! Memory: no allocation per packet, except for packets that are staged for a handshake or queued as events.
//!
//! Units: `now`, `birth` and all other times are seconds on the body's clock, CLOCK_BOOTTIME unless a test has its
//! own.

pub mod aead;
pub mod checksum;
pub mod coalesce;
mod counters;
mod cryptokey_routing;
mod data_plane;
mod events;
mod fair_lock;
mod handover;
mod inbound;
mod keypair;
mod outbound;
pub mod packet;
mod peer;
pub mod prefixes;
pub mod replay;
pub mod segmentation;
mod standby_pump;
mod state;
mod sys;
#[cfg(test)]
mod test_packets;
mod transmitter;
mod tun_writer;
pub mod virtio_net;
pub mod wire;

pub use aead::Suite;
pub use counters::{Counters, Drop, Fallbacks, Offloads};
pub use data_plane::{ArgumentError, DataPlane, NewKeypair, PeerCounters};
pub use events::{Event, MAX_DATAGRAMS, Wakeup};
pub use fair_lock::FairLock;
pub use handover::socket_address;
pub use keypair::Role;
pub use peer::{PeerId, Traffic};
pub use prefixes::Prefix;
pub use standby_pump::StandbyPump;
pub use state::Timing;
pub use sys::{Source, boottime};
