//! The whole data plane: the contract's mutators, the pumps, and what the driver looks at.
//!
//! `now` is seconds on CLOCK_BOOTTIME (or on a test's clock). Every method leaves nothing half-sent behind: what it
//! sealed has left, unless a socket is full.

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
use crate::replay::Window;
use crate::state::{State, Timing};
use crate::sys::{self, Source};
use crate::transmitter::Transmitter;

/// Bytes that one call of a pump moves; then others get their turn. Less while handshakes wait: then the loop has
/// much else to do, and whoever asks it how it is waits through some of its lock.
const BUDGET: usize = 1 << 20;
const BUDGET_BESIDE_HANDSHAKES: usize = BUDGET / 4;

/// How often a socket that is never empty is drained before UDP_GRO is switched off all the same.
const GRO_ATTEMPTS: usize = 16;
/// Pumps that empty a socket buffer of the tunnel's size (7 MiB) twice over, at the smaller budget.
const MAX_DRAIN_PUMPS: usize = (16 << 20) / BUDGET_BESIDE_HANDSHAKES;

/// What a caller did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    UnknownPeer(PeerId),
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

/// Transport keys as a handshake leaves them. The keys are wiped by whoever holds this.
pub struct NewKeypair<'a> {
    pub suite: Suite,
    pub role: Role,
    pub local_index: u32,
    pub remote_index: u32,
    pub send_key: &'a [u8; KEY],
    pub receive_key: &'a [u8; KEY],
    pub birth: f64,
}

/// One peer's numbers, as `ravenvpn.dataplane.contract.PeerCounters`.
#[derive(Clone, Debug)]
pub struct PeerCounters {
    pub id: PeerId,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub endpoint: Option<SocketAddr>,
    pub source: Option<Source>,
    pub session: Option<(Suite, f64)>,
    pub staged: usize,
}

pub struct DataPlane {
    pub(crate) state: State,
    transmitter: Transmitter,
    outbound: Option<Outbound>,
    inbound: Inbound,
    sockets: [Option<RawFd>; 2],
    boot_id: String,
    frozen: bool,
}

impl DataPlane {
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

    pub fn set_sockets(&mut self, v4: Option<RawFd>, v6: Option<RawFd>) {
        self.sockets = [v4, v6];
        self.transmitter.use_sockets(&mut self.state, v4, v6);
        self.inbound.sockets_changed();
        for (fd, is_v6) in [(v4, false), (v6, true)] {
            if let Some(fd) = fd {
                sys::ask_for_ancillary(fd, is_v6, self.state.offloads.udp_gro);
            }
        }
        for peer in self.state.peers.iter_mut() {
            peer.source = None;
        }
    }

    pub(crate) fn sockets(&self) -> [Option<RawFd>; 2] {
        self.sockets
    }

    pub(crate) fn tun(&self) -> Option<RawFd> {
        self.outbound.as_ref().map(Outbound::tun).filter(|_| !self.frozen)
    }

    /// Moves a budget of frames out; false when the TUN will never be readable again.
    pub fn pump_tun(&mut self, now: f64) -> bool {
        let budget = self.budget();
        match &mut self.outbound {
            Some(outbound) if !self.frozen => outbound.pump(&mut self.state, &mut self.transmitter, now, budget),
            _ => false,
        }
    }

    /// Moves a budget of datagrams in from one of the sockets.
    pub fn pump_udp(&mut self, v6: bool, now: f64) {
        let budget = self.budget();
        let Some(fd) = self.sockets[usize::from(v6)].filter(|_| !self.frozen) else { return };
        let transmitter = &mut self.transmitter;
        self.inbound.pump(&mut self.state, fd, now, budget, |state, peer| {
            send_staged(state, transmitter, peer, now);
            transmitter.flush(state);
        });
    }

    /// Moves a budget of datagrams in from a socket that `set_sockets` replaced.
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

    fn budget(&self) -> usize {
        if self.waiting_initiations() > 0 { BUDGET_BESIDE_HANDSHAKES } else { BUDGET }
    }

    /// The socket that is full, if one is: the TUN is not to be pumped until it is writable and `resume` was called.
    #[must_use]
    pub fn blocked(&self) -> Option<RawFd> {
        self.transmitter.blocked()
    }

