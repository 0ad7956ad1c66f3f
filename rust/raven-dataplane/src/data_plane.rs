//! The whole data plane: the mutators of `contract.py`, the two pumps, and the questions of the driver (the event
//! loop).
//!
//! `now` is seconds on CLOCK_BOOTTIME, or on a test's clock. Invariant: when a method returns, every packet it sealed
//! has left or is counted as dropped, unless a socket is full ([`DataPlane::blocked`]).

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

use crate::aead::{KEY, Key, Suite};
use crate::counters::{Counters, Drop, Offloads};
use crate::events::{Event, Wakeup};
use crate::handover;
use crate::inbound::Inbound;
use crate::keypair::{Keypair, Role};
use crate::outbound::{Outbound, send_or_stage, send_staged};
use crate::peer::{Peer, PeerId, Staged};
use crate::prefixes::Prefix;
use crate::replay::ReplayWindow;
use crate::state::{State, Timing};
use crate::sys::{self, Source};
use crate::transmitter::Transmitter;

/// Bytes that one call of a pump moves before the event loop handles other descriptors.
const BUDGET: usize = 1 << 20;
/// The same while initiations wait: the loop has much other work then, and other threads that ask it for its state
/// wait for the lock that a pump holds.
const BUDGET_BESIDE_HANDSHAKES: usize = BUDGET / 4;

/// How often a socket that is never empty is drained before UDP_GRO is switched off in any case.
const GRO_ATTEMPTS: usize = 16;
/// Pumps that empty a socket buffer of the tunnel's size (7 MiB) twice, at the smaller budget.
const MAX_DRAIN_PUMPS: usize = (16 << 20) / BUDGET_BESIDE_HANDSHAKES;

/// An argument that a mutator refuses. Nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    /// No peer has this id; KeyError in Python.
    UnknownPeer(PeerId),
    /// Anything else, with a message; ValueError in Python.
    Invalid(String),
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPeer(peer) => write!(f, "{peer}"),
            Self::Invalid(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ArgumentError {}

/// The transport keys that a finished handshake derives (whitepaper §5.4.5). The caller owns and wipes the key bytes.
pub struct NewKeypair<'a> {
    pub suite: Suite,
    pub role: Role,
    /// Receiver index of messages we get, chosen by us.
    pub local_index: u32,
    /// Receiver index of messages we send, chosen by the peer.
    pub remote_index: u32,
    pub send_key: &'a [u8; KEY],
    pub receive_key: &'a [u8; KEY],
    /// End of the handshake, in seconds on the body's clock.
    pub birth: f64,
}

/// Counters and state of one peer: `ravenvpn.dataplane.contract.PeerCounters`. Bytes are whole transport messages.
#[derive(Clone, Debug)]
pub struct PeerCounters {
    pub id: PeerId,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub endpoint: Option<SocketAddr>,
    pub source: Option<Source>,
    /// Suite and birth of the current keypair.
    pub session: Option<(Suite, f64)>,
    /// Packets that wait for a handshake.
    pub staged: usize,
}

/// One data plane. It opens and closes no descriptor that packets pass; the owner closes them after the body's last
/// use.
///
/// Not synchronised: threads share it through `FairLock`.
pub struct DataPlane {
    pub(crate) state: State,
    transmitter: Transmitter,
    /// None without a TUN.
    outbound: Option<Outbound>,
    inbound: Inbound,
    /// IPv4 and IPv6.
    sockets: [Option<RawFd>; 2],
    boot_id: String,
    /// `freeze` was called: nothing is sent or pumped any more.
    frozen: bool,
}

impl DataPlane {
    /// Make a body without peers and sockets. `tun` is a non-blocking descriptor whose frames start with a 10-byte
    /// virtio-net header, or None for sessions and probes only. `boot_id` marks hand-over blobs.
    #[must_use]
    pub fn new(tun: Option<RawFd>, offloads: Offloads, timing: Timing, boot_id: String) -> Self {
        let state = State::new(timing, offloads);
        let inbound = Inbound::new(tun, &state);
        Self {
            state,
            transmitter: Transmitter::default(),
            outbound: tun.map(Outbound::new),
            inbound,
            sockets: [None, None],
            boot_id,
            frozen: false,
        }
    }

