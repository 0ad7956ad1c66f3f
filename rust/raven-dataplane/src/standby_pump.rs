//! Packets go on while the event loop is held up.
//!
//! The loop pumps: that costs nothing beside a thread of our own, as measured, and lets a batch of mutators look like
//! one to packets. But the loop also plans, shakes hands and writes routes, in Python, and then packets would wait for
//! it: half a second when a thousand regions come at once, or all the time under a flood of handshakes. So a thread
//! stands by. Once there is traffic it looks every [`TICK`] whether the loop came by, and if it did not although
//! something can be read, it pumps itself until the loop is back. It needs no GIL; what it leaves to be said is said
//! by the loop, which it wakes through a descriptor.

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

/// How long packets wait for the loop before somebody else takes care of them.
const TICK: Duration = Duration::from_millis(4);
/// With fewer packets than this in a window nobody stands by: an idle agent shall not wake up for nothing.
const BUSY: u64 = 20;
const WINDOW: Duration = Duration::from_millis(100);
/// The thread leaves when the loop came by less often than that in so long a window and was not missed.
const STAY: Duration = Duration::from_secs(1);
/// Milliseconds to wait for packets before it is checked again whether the loop is back.
const PATIENCE: i32 = 10;

/// The thread that stands by. It ends when this is dropped.
pub struct StandbyPump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    wakes: UnixStream,
    window: Mutex<(Instant, u64)>,
}

struct Shared {
    body: Arc<FairLock>,
    /// How often the loop came by.
    visits: AtomicU64,
    on_duty: AtomicBool,
    ends: AtomicBool,
    loop_wakes: UnixStream,
}

impl StandbyPump {
    pub fn start(body: Arc<FairLock>) -> io::Result<Self> {
        let (wakes, loop_wakes) = UnixStream::pair()?;
        for one in [&wakes, &loop_wakes] {
            one.set_nonblocking(true)?;
        }
        let shared = Arc::new(Shared {
            body,
            visits: AtomicU64::new(0),
            on_duty: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            loop_wakes,
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("standby".into()).spawn(move || theirs.stand_by())?;
        Ok(Self { shared, thread: Some(thread), wakes, window: Mutex::new((Instant::now(), 0)) })
    }

    /// Readable when the loop is to call [`Self::back`].
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.wakes.as_raw_fd()
    }

    /// The loop is back after it was held up.
    pub fn back(&self) {
        let mut words = [0; 64];
        while matches!((&self.wakes).read(&mut words), Ok(1..)) {}
        self.shared.visits.fetch_add(1, Relaxed);
    }

    /// The loop pumped, and moved so many packets. Many at once count as much as many times: under a flood the loop
    /// comes by seldom.
    pub fn pumped(&self, packets: u64) {
        self.shared.visits.fetch_add(1, Relaxed);
        if self.shared.on_duty.load(Relaxed) {
            return;
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() > WINDOW {
            *window = (Instant::now(), 0);
        }
        window.1 += packets.max(1);
        if window.1 >= BUSY {
            self.shared.on_duty.store(true, Relaxed);
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for StandbyPump {
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // it panics only where the loop would have
        }
    }
}

impl Shared {
    fn visits(&self) -> u64 {
        self.visits.load(Relaxed)
    }

    fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    fn stand_by(&self) {
        while !self.ends() {
            if self.on_duty.load(Relaxed) {
                self.watch();
                self.on_duty.store(false, Relaxed);
            } else {
                thread::park();
            }
        }
    }

    /// While there is traffic.
    fn watch(&self) {
        let (mut begin, mut then) = (Instant::now(), self.visits());
        let mut before = then;
        loop {
            thread::sleep(TICK);
            if self.ends() {
                return;
            }
            let now = self.visits();
            if now == before && self.take_over(now) {
                (begin, then) = (Instant::now(), self.visits());
            } else if begin.elapsed() > STAY {
                if now - then < BUSY {
                    return;
                }
                (begin, then) = (Instant::now(), now);
            }
            before = self.visits();
        }
    }

    /// Pumps until the loop is back; false if there was nothing to do.
    fn take_over(&self, visits: u64) -> bool {
        // In the middle of a pump the loop is not away, however long the scheduler keeps it from going on.
        let Some(mut wanted) = self.body.try_lock_for_standby().map(|body| body.wanted()) else { return false };
        let mut wait = 0;
        let mut asked = self.body.asked();
        while self.visits() == visits && !self.ends() {
            let ready = sys::poll(&wanted, wait);
            if ready.iter().any(|ready| *ready) {
                wait = PATIENCE;
                self.body.yield_to_loop(&mut asked);
                if self.visits() != visits {
                    break;
                }
                self.body.lock_for_standby().pump_ready(&wanted, &ready, sys::boottime());
                let _ = (&self.loop_wakes).write(&[0]); // full: it was told often enough
            } else if wait == 0 {
                return false; // the loop had nothing to come for
            }
            wanted = self.body.lock_for_standby().wanted();
        }
        wait > 0
    }
}

impl DataPlane {
    /// Packets read so far, from either side.
    #[must_use]
    pub fn packets_read(&self) -> u64 {
        self.counters().udp_rx_datagrams + self.counters().tun_rx_packets
    }

    /// What there is to wait for now.
    fn wanted(&self) -> [Interest; 3] {
        let [v4, v6] = self.sockets();
        let blocked = self.blocked();
        let socket = |fd: Option<RawFd>| Interest { fd: fd.unwrap_or(-1), write: fd.is_some() && fd == blocked };
        let tun = self.tun().filter(|_| blocked.is_none());
        [socket(v4), socket(v6), Interest { fd: tun.unwrap_or(-1), write: false }]
    }

    fn pump_ready(&mut self, wanted: &[Interest; 3], ready: &[bool; 3], now: f64) {
        for (v6, interest) in [false, true].into_iter().zip(wanted).filter(|(v6, _)| ready[usize::from(*v6)]) {
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

    /// A body that drops everything it reads from its TUN, having no routes, and counts that.
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
            self.body.take().counters().tun_reads
        }

        /// Whether somebody reads what the kernel sends, within a second.
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
    fn packets_go_on_without_the_loop_once_there_is_traffic() {
        let scene = Scene::new();
        scene.standby.pumped(BUSY);
        assert!(scene.is_read());
        let mut word = [0];
        assert_eq!((&scene.standby.wakes).read(&mut word).ok(), Some(1), "the loop is told");
        assert!(scene.is_read(), "for as long as it is away");
    }

    #[test]
    fn nobody_stands_by_where_little_happens() {
        let scene = Scene::new();
        for _ in 1..BUSY {
            scene.standby.pumped(1);
        }
        assert!(!scene.is_read());
    }

    #[test]
    fn it_ends_with_its_owner() {
        let scene = Scene::new();
        scene.standby.pumped(BUSY);
        let Scene { standby, body, wire, _inside } = scene;
        drop(standby);
        wire.send(&[0; 40]).expect("room for a frame");
        thread::sleep(TICK * 10);
        assert_eq!(body.take().counters().tun_reads, 0);
        assert_eq!(Arc::strong_count(&body), 1);
    }
}