    pub fn resume(&mut self) {
        self.transmitter.resume(&mut self.state);
    }

    // Settings.

    /// Changes which offloads are allowed; see the contract for what happens to packets in hand.
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

    /// Switches UDP_GRO off. The kernel still delivers a datagram that it coalesced before, but without the segment
    /// size, so the socket has to be empty at that moment. One that received in between is switched back, drained and
    /// tried again, up to [`GRO_ATTEMPTS`] times.
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

    pub fn set_mtu(&mut self, mtu: u16) {
        self.state.mtu = usize::from(mtu);
    }

    pub fn set_own_address(&mut self, address: Option<Ipv6Addr>, probe_port: u16) {
        self.state.own_address = address;
        self.state.probe_port = probe_port;
    }

    // PeerTable.

    fn handle(&self, peer: PeerId) -> Result<usize, ArgumentError> {
        self.state.peers.find(peer).ok_or(ArgumentError::UnknownPeer(peer))
    }

    fn peer_mut(&mut self, peer: PeerId) -> Result<&mut Peer, ArgumentError> {
        let handle = self.handle(peer)?;
        Ok(self.state.peers.at_mut(handle))
    }

    pub fn add_peer(&mut self, peer: PeerId) {
        self.state.peers.ensure(peer);
    }

    pub fn remove_peer(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let handle = self.handle(peer)?;
        self.drop_keypairs(peer)?;
        self.transmitter.forget_peer(handle);
        self.state.routes.remove_peer(handle);
        self.state.accepted.remove_peer(handle);
        self.state.clear_caches();
        self.state.events.forget(handle);
        self.state.peers.remove(peer);
        Ok(())
    }

    pub fn set_endpoint(
        &mut self,
        peer: PeerId,
        endpoint: Option<SocketAddr>,
        source: Option<Source>,
    ) -> Result<(), ArgumentError> {
        let peer = self.peer_mut(peer)?;
        if endpoint.is_none() || peer.endpoint != endpoint {
            peer.move_to(endpoint);
        }
        if endpoint.is_some() && source.is_some() {
            peer.source = source;
        }
        Ok(())
    }

    pub fn set_roaming(&mut self, peer: PeerId, roaming: bool) -> Result<(), ArgumentError> {
        self.peer_mut(peer)?.roaming = roaming;
        Ok(())
    }

    pub fn clear_source(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        self.peer_mut(peer)?.source = None;
        Ok(())
    }

    // PrefixMap.

    pub fn route(&mut self, prefix: Prefix, peers: &[PeerId]) -> Result<(), ArgumentError> {
        let handles = peers.iter().map(|peer| self.handle(*peer)).collect::<Result<Vec<_>, _>>()?;
        self.state.routes.set(prefix, handles);
        self.state.clear_caches();
        Ok(())
    }

    pub fn accept(&mut self, peer: PeerId, add: &[Prefix], remove: &[Prefix]) -> Result<(), ArgumentError> {
        let handle = self.handle(peer)?;
        for prefix in remove {
            self.state.accepted.remove(*prefix, handle);
        }
        for prefix in add {
            self.state.accepted.add(*prefix, handle);
        }
        self.state.clear_caches();
        Ok(())
    }

    // Sessions.

    pub fn install_keypair(&mut self, peer: PeerId, new: &NewKeypair<'_>, now: f64) -> Result<(), ArgumentError> {
        self.refuse_if_frozen()?;
        let handle = self.handle(peer)?;
        let installed = self.state.install(fresh(handle, new));
        if !installed {
            return Err(ArgumentError::Invalid(format!("local index {:#010x} is in use", new.local_index)));
        }
        if new.role == Role::Initiator {
            if !send_staged(&mut self.state, &mut self.transmitter, handle, now) {
                // Key confirmation (whitepaper §5.4.4): the responder may not send before it has seen this.
                self.keepalive(handle, now);
            }
            self.transmitter.flush(&mut self.state);
        }
        Ok(())
    }

    pub fn expire_keypairs(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let handle = self.handle(peer)?;
        for keypair in self.state.peers.at(handle).slots() {
            self.state.keypairs.get_mut(keypair).expired = true;
        }
        Ok(())
    }

