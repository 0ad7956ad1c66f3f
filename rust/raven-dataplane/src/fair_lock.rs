//! The lock around a body, fair to the event loop. Two threads use it: the loop's, and that of the standby pump.
//!
//! A mutex alone would let the pump thread starve the loop: the thread holds the body most of the time, and locks it
//! again before the loop has woken up. Under a flood of handshakes, whose cookies the loop sends one by one, that
//! cost the loop a tenth of a second per lock. So the loop's requests are counted, and the pump thread yields while
//! they come.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use crate::data_plane::DataPlane;

/// Sleep of the pump thread between two looks at the request counter. With [`MAX_YIELDS`] this limits how long the
/// loop can keep the thread from the body: 2 ms.
const YIELD_SLEEP: Duration = Duration::from_micros(250);
/// Yields before the pump thread takes the lock in any case, so that the loop can not starve it either.
const MAX_YIELDS: usize = 8;

/// A mutex around a [`DataPlane`] whose holder is the event loop or the pump thread.
pub struct FairLock {
    body: Mutex<DataPlane>,
    /// Lock requests of the loop so far, counted before it has the lock. Relaxed: only differences matter.
    loop_requests: AtomicU64,
}

impl FairLock {
    /// Wrap a body.
    #[must_use]
    pub fn new(body: DataPlane) -> Self {
        Self { body: Mutex::new(body), loop_requests: AtomicU64::new(0) }
    }

    /// Lock the body on the loop's thread. Ignores poisoning: a panic became a Python exception, and the body goes
    /// on.
    pub fn lock_for_loop(&self) -> MutexGuard<'_, DataPlane> {
        self.loop_requests.fetch_add(1, Relaxed);
        self.lock_for_standby()
    }

    /// Lock the body on the pump thread; call [`Self::yield_to_loop`] first when locking repeatedly.
    pub fn lock_for_standby(&self) -> MutexGuard<'_, DataPlane> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lock the body on the pump thread, or return None if it is locked.
    pub fn try_lock_for_standby(&self) -> Option<MutexGuard<'_, DataPlane>> {
        match self.body.try_lock() {
            Ok(body) => Some(body),
            Err(TryLockError::Poisoned(body)) => Some(body.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Yield to the event loop before taking the lock, at most 8 times: sleep while the loop requests
    /// the lock again and again. `seen` is the value of `loop_requests` when this function last returned.
    pub fn yield_to_loop(&self, seen: &mut u64) {
        for _ in 0..MAX_YIELDS {
            let now = self.loop_requests();
            if std::mem::replace(seen, now) == now {
                break;
            }
            thread::sleep(YIELD_SLEEP);
        }
    }

    /// Return the number of lock requests of the loop so far.
    pub fn loop_requests(&self) -> u64 {
        self.loop_requests.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Offloads;
    use crate::state::Timing;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    #[test]
    fn a_thread_that_locks_repeatedly_does_not_starve_the_loop() {
        let body = DataPlane::new(None, Offloads::default(), Timing::default(), String::new());
        let lock = Arc::new(FairLock::new(body));
        let stopping = Arc::new(AtomicBool::new(false));
        let greedy = thread::spawn({
            let (lock, stopping) = (lock.clone(), stopping.clone());
            move || {
                let mut seen = lock.loop_requests();
                while !stopping.load(Relaxed) {
                    lock.yield_to_loop(&mut seen);
                    let body = lock.lock_for_standby();
                    thread::sleep(Duration::from_millis(2)); // holds the lock, as a pump does
                    drop(body);
                }
            }
        });
        thread::sleep(Duration::from_millis(10));
        let begin = Instant::now();
        for _ in 0..100 {
            drop(lock.lock_for_loop());
            thread::sleep(Duration::from_micros(20));
        }
        let took = begin.elapsed();
        stopping.store(true, Relaxed);
        greedy.join().expect("the thread does not panic");
        // Without the other thread the 100 locks take about 10 ms. Waiting for it once per lock would take 200 ms.
        assert!(took < Duration::from_millis(100), "{took:?}");
    }
}
