//! The standby pump: a thread that pumps packets while the event loop is blocked.
//!
//! Normally the event loop pumps. Measured, that costs no more than a thread of our own, and a batch of mutators
//! takes effect as one change. But the loop also plans, runs handshakes and writes routes, in Python, and packets
//! would wait meanwhile: half a second when a thousand regions join at once, or all the time under a flood of
//! handshakes.
//!
//! So a thread stands by. While there is traffic it checks every [`TICK`] whether the loop has pumped. If the loop
//! has not, and a descriptor is ready, the thread pumps until the loop returns. It needs no GIL and calls no Python:
//! it wakes the loop through a descriptor, and the loop announces the events.
//!
//! Locks: the thread takes the body's [`FairLock`] for one pump at a time and yields to the loop before. The atomics
//! are Relaxed, because they are only counters and flags: the lock orders access to the body.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::data_plane::DataPlane;
use crate::fair_lock::FairLock;
use crate::sys::{self, Interest};

/// How long packets wait for the loop before the thread pumps.
const TICK: Duration = Duration::from_millis(4);
/// Packets in a [`BUSY_WINDOW`] from which the thread becomes active. Below, it sleeps, so that an idle agent causes
/// no periodic wake-ups.
const BUSY_PACKETS: u64 = 20;
/// Length of the window for [`BUSY_PACKETS`].
const BUSY_WINDOW: Duration = Duration::from_millis(100);
/// The thread goes to sleep after this time with fewer than [`BUSY_PACKETS`] visits of the loop, if the loop was not
/// blocked meanwhile.
const IDLE_WINDOW: Duration = Duration::from_secs(1);
/// Timeout of one poll while the thread pumps; afterwards it checks again whether the loop has returned.
const POLL_MILLISECONDS: i32 = 10;

/// Handle of the thread, owned by the event loop's side. Dropping it stops and joins the thread.
pub struct StandbyPump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The loop's end of the wake-up descriptor pair.
    wake_receiver: UnixStream,
    /// Begin of the current window, and packets since then. A mutex only because the handle is shared with Python.
    window: Mutex<(Instant, u64)>,
}

/// State shared by the loop's handle and the thread.
struct Shared {
    body: Arc<FairLock>,
    /// How often the loop pumped or returned.
    loop_visits: AtomicU64,
    /// There is traffic: the thread watches the loop. Set by the loop, cleared by the thread.
    active: AtomicBool,
    /// The handle is being dropped.
    stopping: AtomicBool,
    /// The thread's end of the wake-up descriptor pair.
    wake_sender: UnixStream,
}

impl StandbyPump {
    /// Start the thread, inactive.
    ///
    /// # Errors
    /// If the descriptor pair or the thread can not be made.
    pub fn start(body: Arc<FairLock>) -> io::Result<Self> {
        let (wake_receiver, wake_sender) = UnixStream::pair()?;
        for one in [&wake_receiver, &wake_sender] {
            one.set_nonblocking(true)?;
        }
        let shared = Arc::new(Shared {
            body,
            loop_visits: AtomicU64::new(0),
            active: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            wake_sender,
        });
        let thread_shared = shared.clone();
        let thread = thread::Builder::new().name("standby".into()).spawn(move || thread_shared.run())?;
        Ok(Self { shared, thread: Some(thread), wake_receiver, window: Mutex::new((Instant::now(), 0)) })
    }