    // Descriptors and pumps.

    /// Use these bound, non-blocking UDP descriptors (v6 with IPV6_V6ONLY). Clears the source of every peer, and
    /// drops the datagrams that wait for a full socket.
    pub fn set_sockets(&mut self, v4: Option<RawFd>, v6: Option<RawFd>) {
        self.sockets = [v4, v6];
        self.transmitter.set_sockets(&mut self.state, v4, v6);
        self.inbound.sockets_changed();
        for (fd, is_v6) in [(v4, false), (v6, true)] {
            if let Some(fd) = fd {
                sys::request_ancillary(fd, is_v6, self.state.offloads.udp_gro);
            }
        }
        for peer in self.state.peers.iter_mut() {
            peer.source = None;
        }
    }

    /// Return the descriptors in use: IPv4, IPv6.
    pub(crate) fn sockets(&self) -> [Option<RawFd>; 2] {
        self.sockets
    }

    /// Return the TUN's descriptor; None without one, or once frozen.
    pub(crate) fn tun(&self) -> Option<RawFd> {
        self.outbound.as_ref().map(Outbound::tun).filter(|_| !self.frozen)
    }

    /// Forward a budget of frames from the TUN. Return false if the TUN will never be readable again.
    pub fn pump_tun(&mut self, now: f64) -> bool {
        let budget = self.budget();
        match &mut self.outbound {
            Some(outbound) if !self.frozen => outbound.pump(&mut self.state, &mut self.transmitter, now, budget),
            _ => false,
        }
    }

    /// Process a budget of datagrams from the IPv4 or IPv6 socket; no effect without one, or once frozen.
    pub fn pump_udp(&mut self, v6: bool, now: f64) {
        let budget = self.budget();
        let Some(fd) = self.sockets[usize::from(v6)].filter(|_| !self.frozen) else { return };
        let transmitter = &mut self.transmitter;
        self.inbound.pump(&mut self.state, fd, now, budget, |state, peer| {
            send_staged(state, transmitter, peer, now);
            transmitter.flush(state);
        });
    }

    /// Process a budget of datagrams from a socket that `set_sockets` replaced; no effect once frozen.
    pub fn pump_replaced_socket(&mut self, fd: RawFd, now: f64) {
        if self.frozen {
            return;
        }
        let budget = self.budget();
        let transmitter = &mut self.transmitter;
        self.inbound.pump_replaced(&mut self.state, fd, now, budget, |state, peer| {
            send_staged(state, transmitter, peer, now);
            transmitter.flush(state);
        });
    }

    /// Return the bytes that this call of a pump may move.
    fn budget(&self) -> usize {
        if self.waiting_initiations() > 0 { BUDGET_BESIDE_HANDSHAKES } else { BUDGET }
    }

    /// Return the socket that is full, if one is. The caller stops pumping the TUN, and calls `resume` once the
    /// socket is writable.
    #[must_use]
    pub fn blocked(&self) -> Option<RawFd> {
        self.transmitter.blocked()
    }

    /// Send the waiting datagrams: the full socket is writable again.
    pub fn resume(&mut self) {
        self.transmitter.resume(&mut self.state);
    }

    // Settings.

    /// Change which offloads are allowed. No packet in hand is lost or reordered; `contract.py` gives the details.
    pub fn set_offloads(&mut self, allowed: Offloads, now: f64) {
        let had_gro = self.state.offloads.udp_gro;
        self.transmitter.flush(&mut self.state);
        self.state.allow_offloads(allowed);
        self.transmitter.offloads_changed(&self.state);
        self.inbound.offloads_changed(&self.state);
        let gro = self.state.offloads.udp_gro;
        if gro == had_gro {
            return;
        }
        for v6 in [false, true] {
            let Some(fd) = self.sockets[usize::from(v6)] else { continue };
            if gro {
                sys::set_gro(fd, true);
            } else {
                self.switch_gro_off(fd, v6, now);
            }
        }
    }

