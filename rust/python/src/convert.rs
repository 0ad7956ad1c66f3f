//! Conversion between `ravenvpn.dataplane.contract` and the plain crate: arguments to Rust, events and counters to
//! Python.
//!
//! Python objects are made with positional arguments, so the order of fields has to be that of `contract.py`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList};
use raven_dataplane::{
    ArgumentError, Counters, Event, Fallbacks, NewKeypair, Offloads, PeerCounters, PeerId, Prefix, Role, Source, Suite,
    Timing, socket_address,
};
use zeroize::Zeroizing;

/// The classes of the contract, imported once per process.
pub(crate) struct Contract {
    endpoint: Py<PyAny>,
    source: Py<PyAny>,
    datagram: Py<PyAny>,
    inner: Py<PyAny>,
    handshake_needed: Py<PyAny>,
    key_promoted: Py<PyAny>,
    keypair_retired: Py<PyAny>,
    endpoint_moved: Py<PyAny>,
    traffic: Py<PyAny>,
    offloads: Py<PyAny>,
    peer_counters: Py<PyAny>,
    counters: Py<PyAny>,
    drops: Vec<Py<PyAny>>,
    suite: Py<PyAny>,
}

static CONTRACT: PyOnceLock<Contract> = PyOnceLock::new();

impl Contract {
    /// Return the classes; imports them on first use.
    pub(crate) fn get(py: Python<'_>) -> PyResult<&Self> {
        CONTRACT.get_or_try_init(py, || {
            let module = py.import("ravenvpn.dataplane.contract")?;
            let class = |name: &str| module.getattr(name).map(Bound::unbind);
            Ok(Self {
                endpoint: class("Endpoint")?,
                source: class("Source")?,
                datagram: class("Datagram")?,
                inner: class("InnerPacket")?,
                handshake_needed: class("HandshakeNeeded")?,
                key_promoted: class("KeyPromoted")?,
                keypair_retired: class("KeypairRetired")?,
                endpoint_moved: class("EndpointMoved")?,
                traffic: class("Traffic")?,
                offloads: class("Offloads")?,
                peer_counters: class("PeerCounters")?,
                counters: class("Counters")?,
                drops: module
                    .getattr("Drop")?
                    .try_iter()?
                    .map(|one| one.map(Bound::unbind))
                    .collect::<PyResult<_>>()?,
                suite: class("Suite")?,
            })
        })
    }

