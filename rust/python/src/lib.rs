//! `ravenvpn.dataplane._native`: the binding that gives the plain crate the interface
//! `ravenvpn.dataplane.contract.DataPlane`.
//!
//! It checks and converts arguments, releases the GIL while packets move, maps errors to exceptions, and registers
//! descriptors with the event loop. `contract.py` documents the methods.
//!
//! Locks: [`FairLock`] guards the body, and no code that holds it waits for the GIL. The mutex of `LoopState` is
//! held for single statements only. While the loop is blocked a thread pumps ([`StandbyPump`]), unless a test has its
//! own clock.

use std::net::Ipv6Addr;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use raven_dataplane::{DataPlane, FairLock, MAX_DATAGRAMS, StandbyPump, Wakeup, boottime};

mod convert;

use convert::{Contract, argument_error, invalid, peer_id};

/// The registrations with the event loop.
#[derive(Default)]
struct LoopState {
    /// Event loop and `on_events` callback while the body is started.
    running: Option<(Py<PyAny>, Py<PyAny>)>,
    /// Descriptors of the IPv4 and the IPv6 socket.
    sockets: [Option<RawFd>; 2],
    /// The TUN is registered for reading.
    reads_tun: bool,
    /// The full socket that is registered for writing.
    writer: Option<RawFd>,
    /// The TUN will never be readable again.
    tun_gone: bool,
    standby: Option<StandbyPump>,
}

/// A `DataPlane` of the contract, whose `name` is "native". Used on the event loop's thread; the lock makes other
/// threads safe.
#[pyclass(frozen, module = "ravenvpn.dataplane._native")]
struct NativeDataPlane {
    body: Arc<FairLock>,
    loop_state: Mutex<LoopState>,
    tun: Option<RawFd>,
    /// The caller's clock; None for CLOCK_BOOTTIME, which is read without Python.
    clock: Option<Py<PyAny>>,
}

#[pymethods]
impl NativeDataPlane {
    #[classattr]
    #[pyo3(name = "name")]
    const NAME: &'static str = "native";

    #[new]
    #[pyo3(signature = (*, tun, offloads, timing, clock, boot_id))]
    fn new(
        tun: Option<RawFd>,
        offloads: &Bound<'_, PyAny>,
        timing: &Bound<'_, PyAny>,
        clock: &Bound<'_, PyAny>,
        boot_id: String,
    ) -> PyResult<Self> {
        let boottime_clock = clock.py().import("ravenvpn.dataplane")?.getattr("boottime")?;
        let body = DataPlane::new(tun, convert::offloads(offloads)?, convert::timing(timing)?, boot_id);
        let clock = (!clock.is(&boottime_clock)).then(|| clock.clone().unbind());
        Ok(Self { body: Arc::new(FairLock::new(body)), loop_state: Mutex::default(), tun, clock })
    }

    // Life cycle.

