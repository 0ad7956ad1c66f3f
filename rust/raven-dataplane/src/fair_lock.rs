//! One body, two who work on it: the loop, and the thread that stands in for it.
//!
//! A mutex alone would let the thread starve the loop: it has the body most of the time and takes it again before
//! the loop has woken up. Under a flood of handshakes, whose cookies the loop sends one by one, that cost the loop a
//! tenth of a second a turn. So the loop is let in first, and left alone for a while once it has come.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use crate::data_plane::DataPlane;

/// How long the loop may keep the thread waiting by coming again and again, in so many steps.
const STEP: Duration = Duration::from_micros(250);
const STEPS: usize = 8;

pub struct FairLock {
    body: Mutex<DataPlane>,
    /// How often the loop came for the body, counted before it has it.
    asked: AtomicU64,
}

impl FairLock {
    #[must_use]
    pub fn new(body: DataPlane) -> Self {
        Self { body: Mutex::new(body), asked: AtomicU64::new(0) }
    }

    /// For the loop.
    pub fn take(&self) -> MutexGuard<'_, DataPlane> {
        self.asked.fetch_add(1, Relaxed);
        self.lock_for_standby()
    }

    /// For whoever stands in for the loop.
    pub fn lock_for_standby(&self) -> MutexGuard<'_, DataPlane> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For whoever stands in, if nobody has it.
    pub fn try_lock_for_standby(&self) -> Option<MutexGuard<'_, DataPlane>> {
        match self.body.try_lock() {
            Ok(body) => Some(body),
            Err(TryLockError::Poisoned(body)) => Some(body.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// To be called before: waits while the loop comes again and again, up to a point. `asked` is what `asked` was
    /// when this last returned.
    pub fn yield_to_loop(&self, asked: &mut u64) {
        for _ in 0..STEPS {
            let now = self.asked();
            if std::mem::replace(asked, now) == now {
                break;
            }
            thread::sleep(STEP);
        }
    }

    /// How often the loop has come so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
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
    fn the_loop_is_not_kept_waiting_by_who_takes_the_body_again_and_again() {
        let body = DataPlane::new(None, Offloads::default(), Timing::default(), String::new());
        let lock = Arc::new(FairLock::new(body));
        let ends = Arc::new(AtomicBool::new(false));
        let greedy = thread::spawn({
            let (lock, ends) = (lock.clone(), ends.clone());
            move || {
                let mut asked = lock.asked();
                while !ends.load(Relaxed) {
                    lock.yield_to_loop(&mut asked);
                    let body = lock.lock_for_standby();
                    thread::sleep(Duration::from_millis(2)); // it works
                    drop(body);
                }
            }
        });
        thread::sleep(Duration::from_millis(10));
        let begin = Instant::now();
        for _ in 0..100 {
            drop(lock.take());
            thread::sleep(Duration::from_micros(20));
        }
        let took = begin.elapsed();
        ends.store(true, Relaxed);
        greedy.join().expect("nobody panics");
        // Twice as long as all of them take alone is 20 ms; one turn of the other for each of them would be 200 ms.
        assert!(took < Duration::from_millis(100), "{took:?}");
    }
}