    fn endpoint<'py>(&self, py: Python<'py>, endpoint: SocketAddr) -> PyResult<Bound<'py, PyAny>> {
        let scope = if let SocketAddr::V6(v6) = endpoint { v6.scope_id() } else { 0 };
        self.endpoint.bind(py).call1((endpoint.ip().to_string(), endpoint.port(), scope))
    }

    fn source<'py>(&self, py: Python<'py>, source: Option<Source>) -> PyResult<Option<Bound<'py, PyAny>>> {
        source.map(|source| self.source.bind(py).call1((source.address.to_string(), source.ifindex))).transpose()
    }

    /// Return events as a list of contract objects, in order.
    pub(crate) fn events<'py>(&self, py: Python<'py>, events: Vec<Event>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for event in events {
            list.append(self.event(py, event)?)?;
        }
        Ok(list)
    }

    fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyAny>> {
        match event {
            Event::Datagram { data, endpoint, source } => self.datagram.bind(py).call1((
                PyBytes::new(py, &data),
                self.endpoint(py, endpoint)?,
                self.source(py, source)?,
            )),
            Event::InnerPacket { peer, packet, outer_ce } => {
                self.inner.bind(py).call1((peer, PyBytes::new(py, &packet), outer_ce))
            }
            Event::HandshakeNeeded { peer } => self.handshake_needed.bind(py).call1((peer,)),
            Event::KeyPromoted { peer, local_index } => self.key_promoted.bind(py).call1((peer, local_index)),
            Event::KeypairRetired { peer, local_index } => self.keypair_retired.bind(py).call1((peer, local_index)),
            Event::EndpointMoved { peer, endpoint, source } => {
                self.endpoint_moved.bind(py).call1((peer, self.endpoint(py, endpoint)?, self.source(py, source)?))
            }
            Event::Traffic { peer, facts } => self.traffic.bind(py).call1((
                peer,
                facts.data_sent,
                facts.any_sent,
                facts.data_received,
                facts.any_received,
                facts.unanswered_since,
                facts.unacknowledged_since,
            )),
        }
    }

    /// Return a `contract.Counters`.
    pub(crate) fn counters<'py>(
        &self,
        py: Python<'py>,
        counters: &Counters,
        peers: Vec<PeerCounters>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let drops = PyDict::new(py);
        for (drop, count) in self.drops.iter().zip(counters.drops) {
            drops.set_item(drop, count)?;
        }
        let by_peer = PyDict::new(py);
        for peer in peers {
            by_peer.set_item(peer.id, self.peer_counters(py, &peer)?)?;
        }
        self.counters.bind(py).call1((
            drops,
            by_peer,
            fallbacks(py, counters.fallbacks)?,
            counters.tun_rx_packets,
            counters.tun_tx_packets,
            counters.udp_rx_datagrams,
            counters.udp_tx_datagrams,
            counters.tun_reads,
            counters.tun_writes,
            counters.udp_reads,
            counters.udp_writes,
        ))
    }

    fn peer_counters<'py>(&self, py: Python<'py>, peer: &PeerCounters) -> PyResult<Bound<'py, PyAny>> {
        let (suite, birth) = match peer.session {
            Some((suite, birth)) => (Some(self.suite.bind(py).call1((suite.name(),))?), birth),
            None => (None, 0.0),
        };
        self.peer_counters.bind(py).call1((
            peer.rx_bytes,
            peer.tx_bytes,
            peer.rx_packets,
            peer.tx_packets,
            peer.endpoint.map(|endpoint| self.endpoint(py, endpoint)).transpose()?,
            self.source(py, peer.source)?,
            suite,
            birth,
            peer.staged,
        ))
    }

    /// Return an `Offloads`.
    pub(crate) fn offloads<'py>(&self, py: Python<'py>, offloads: Offloads) -> PyResult<Bound<'py, PyAny>> {
        self.offloads.bind(py).call1((
            offloads.tun_tso,
            offloads.tun_uso,
            offloads.tun_gro,
            offloads.tun_gro_udp,
            offloads.tun_batch,
            offloads.udp_gso,
            offloads.udp_gro,
        ))
    }
}