    fn start(slf: &Bound<'_, Self>, r#loop: Py<PyAny>, on_events: Py<PyAny>) -> PyResult<()> {
        let this = slf.get();
        if this.with_body(slf.py(), |body| body.is_frozen()) {
            return Err(PyValueError::new_err("a frozen data plane does not start again: thaw its blob in a new one"));
        }
        Self::stop(slf)?;
        this.loop_state().running = Some((r#loop, on_events));
        this.with_body(slf.py(), DataPlane::set_listener);
        Self::register_sockets(slf)?;
        Self::start_standby(slf)?;
        Self::update_loop(slf)
    }

    fn stop(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::stop_standby(slf)?;
        Self::unregister_sockets(slf)?;
        Self::set_tun_reader(slf, false)?;
        slf.get().loop_state().running = None;
        Ok(())
    }

    fn set_sockets(slf: &Bound<'_, Self>, v4: Option<RawFd>, v6: Option<RawFd>) -> PyResult<()> {
        Self::unregister_sockets(slf)?;
        slf.get().loop_state().sockets = [v4, v6];
        slf.get().with_body(slf.py(), |body| body.set_sockets(v4, v6));
        Self::register_sockets(slf)?;
        Self::update_loop(slf)
    }

    fn pump_replaced_socket(slf: &Bound<'_, Self>, fd: RawFd, ipv6: bool) -> PyResult<()> {
        let _ = ipv6; // recvmmsg returns the family with each address
        let now = slf.get().now(slf.py())?;
        slf.get().pump(slf.py(), |body| body.pump_replaced_socket(fd, now));
        Self::update_loop(slf)
    }

    fn set_mtu(&self, py: Python<'_>, mtu: i64) -> PyResult<()> {
        let mtu = u16::try_from(mtu).map_err(|_| invalid(format!("no MTU: {mtu}")))?;
        self.with_body(py, |body| body.set_mtu(mtu));
        Ok(())
    }

    fn set_offloads(slf: &Bound<'_, Self>, offloads: &Bound<'_, PyAny>) -> PyResult<()> {
        let offloads = convert::offloads(offloads)?;
        let now = slf.get().now(slf.py())?;
        slf.get().with_body(slf.py(), |body| body.set_offloads(offloads, now));
        Self::update_loop(slf)
    }

    fn set_own_address(&self, py: Python<'_>, address: Option<&Bound<'_, PyAny>>, probe_port: i64) -> PyResult<()> {
        let port = u16::try_from(probe_port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| invalid(format!("no UDP port: {probe_port}")))?;
        let address = address
            .map(|address| {
                let packed = address.getattr("packed")?;
                let octets = <[u8; 16]>::try_from(packed.cast::<PyBytes>()?.as_bytes())
                    .map_err(|_| invalid("the own address is an IPv6 address"))?;
                PyResult::Ok(Ipv6Addr::from(octets))
            })
            .transpose()?;
        self.with_body(py, |body| body.set_own_address(address, port));
        Ok(())
    }

    // Peers.

    fn add_peer(&self, py: Python<'_>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer.extract().map_err(|_| invalid(format!("no peer id: {peer}")))?;
        self.with_body(py, |body| body.add_peer(peer));
        Ok(())
    }

    fn remove_peer(slf: &Bound<'_, Self>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        slf.get().with_body(slf.py(), |body| body.remove_peer(peer)).map_err(argument_error)?;
        Self::update_loop(slf)
    }

    #[pyo3(signature = (peer, endpoint, source=None))]
    fn set_endpoint(
        &self,
        py: Python<'_>,
        peer: &Bound<'_, PyAny>,
        endpoint: Option<&Bound<'_, PyAny>>,
        source: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let peer = peer_id(peer)?;
        let endpoint = endpoint.map(convert::endpoint).transpose()?;
        let source = source.map(convert::source).transpose()?;
        self.with_body(py, |body| body.set_endpoint(peer, endpoint, source)).map_err(argument_error)
    }

    fn set_roaming(&self, py: Python<'_>, peer: &Bound<'_, PyAny>, roaming: bool) -> PyResult<()> {
        let peer = peer_id(peer)?;
        self.with_body(py, |body| body.set_roaming(peer, roaming)).map_err(argument_error)
    }

    fn clear_source(&self, py: Python<'_>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        self.with_body(py, |body| body.clear_source(peer)).map_err(argument_error)
    }

    // Prefixes.

    fn route(&self, py: Python<'_>, prefix: &Bound<'_, PyAny>, peers: &Bound<'_, PyAny>) -> PyResult<()> {
        let prefix = convert::prefix(prefix)?;
        let peers = peers.try_iter()?.map(|peer| peer_id(&peer?)).collect::<PyResult<Vec<_>>>()?;
        self.with_body(py, |body| body.route(prefix, &peers)).map_err(argument_error)
    }

    #[pyo3(signature = (peer, add=None, remove=None))]
    fn accept(
        &self,
        py: Python<'_>,
        peer: &Bound<'_, PyAny>,
        add: Option<&Bound<'_, PyAny>>,
        remove: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let peer = peer_id(peer)?;
        let (add, remove) = (convert::prefixes(add)?, convert::prefixes(remove)?);
        self.with_body(py, |body| body.accept(peer, &add, &remove)).map_err(argument_error)
    }

    // Keypairs.

    fn install_keypair(slf: &Bound<'_, Self>, peer: &Bound<'_, PyAny>, keypair: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        let keypair = convert::Keypair::parse(keypair)?;
        let now = slf.get().now(slf.py())?;
        slf.get()
            .with_body(slf.py(), |body| body.install_keypair(peer, &keypair.as_new(), now))
            .map_err(argument_error)?;
        Self::update_loop(slf)
    }

    fn expire_keypairs(&self, py: Python<'_>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        self.with_body(py, |body| body.expire_keypairs(peer)).map_err(argument_error)
    }

    fn drop_keypairs(slf: &Bound<'_, Self>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        slf.get().with_body(slf.py(), |body| body.drop_keypairs(peer)).map_err(argument_error)?;
        Self::update_loop(slf)
    }

    fn purge_staged(&self, py: Python<'_>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        self.with_body(py, |body| body.purge_staged(peer)).map_err(argument_error)
    }

    // Sending.

    fn send_keepalive(slf: &Bound<'_, Self>, peer: &Bound<'_, PyAny>) -> PyResult<()> {
        let peer = peer_id(peer)?;
        let now = slf.get().now(slf.py())?;
        slf.get().with_body(slf.py(), |body| body.send_keepalive(peer, now)).map_err(argument_error)?;
        Self::update_loop(slf)
    }

    #[pyo3(signature = (peer, packet, outer_df=false))]
    fn send_inner(slf: &Bound<'_, Self>, peer: &Bound<'_, PyAny>, packet: &[u8], outer_df: bool) -> PyResult<()> {
        let peer = peer_id(peer)?;
        let packet = packet.to_vec();
        let now = slf.get().now(slf.py())?;
        slf.get().with_body(slf.py(), |body| body.send_inner(peer, packet, outer_df, now)).map_err(argument_error)?;
        Self::update_loop(slf)
    }

    #[pyo3(signature = (data, endpoint, source=None))]
    fn send_datagram(
        slf: &Bound<'_, Self>,
        data: &[u8],
        endpoint: &Bound<'_, PyAny>,
        source: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let endpoint = convert::endpoint(endpoint)?;
        let source = source.map(convert::source).transpose()?;
        slf.get().with_body(slf.py(), |body| body.send_datagram(data, endpoint, source)).map_err(argument_error)?;
        Self::update_loop(slf)
    }

    // Observation.

    #[pyo3(signature = (max_initiations = MAX_DATAGRAMS))]
    fn drain_events<'py>(&self, py: Python<'py>, max_initiations: usize) -> PyResult<Bound<'py, PyAny>> {
        let events = self.with_body(py, |body| body.drain_events(max_initiations));
        Contract::get(py)?.events(py, events).map(Bound::into_any)
    }