    pub fn drop_keypairs(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let handle = self.handle(peer)?;
        let entry = self.state.peers.at_mut(handle);
        let slots = entry.slots();
        (entry.previous, entry.current, entry.next) = (None, None, None);
        entry.asked = None;
        for keypair in slots {
            self.state.retire(peer, Some(keypair));
        }
        Ok(())
    }

    pub fn purge_staged(&mut self, peer: PeerId) -> Result<(), ArgumentError> {
        let entry = self.peer_mut(peer)?;
        entry.handshake_ended();
        let count = std::mem::take(&mut entry.staged).len();
        self.state.counters.drop(Drop::StagedExpired, count);
        Ok(())
    }

    // Sending.

    fn keepalive(&mut self, handle: usize, now: f64) {
        let empty = Staged { packet: Vec::new(), outer_df: false };
        send_or_stage(&mut self.state, &mut self.transmitter, handle, empty, now);
    }

    pub fn send_keepalive(&mut self, peer: PeerId, now: f64) -> Result<(), ArgumentError> {
        let handle = self.handle(peer)?;
        self.refuse_if_frozen()?;
        self.keepalive(handle, now);
        self.transmitter.flush(&mut self.state);
        Ok(())
    }

    pub fn send_inner(&mut self, peer: PeerId, packet: Vec<u8>, outer_df: bool, now: f64) -> Result<(), ArgumentError> {
        if !(20..=65535 - 80).contains(&packet.len()) {
            return Err(ArgumentError::Invalid(format!("no IP packet: {} bytes", packet.len())));
        }
        let handle = self.handle(peer)?;
        self.refuse_if_frozen()?;
        send_or_stage(&mut self.state, &mut self.transmitter, handle, Staged { packet, outer_df }, now);
        self.transmitter.flush(&mut self.state);
        Ok(())
    }

    pub fn send_datagram(
        &mut self,
        data: &[u8],
        endpoint: SocketAddr,
        source: Option<Source>,
    ) -> Result<(), ArgumentError> {
        self.refuse_if_frozen()?;
        self.transmitter.send_datagram(&mut self.state, data, endpoint, source);
        Ok(())
    }

    // Looking.

    /// Whether to call back; says so once for what waits.
    pub fn next_wakeup(&mut self) -> Wakeup {
        self.state.events.next_wakeup(sys::boottime())
    }

    /// The time of an announcement for later has come.
    pub fn wakeup_due(&mut self) {
        self.state.events.wakeup_due();
    }

    /// Somebody new is to be called back.
    pub fn listen(&mut self) {
        self.state.events.listen();
    }

    pub fn drain_events(&mut self, max_initiations: usize) -> Vec<Event> {
        self.state.drain_events(max_initiations)
    }

    /// How many initiations that prove nothing wait.
    #[must_use]
    pub fn waiting_initiations(&self) -> usize {
        self.state.events.waiting_initiations()
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.state.counters
    }

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

    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.state.offloads
    }

    // Hand-over.

    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Nothing is sent after it. The blob is as secret as the keys.
    pub fn freeze(&mut self, now: f64) -> Result<Vec<u8>, ArgumentError> {
        self.frozen = true;
        self.sockets = [None, None];
        self.transmitter.use_sockets(&mut self.state, None, None);
        handover::pack(&self.state, &self.boot_id, now).map_err(ArgumentError::Invalid)
    }

    /// Takes over the sessions of a frozen body; nothing is changed if that can't be.
    pub fn thaw(&mut self, blob: &[u8], now: f64) -> Result<(), ArgumentError> {
        self.refuse_if_frozen()?;
        handover::unpack(&mut self.state, blob, &self.boot_id, now).map_err(ArgumentError::Invalid)
    }

    fn refuse_if_frozen(&self) -> Result<(), ArgumentError> {
        if self.frozen {
            return Err(ArgumentError::Invalid("a frozen data plane sends nothing".into()));
        }
        Ok(())
    }
}

fn fresh(peer: usize, new: &NewKeypair<'_>) -> Keypair {
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
        window: Window::default(),
        expired: false,
        renewal_asked: false,
    }
}