/// Return the fallbacks that happened, by the name of the offload.
fn fallbacks(py: Python<'_>, fallbacks: Fallbacks) -> PyResult<Bound<'_, PyDict>> {
    let named = PyDict::new(py);
    for (name, count) in
        [("tun_gro", fallbacks.tun_gro), ("tun_gro_udp", fallbacks.tun_gro_udp), ("udp_gso", fallbacks.udp_gso)]
    {
        if count > 0 {
            named.set_item(name, count)?;
        }
    }
    Ok(named)
}

/// Return the exception of an argument error: KeyError for an unknown peer, ValueError otherwise.
pub(crate) fn argument_error(argument_error: ArgumentError) -> PyErr {
    match argument_error {
        ArgumentError::UnknownPeer(peer) => PyKeyError::new_err(peer),
        ArgumentError::Invalid(why) => PyValueError::new_err(why),
    }
}

/// Return a ValueError.
pub(crate) fn invalid(why: impl Into<String>) -> PyErr {
    PyValueError::new_err(why.into())
}

/// Return the peer id of an argument. KeyError, as for an unknown peer, if it is no unsigned 64-bit integer.
pub(crate) fn peer_id(peer: &Bound<'_, PyAny>) -> PyResult<PeerId> {
    peer.extract::<PeerId>().map_err(|_| PyKeyError::new_err(peer.clone().unbind()))
}

/// Convert a `contract.Endpoint`. ValueError unless it is numeric with a port from 1 to 65535.
pub(crate) fn endpoint(endpoint: &Bound<'_, PyAny>) -> PyResult<SocketAddr> {
    let (host, port, scope): (String, i64, i64) = endpoint.extract()?;
    let scope = u32::try_from(scope).map_err(|_| invalid(format!("no interface index: {scope}")))?;
    let port = u16::try_from(port).map_err(|_| invalid(format!("no UDP port: {port}")))?;
    socket_address(&host, port, scope).map_err(invalid)
}

/// Convert a `contract.Source`. ValueError unless it is numeric.
pub(crate) fn source(source: &Bound<'_, PyAny>) -> PyResult<Source> {
    let (host, ifindex): (String, i64) = source.extract()?;
    let ifindex = u32::try_from(ifindex).map_err(|_| invalid(format!("no interface index: {ifindex}")))?;
    let address: IpAddr = host.parse().map_err(|_| invalid(format!("not a numeric address: {host}")))?;
    Ok(Source { address, ifindex })
}

/// Convert an IPv4Network or IPv6Network.
pub(crate) fn prefix(network: &Bound<'_, PyAny>) -> PyResult<Prefix> {
    let length: u8 = network.getattr("prefixlen")?.extract()?;
    let packed = network.getattr("network_address")?.getattr("packed")?;
    let bytes = packed.cast::<PyBytes>()?.as_bytes();
    let address = if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        IpAddr::V4(Ipv4Addr::from(octets))
    } else {
        let octets = <[u8; 16]>::try_from(bytes).map_err(|_| invalid("not a prefix"))?;
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    Prefix::new(address, length).ok_or_else(|| invalid("not a prefix"))
}

/// Convert a sequence of networks; None is empty.
pub(crate) fn prefixes(networks: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Prefix>> {
    let Some(networks) = networks else { return Ok(Vec::new()) };
    networks.try_iter()?.map(|one| prefix(&one?)).collect()
}

/// Convert an `Offloads`.
pub(crate) fn offloads(offloads: &Bound<'_, PyAny>) -> PyResult<Offloads> {
    let flag = |name: &str| offloads.getattr(name)?.extract::<bool>();
    Ok(Offloads {
        tun_tso: flag("tun_tso")?,
        tun_uso: flag("tun_uso")?,
        tun_gro: flag("tun_gro")?,
        tun_gro_udp: flag("tun_gro_udp")?,
        tun_batch: flag("tun_batch")?,
        udp_gso: flag("udp_gso")?,
        udp_gro: flag("udp_gro")?,
    })
}

/// Convert the times of a `contract.Timing` that the packet path needs.
pub(crate) fn timing(timing: &Bound<'_, PyAny>) -> PyResult<Timing> {
    let seconds = |name: &str| timing.getattr(name)?.extract::<f64>();
    Ok(Timing {
        rekey_after_time: seconds("rekey_after_time")?,
        reject_after_time: seconds("reject_after_time")?,
        rekey_timeout: seconds("rekey_timeout")?,
        keepalive_timeout: seconds("keepalive_timeout")?,
    })
}

/// The fields of a `contract.NewKeypair`. The copies of the keys are wiped on drop.
pub(crate) struct Keypair {
    suite: Suite,
    role: Role,
    local_index: u32,
    remote_index: u32,
    send_key: Zeroizing<[u8; 32]>,
    receive_key: Zeroizing<[u8; 32]>,
    birth: f64,
}

impl Keypair {
    /// Convert a `contract.NewKeypair`. ValueError if a field is out of range.
    pub(crate) fn parse(keypair: &Bound<'_, PyAny>) -> PyResult<Self> {
        let suite: String = keypair.getattr("suite")?.getattr("value")?.extract()?;
        let suite = Suite::from_name(&suite).ok_or_else(|| invalid(format!("no suite: {suite}")))?;
        let role = match keypair.getattr("role")?.extract::<u8>()? {
            0 => Role::Initiator,
            1 => Role::Responder,
            other => return Err(invalid(format!("no role: {other}"))),
        };
        let index = |name: &str| {
            let value = keypair.getattr(name)?;
            value.extract::<u32>().map_err(|_| invalid(format!("an index has 32 bits: {value}")))
        };
        let key = |name: &str| {
            let value = keypair.getattr(name)?;
            let bytes = value.cast::<PyBytes>()?.as_bytes();
            let raw =
                <[u8; 32]>::try_from(bytes).map_err(|_| invalid(format!("a key has 32 bytes, not {}", bytes.len())))?;
            PyResult::Ok(Zeroizing::new(raw))
        };
        Ok(Self {
            suite,
            role,
            local_index: index("local_index")?,
            remote_index: index("remote_index")?,
            send_key: key("send_key")?,
            receive_key: key("receive_key")?,
            birth: keypair.getattr("birth")?.extract()?,
        })
    }

    /// Return the fields as the plain crate takes them.
    pub(crate) fn as_new(&self) -> NewKeypair<'_> {
        NewKeypair {
            suite: self.suite,
            role: self.role,
            local_index: self.local_index,
            remote_index: self.remote_index,
            send_key: &self.send_key,
            receive_key: &self.receive_key,
            birth: self.birth,
        }
    }
}