    fn waiting_initiations(&self, py: Python<'_>) -> usize {
        self.with_body(py, |body| body.waiting_initiations())
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (counters, peers) = self.with_body(py, |body| (body.counters().clone(), body.peer_counters().collect()));
        Contract::get(py)?.counters(py, &counters, peers)
    }

    fn offloads<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let offloads = self.with_body(py, |body| body.offloads());
        Contract::get(py)?.offloads(py, offloads)
    }

    // Session hand-over on restart.

    fn freeze<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyBytes>> {
        let now = slf.get().now(slf.py())?;
        Self::stop(slf)?;
        let blob = slf.get().with_body(slf.py(), |body| body.freeze(now)).map_err(argument_error)?;
        let blob = zeroize::Zeroizing::new(blob);
        Ok(PyBytes::new(slf.py(), &blob))
    }

    fn thaw(&self, py: Python<'_>, blob: &[u8]) -> PyResult<()> {
        let now = self.now(py)?;
        self.with_body(py, |body| body.thaw(blob, now)).map_err(argument_error)
    }

    // Callbacks of the event loop.

    fn _pump_tun(slf: &Bound<'_, Self>) -> PyResult<()> {
        let now = slf.get().now(slf.py())?;
        if !slf.get().pump(slf.py(), |body| body.pump_tun(now)) {
            slf.get().loop_state().tun_gone = true;
        }
        Self::update_loop(slf)
    }

    fn _pump_udp(slf: &Bound<'_, Self>, v6: bool) -> PyResult<()> {
        let now = slf.get().now(slf.py())?;
        slf.get().pump(slf.py(), |body| body.pump_udp(v6, now));
        Self::update_loop(slf)
    }

    fn _standby_reports(slf: &Bound<'_, Self>) -> PyResult<()> {
        if let Some(standby) = &slf.get().loop_state().standby {
            standby.loop_returned();
        }
        Self::update_loop(slf)
    }

    fn _wakeup_due(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().with_body(slf.py(), DataPlane::wakeup_due);
        Self::update_loop(slf)
    }

    fn _resume(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().with_body(slf.py(), DataPlane::resume);
        Self::update_loop(slf)
    }
}