    /// Switch UDP_GRO off. The kernel delivers a datagram that it coalesced before without its segment size
    /// afterwards, so the socket has to be empty at that moment. If datagrams arrived in between, GRO is switched on
    /// again, the socket drained and the switch repeated, up to [`GRO_ATTEMPTS`] times.
    fn switch_gro_off(&mut self, fd: RawFd, v6: bool, now: f64) {
        for _ in 0..GRO_ATTEMPTS {
            for _ in 0..MAX_DRAIN_PUMPS {
                if !sys::is_readable(fd) {
                    break;
                }
                self.pump_udp(v6, now);
            }
            sys::set_gro(fd, false);
            if !sys::is_readable(fd) {
                return;
            }
            sys::set_gro(fd, true);
        }
        sys::set_gro(fd, false);
    }

    /// Set the MTU of the TUN; 0 means unknown. Padding does not exceed it (whitepaper §5.4.6).
    pub fn set_mtu(&mut self, mtu: u16) {
        self.state.mtu = usize::from(mtu);
    }

    /// Post UDP to this inner address and port as an event instead of writing it to the TUN; None for never.
    pub fn set_own_address(&mut self, address: Option<Ipv6Addr>, probe_port: u16) {
        self.state.own_address = address;
        self.state.probe_port = probe_port;
    }

    // Peers.

    /// Return the handle of a peer.
    fn handle_of(&self, peer: PeerId) -> Result<usize, ArgumentError> {
        self.state.peers.lookup(peer).ok_or(ArgumentError::UnknownPeer(peer))
    }

    /// Return a peer to change.
    fn peer_mut(&mut self, peer: PeerId) -> Result<&mut Peer, ArgumentError> {
        let handle = self.handle_of(peer)?;
        Ok(self.state.peers.get_mut(handle))
    }

    /// Add a peer without endpoint, prefixes and keypairs; no effect if it exists.
    pub fn add_peer(&mut self, peer: PeerId) {
        self.state.peers.add(peer);
    }

    /// Remove a peer with its prefixes, keypairs, staged packets and counters.
    pub fn remove_peer(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let handle = self.handle_of(peer)?;
        self.drop_keypairs(peer)?;
        self.transmitter.detach_peer(handle);
        self.state.routes.remove_peer(handle);
        self.state.accepted.remove_peer(handle);
        self.state.clear_caches();
        self.state.events.discard(handle);
        self.state.peers.remove(peer);
        Ok(())
    }

    /// Send to `endpoint` from now on; None drops packets to the peer as `NoEndpoint`. A new endpoint clears the
    /// source, a given `source` replaces it.
    pub fn set_endpoint(
        &mut self,
        peer: PeerId,
        endpoint: Option<SocketAddr>,
        source: Option<Source>,
    ) -> Result<(), ArgumentError> {
        let peer = self.peer_mut(peer)?;
        if endpoint.is_none() || peer.endpoint != endpoint {
            peer.set_endpoint(endpoint);
        }
        if endpoint.is_some() && source.is_some() {
            peer.source = source;
        }
        Ok(())
    }

    /// Set whether authenticated data from another endpoint moves the peer's endpoint. On for a new peer.
    pub fn set_roaming(&mut self, peer: PeerId, roaming: bool) -> Result<(), ArgumentError> {
        self.peer_mut(peer)?.roaming = roaming;
        Ok(())
    }

    /// Let the kernel choose the source address again.
    pub fn clear_source(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        self.peer_mut(peer)?.source = None;
        Ok(())
    }

    // Prefixes.

    /// Route `prefix` to these peers and no others, in one step; remove the route if `peers` is empty. The first peer
    /// carries the traffic.
    pub fn route(&mut self, prefix: Prefix, peers: &[PeerId]) -> Result<(), ArgumentError> {
        let handles = peers.iter().map(|peer| self.handle_of(*peer)).collect::<Result<Vec<_>, _>>()?;
        self.state.routes.set(prefix, handles);
        self.state.clear_caches();
        Ok(())
    }

