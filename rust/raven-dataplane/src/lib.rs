//! The packet path of ravenvpn, without Python: TUN frames in, sealed datagrams out, and back.
//!
//! [`DataPlane`] is the data plane of `ravenvpn/dataplane/contract.py`; that page says what it owes. Packets go out through
//! `outbound` (read, [`split`], look up, seal) and `transmit` (trains, what the kernel refuses), and come in through
//! `inbound` (receive, open, judge, [`coalesce`]) and `tun_writer` (write). Nothing is allocated per packet unless it has to wait.

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
