//! The packet path of ravenvpn, without Python: TUN frames in, sealed datagrams out, and back.
//!
//! [`Body`] is the data plane of `ravenvpn/dataplane/contract.py`; that page says what it owes. Packets go out through
//! `outbound` (read, [`split`], look up, seal) and `transmit` (trains, what the kernel refuses), and come in through
//! `inbound` (receive, open, judge, [`coalesce`]) and `outlet` (write). Nothing is allocated per packet unless it has to wait.

pub mod aead;
mod body;
pub mod checksum;
pub mod coalesce;
mod counters;
#[cfg(test)]
mod craft;
mod events;
mod handover;
mod holders;
mod inbound;
mod keypair;
mod outbound;
mod outlet;
pub mod packet;
mod peer;
pub mod prefixes;
mod relief;
pub mod replay;
pub mod split;
mod state;
mod sys;
mod transmit;
mod turns;
pub mod vnet;
pub mod wire;

pub use aead::Suite;
pub use body::{Body, Misuse, NewKeypair, PeerCounters};
pub use counters::{Counters, Drop, Fallbacks, Offloads};
pub use events::{Announcement, Event, MAX_DATAGRAMS};
pub use handover::socket_address;
pub use keypair::Role;
pub use peer::{PeerId, Traffic};
pub use prefixes::Prefix;
pub use relief::Relief;
pub use state::Timing;
pub use sys::{Source, boottime};
pub use turns::Turns;