    /// Accept inner sources in `add` from this peer, and those in `remove` no more.
    pub fn accept(&mut self, peer: PeerId, add: &[Prefix], remove: &[Prefix]) -> Result<(), ArgumentError> {
        let handle = self.handle_of(peer)?;
        for prefix in remove {
            self.state.accepted.remove(*prefix, handle);
        }
        for prefix in add {
            self.state.accepted.add(*prefix, handle);
        }
        self.state.clear_caches();
        Ok(())
    }

    // Keypairs.

    /// Put a new keypair into its slot; an initiator's sends the staged packets, or a keepalive if there are none.
    ///
    /// # Errors
    /// `Invalid` if the local index is in use, and after `freeze`.
    pub fn install_keypair(&mut self, peer: PeerId, new: &NewKeypair<'_>, now: f64) -> Result<(), ArgumentError> {
        self.check_not_frozen()?;
        let handle = self.handle_of(peer)?;
        let installed = self.state.install(unused_keypair(handle, new));
        if !installed {
            return Err(ArgumentError::Invalid(format!("local index {:#010x} is in use", new.local_index)));
        }
        if new.role == Role::Initiator {
            if !send_staged(&mut self.state, &mut self.transmitter, handle, now) {
                // Key confirmation (whitepaper §5.4.4): the responder may not send before it has received a message.
                self.seal_keepalive(handle, now);
            }
            self.transmitter.flush(&mut self.state);
        }
        Ok(())
    }

    /// Stop sending under all keypairs of the peer; receiving goes on.
    pub fn expire_keypairs(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let handle = self.handle_of(peer)?;
        for keypair in self.state.peers.get(handle).slots() {
            self.state.keypairs.get_mut(keypair).expired = true;
        }
        Ok(())
    }

    /// Wipe all keypairs of the peer (whitepaper §6.3).
    pub fn drop_keypairs(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let handle = self.handle_of(peer)?;
        let entry = self.state.peers.get_mut(handle);
        let slots = entry.slots();
        (entry.previous, entry.current, entry.next) = (None, None, None);
        entry.handshake_requested = None;
        for keypair in slots {
            self.state.retire(peer, Some(keypair));
        }
        Ok(())
    }

    /// Drop the packets that wait for a handshake that was given up, counted as `StagedExpired`.
    pub fn purge_staged(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let entry = self.peer_mut(peer)?;
        entry.handshake_ended();
        let count = std::mem::take(&mut entry.staged).len();
        self.state.counters.count_drop(Drop::StagedExpired, count);
        Ok(())
    }

    // Sending.

    /// Seal an empty message, or request a handshake if no keypair is usable. The caller flushes.
    fn seal_keepalive(&mut self, handle: usize, now: f64) {
        let empty = Staged { packet: Vec::new(), outer_df: false };
        send_or_stage(&mut self.state, &mut self.transmitter, handle, empty, now);
    }

    /// Send an empty transport message. Without a usable keypair, send nothing and request a handshake.
    pub fn send_keepalive(&mut self, peer: PeerId, now: f64) -> Result<(), ArgumentError> {
        let handle = self.handle_of(peer)?;
        self.check_not_frozen()?;
        self.seal_keepalive(handle, now);
        self.transmitter.flush(&mut self.state);
        Ok(())
    }

    /// Send a whole inner IP packet to this peer, past the routes; staged if no keypair is usable. `outer_df` sets DF
    /// on the outer packet (path-MTU probes).
    ///
    /// # Errors
    /// `Invalid` unless the packet has 20 to 65455 bytes, and after `freeze`.
    pub fn send_inner(&mut self, peer: PeerId, packet: Vec<u8>, outer_df: bool, now: f64) -> Result<(), ArgumentError> {
        if !(20..=65535 - 80).contains(&packet.len()) {
            return Err(ArgumentError::Invalid(format!("no IP packet: {} bytes", packet.len())));
        }
        let handle = self.handle_of(peer)?;
        self.check_not_frozen()?;
        send_or_stage(&mut self.state, &mut self.transmitter, handle, Staged { packet, outer_df }, now);
        self.transmitter.flush(&mut self.state);
        Ok(())
    }