impl NativeDataPlane {
    /// Run `work` on the locked body without the GIL.
    fn with_body<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut DataPlane) -> T + Send) -> T {
        py.detach(|| work(&mut self.body.lock_for_loop()))
    }

    /// Run a pump, and record the visit and its packets for the standby pump.
    fn pump<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut DataPlane) -> T + Send) -> T {
        let (outcome, packets) = self.with_body(py, |body| {
            let before = body.packets_read();
            let outcome = work(body);
            (outcome, body.packets_read() - before)
        });
        if let Some(standby) = &self.loop_state().standby {
            standby.note_pumped(packets);
        }
        outcome
    }

    /// Start the standby pump, if the body is started and on the real clock, and register its descriptor with the
    /// loop.
    fn start_standby(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Some((event_loop, _)) = slf.get().running(slf.py()).filter(|_| slf.get().clock.is_none()) else {
            return Ok(());
        };
        // Without a thread the loop alone pumps.
        let Ok(standby) = StandbyPump::start(slf.get().body.clone()) else { return Ok(()) };
        let arguments = (standby.descriptor(), slf.getattr("_standby_reports")?);
        slf.get().loop_state().standby = Some(standby);
        event_loop.bind(slf.py()).call_method1("add_reader", arguments)?;
        Ok(())
    }

    /// Stop the standby pump: afterwards only the loop pumps. Joins the thread without the GIL.
    fn stop_standby(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Some((event_loop, _)) = slf.get().running(slf.py()) else { return Ok(()) };
        let Some(standby) = slf.get().loop_state().standby.take() else { return Ok(()) };
        event_loop.bind(slf.py()).call_method1("remove_reader", (standby.descriptor(),))?;
        slf.py().detach(|| drop(standby));
        Ok(())
    }

    /// Lock the registrations.
    fn loop_state(&self) -> MutexGuard<'_, LoopState> {
        self.loop_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Return the time on the body's clock, in seconds.
    fn now(&self, py: Python<'_>) -> PyResult<f64> {
        match &self.clock {
            None => Ok(boottime()),
            Some(clock) => clock.bind(py).call0()?.extract(),
        }
    }

    /// Return event loop and callback while the body is started.
    fn running(&self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        self.loop_state().running.as_ref().map(|(one, other)| (one.clone_ref(py), other.clone_ref(py)))
    }

    /// Schedule `on_events` if events wait, and register the descriptors that the body's state requires. Every method
    /// calls this after it pumped, sent or posted events.
    fn update_loop(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let Some((event_loop, on_events)) = this.running(py) else { return Ok(()) };
        let (wakeup, blocked) = this.with_body(py, |body| (body.next_wakeup(), body.blocked()));
        match wakeup {
            Wakeup::Nothing => {}
            Wakeup::Now => {
                event_loop.bind(py).call_method1("call_soon", (on_events,))?;
            }
            Wakeup::Later(seconds) => {
                event_loop.bind(py).call_method1("call_later", (seconds, slf.getattr("_wakeup_due")?))?;
            }
        }
        let registered = std::mem::replace(&mut this.loop_state().writer, blocked);
        if registered != blocked {
            if let Some(fd) = registered {
                event_loop.bind(py).call_method1("remove_writer", (fd,))?;
            }
            if let Some(fd) = blocked {
                event_loop.bind(py).call_method1("add_writer", (fd, slf.getattr("_resume")?))?;
            }
        }
        Self::set_tun_reader(slf, blocked.is_none())
    }

    /// Register the TUN for reading, or remove it. A TUN that is gone stays removed.
    fn set_tun_reader(slf: &Bound<'_, Self>, read: bool) -> PyResult<()> {
        let this = slf.get();
        let Some((event_loop, _)) = this.running(slf.py()) else { return Ok(()) };
        let Some(tun) = this.tun else { return Ok(()) };
        let read = read && !this.loop_state().tun_gone;
        let before = std::mem::replace(&mut this.loop_state().reads_tun, read);
        let event_loop = event_loop.bind(slf.py());
        match (before, read) {
            (false, true) => event_loop.call_method1("add_reader", (tun, slf.getattr("_pump_tun")?))?,
            (true, false) => event_loop.call_method1("remove_reader", (tun,))?,
            _ => return Ok(()),
        };
        Ok(())
    }

    /// Register the sockets for reading, while the body is started.
    fn register_sockets(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Some((event_loop, _)) = slf.get().running(slf.py()) else { return Ok(()) };
        let sockets = slf.get().loop_state().sockets;
        for (fd, v6) in sockets.into_iter().zip([false, true]) {
            if let Some(fd) = fd {
                let pump = slf.getattr("_pump_udp")?;
                event_loop.bind(slf.py()).call_method1("add_reader", (fd, pump, v6))?;
            }
        }
        Ok(())
    }

    /// Remove the sockets from the loop, before their descriptors change.
    fn unregister_sockets(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Some((event_loop, _)) = slf.get().running(slf.py()) else { return Ok(()) };
        let sockets = slf.get().loop_state().sockets;
        for fd in sockets.into_iter().flatten() {
            event_loop.bind(slf.py()).call_method1("remove_reader", (fd,))?;
        }
        let writer = slf.get().loop_state().writer.take();
        if let Some(fd) = writer {
            event_loop.bind(slf.py()).call_method1("remove_writer", (fd,))?;
        }
        Ok(())
    }
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativeDataPlane>()
}