    /// Return the descriptor that becomes readable when the loop has to call [`Self::loop_returned`].
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.wake_receiver.as_raw_fd()
    }

    /// The loop runs again after it was blocked: empty the descriptor and stop the thread from pumping.
    pub fn loop_returned(&self) {
        let mut words = [0; 64];
        while matches!((&self.wake_receiver).read(&mut words), Ok(1..)) {}
        self.shared.loop_visits.fetch_add(1, Relaxed);
    }

    /// Record that the loop pumped `packets` packets. Packets are counted, not calls, because under a flood the loop
    /// pumps seldom and finds many.
    pub fn note_pumped(&self, packets: u64) {
        self.shared.loop_visits.fetch_add(1, Relaxed);
        if self.shared.active.load(Relaxed) {
            return;
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() > BUSY_WINDOW {
            *window = (Instant::now(), 0);
        }
        window.1 += packets.max(1);
        if window.1 >= BUSY_PACKETS {
            self.shared.active.store(true, Relaxed);
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for StandbyPump {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // a panic of the thread would have happened in the loop as well
        }
    }
}

impl Shared {
    fn loop_visits(&self) -> u64 {
        self.loop_visits.load(Relaxed)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// The thread: park until there is traffic, then watch the loop; end when the handle is dropped.
    fn run(&self) {
        while !self.stopping() {
            if self.active.load(Relaxed) {
                self.watch_loop();
                self.active.store(false, Relaxed);
            } else {
                thread::park();
            }
        }
    }

    /// Check every [`TICK`] whether the loop has pumped; return when there is no traffic any more.
    fn watch_loop(&self) {
        let (mut begin, mut then) = (Instant::now(), self.loop_visits());
        let mut before = then;
        loop {
            thread::sleep(TICK);
            if self.stopping() {
                return;
            }
            let now = self.loop_visits();
            if now == before && self.pump_for_loop(now) {
                (begin, then) = (Instant::now(), self.loop_visits());
            } else if begin.elapsed() > IDLE_WINDOW {
                if now - then < BUSY_PACKETS {
                    return;
                }
                (begin, then) = (Instant::now(), now);
            }
            before = self.loop_visits();
        }
    }

    /// Pump until the loop returns. `loop_visits` is the counter when the loop was found missing. Return false if no
    /// descriptor was ready.
    fn pump_for_loop(&self, loop_visits: u64) -> bool {
        // A locked body: the loop is in the middle of a pump and not blocked, however long the scheduler delays it.
        let Some(mut interests) = self.body.try_lock_for_standby().map(|body| body.interests()) else { return false };
        let mut wait = 0;
        let mut seen = self.body.loop_requests();
        while self.loop_visits() == loop_visits && !self.stopping() {
            let ready = sys::poll(&interests, wait);
            if ready.iter().any(|ready| *ready) {
                wait = POLL_MILLISECONDS;
                self.body.yield_to_loop(&mut seen);
                if self.loop_visits() != loop_visits {
                    break;
                }
                self.body.lock_for_standby().pump_ready(&interests, &ready, sys::boottime());
                let _ = (&self.wake_sender).write(&[0]); // full: the loop is woken already
            } else if wait == 0 {
                return false; // the loop had no work
            }
            interests = self.body.lock_for_standby().interests();
        }
        wait > 0
    }
}

impl DataPlane {
    /// Return the packets read so far, from the TUN and the sockets.
    #[must_use]
    pub fn packets_read(&self) -> u64 {
        self.counters().udp_rx_datagrams + self.counters().tun_rx_packets
    }

    /// Return the descriptors to poll: IPv4, IPv6, TUN. A full socket is polled for writing too, and the TUN not
    /// meanwhile.
    fn interests(&self) -> [Interest; 3] {
        let [v4, v6] = self.sockets();
        let blocked = self.blocked();
        let socket = |fd: Option<RawFd>| Interest { fd: fd.unwrap_or(-1), write: fd.is_some() && fd == blocked };
        let tun = self.tun().filter(|_| blocked.is_none());
        [socket(v4), socket(v6), Interest { fd: tun.unwrap_or(-1), write: false }]
    }

    /// Pump the descriptors that are ready, the sockets before the TUN.
    fn pump_ready(&mut self, interests: &[Interest; 3], ready: &[bool; 3], now: f64) {
        for (v6, interest) in [false, true].into_iter().zip(interests).filter(|(v6, _)| ready[usize::from(*v6)]) {
            if interest.write {
                self.resume();
            }
            self.pump_udp(v6, now);
        }
        if ready[2] && self.blocked().is_none() {
            self.pump_tun(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Offloads;
    use crate::state::Timing;
    use std::os::unix::net::UnixDatagram;

    /// A body without routes: it drops every packet it reads from its TUN, and counts the reads.
    struct Scene {
        standby: StandbyPump,
        body: Arc<FairLock>,
        wire: UnixDatagram,
        _inside: UnixDatagram,
    }

    impl Scene {
        fn new() -> Self {
            let (wire, inside) = UnixDatagram::pair().expect("a socket pair");
            inside.set_nonblocking(true).expect("non-blocking");
            let body = DataPlane::new(Some(inside.as_raw_fd()), Offloads::default(), Timing::default(), String::new());
            let body = Arc::new(FairLock::new(body));
            Self { standby: StandbyPump::start(body.clone()).expect("a thread"), body, wire, _inside: inside }
        }

        fn reads(&self) -> u64 {
            self.body.lock_for_loop().counters().tun_reads
        }

        /// Send a frame and return true if it is read within a second.
        fn is_read(&self) -> bool {
            let before = self.reads();
            self.wire.send(&[0; 40]).expect("room for a frame");
            let begin = Instant::now();
            while self.reads() == before && begin.elapsed() < Duration::from_secs(1) {
                thread::sleep(TICK);
            }
            self.reads() > before
        }
    }

    #[test]
    fn the_thread_pumps_while_the_loop_is_blocked_and_there_is_traffic() {
        let scene = Scene::new();
        scene.standby.note_pumped(BUSY_PACKETS);
        assert!(scene.is_read());
        let mut word = [0];
        assert_eq!((&scene.standby.wake_receiver).read(&mut word).ok(), Some(1), "the loop is woken");
        assert!(scene.is_read(), "until the loop returns");
    }

    #[test]
    fn the_thread_does_not_pump_with_little_traffic() {
        let scene = Scene::new();
        for _ in 1..BUSY_PACKETS {
            scene.standby.note_pumped(1);
        }
        assert!(!scene.is_read());
    }

    #[test]
    fn dropping_the_handle_stops_the_thread() {
        let scene = Scene::new();
        scene.standby.note_pumped(BUSY_PACKETS);
        let Scene { standby, body, wire, _inside } = scene;
        drop(standby);
        wire.send(&[0; 40]).expect("room for a frame");
        thread::sleep(TICK * 10);
        assert_eq!(body.lock_for_loop().counters().tun_reads, 0);
        assert_eq!(Arc::strong_count(&body), 1);
    }
}