    /// Send a raw datagram (handshake message, cookie reply) at once, DS field AF41.
    pub fn send_datagram(
        &mut self,
        data: &[u8],
        endpoint: SocketAddr,
        source: Option<Source>,
    ) -> Result<(), ArgumentError> {
        self.check_not_frozen()?;
        self.transmitter.send_datagram(&mut self.state, data, endpoint, source);
        Ok(())
    }

    // Observation.

    /// Return when to call the tunnel's `on_events`, once for the events that wait.
    pub fn next_wakeup(&mut self) -> Wakeup {
        self.state.events.next_wakeup(sys::boottime())
    }

    /// The time of a [`Wakeup::Later`] has come.
    pub fn wakeup_due(&mut self) {
        self.state.events.wakeup_due();
    }

    /// A new listener starts: call it for everything that waits already.
    pub fn set_listener(&mut self) {
        self.state.events.set_listener();
    }

    /// Remove and return the events; `State::drain_events` gives the order.
    pub fn drain_events(&mut self, max_initiations: usize) -> Vec<Event> {
        self.state.drain_events(max_initiations)
    }

    /// Return the number of initiations without mac2 in their queue.
    #[must_use]
    pub fn waiting_initiations(&self) -> usize {
        self.state.events.waiting_initiations()
    }

    /// Return the counters of the body.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.state.counters
    }

    /// Return counters and state of every peer.
    pub fn peer_counters(&self) -> impl Iterator<Item = PeerCounters> {
        self.state.peers.iter().map(|peer| PeerCounters {
            id: peer.id,
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            rx_packets: peer.rx_packets,
            tx_packets: peer.tx_packets,
            endpoint: peer.endpoint,
            source: peer.source,
            session: peer.current.map(|handle| self.state.keypairs.get(handle)).map(|one| (one.suite, one.birth)),
            staged: peer.staged.len(),
        })
    }

    /// Return the offloads in force: allowed, and not refused by the kernel.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.state.offloads
    }

    // Session hand-over on restart.

    /// Return true after `freeze`.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Stop for good and return the sessions as a blob (format: `dataplane/handover.py`), as secret as the keys.
    ///
    /// Nothing is sent afterwards, so that no nonce repeats. Waiting datagrams are dropped.
    pub fn freeze(&mut self, now: f64) -> Result<Vec<u8>, ArgumentError> {
        self.frozen = true;
        self.sockets = [None, None];
        self.transmitter.set_sockets(&mut self.state, None, None);
        handover::pack(&self.state, &self.boot_id, now).map_err(ArgumentError::Invalid)
    }

    /// Take over the sessions of a frozen body.
    ///
    /// # Errors
    /// `Invalid`, and nothing is changed, if the blob is damaged, of another version or boot, or if a peer id or local
    /// index in it exists already.
    pub fn thaw(&mut self, blob: &[u8], now: f64) -> Result<(), ArgumentError> {
        self.check_not_frozen()?;
        handover::unpack(&mut self.state, blob, &self.boot_id, now).map_err(ArgumentError::Invalid)
    }

    /// Refuse whatever would send after `freeze`.
    fn check_not_frozen(&self) -> Result<(), ArgumentError> {
        if self.frozen {
            return Err(ArgumentError::Invalid("a frozen data plane sends nothing".into()));
        }
        Ok(())
    }
}

/// Expand the keys of a handshake into a keypair with counter 0 and an empty replay window.
fn unused_keypair(peer: usize, new: &NewKeypair<'_>) -> Keypair {
    Keypair {
        peer,
        suite: new.suite,
        role: new.role,
        local_index: new.local_index,
        remote_index: new.remote_index,
        birth: new.birth,
        send: Key::new(new.suite, new.send_key),
        receive: Key::new(new.suite, new.receive_key),
        counter: 0,
        window: ReplayWindow::default(),
        expired: false,
        renewal_requested: false,
    }
}
