//! What the tunnel hears: as the events of `ravenvpn.dataplane.contract`.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::peer::{PeerId, Traffic};
use crate::sys::Source;
use crate::wire;

/// Datagrams waiting to be taken, as the Linux kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
pub const MAX_DATAGRAMS: usize = 4096;

/// Of initiations that prove nothing: see the contract.
pub const MAX_UNPROVEN: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Datagram { data: Vec<u8>, endpoint: SocketAddr, source: Option<Source> },
    Inner { peer: PeerId, packet: Vec<u8>, outer_ce: bool },
    WantsHandshake { peer: PeerId },
    KeyPromoted { peer: PeerId, local_index: u32 },
    KeypairRetired { peer: PeerId, local_index: u32 },
    SourceMoved { peer: PeerId, endpoint: SocketAddr, source: Option<Source> },
    Traffic { peer: PeerId, facts: Traffic },
}

/// Reports for timers alone, per second in the long run and at once. Busy peers set and clear what timers are made of
/// hundreds of times a second; a timer of seconds loses nothing if it is armed a tenth later.
const REPORTS_PER_SECOND: f64 = 10.0;
const REPORTS_AT_ONCE: f64 = 8.0;

/// When to call back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Announcement {
    Nothing,
    Now,
    /// After so many seconds.
    Later(f64),
}

/// Events in the order they happened, and whether the tunnel has to hear of them unasked.
pub struct Queue {
    waiting: Vec<Event>,
    /// Initiations that prove nothing, until the tunnel has room for them.
    unproven: VecDeque<Event>,
    datagrams: usize,
    inner: usize,
    /// Places of peers whose facts changed, in that order.
    moved: Vec<usize>,
    /// A timer may have to be armed.
    urgent: bool,
    /// Unproven initiations wait, and none did before.
    called: bool,
    /// The callback was made and nothing was taken since.
    announced: bool,
    /// A later callback was promised.
    promised: bool,
    /// Reports that may be announced at once, as of `counted_at`.
    allowance: f64,
    counted_at: f64,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            unproven: VecDeque::new(),
            datagrams: 0,
            inner: 0,
            moved: Vec::new(),
            urgent: false,
            called: false,
            announced: false,
            promised: false,
            allowance: REPORTS_AT_ONCE,
            counted_at: 0.0,
        }
    }
}

impl Queue {
    pub fn push(&mut self, event: Event) {
        self.waiting.push(event);
    }

    /// False if too many wait already.
    pub fn push_datagram(&mut self, data: &[u8], endpoint: SocketAddr, source: Option<Source>) -> bool {
        let proves_nothing = wire::proves_nothing(data);
        let full = if proves_nothing { self.unproven.len() >= MAX_UNPROVEN } else { self.datagrams >= MAX_DATAGRAMS };
        if full {
            return false;
        }
        let event = Event::Datagram { data: data.to_vec(), endpoint, source };
        if proves_nothing {
            self.called |= self.unproven.is_empty();
            self.unproven.push_back(event);
        } else {
            self.datagrams += 1;
            self.waiting.push(event);
        }
        true
    }

    /// False if too many wait already.
    pub fn push_inner(&mut self, peer: PeerId, packet: &[u8], outer_ce: bool) -> bool {
        if self.inner >= MAX_DATAGRAMS {
            return false;
        }
        self.inner += 1;
        self.waiting.push(Event::Inner { peer, packet: packet.to_vec(), outer_ce });
        true
    }

    /// The peer at this place has new facts.
    pub fn moved(&mut self, place: usize) {
        self.moved.push(place);
    }

    /// Facts can arm a timer: the tunnel has to hear of them unasked.
    pub fn hurry(&mut self) {
        self.urgent = true;
    }

    /// The peer at this place is gone.
    pub fn forget(&mut self, place: usize) {
        self.moved.retain(|moved| *moved != place);
    }

    /// Somebody new listens, to whom nothing was said yet.
    pub fn listen(&mut self) {
        self.announced = false;
        self.promised = false;
        self.urgent |= !self.moved.is_empty();
        self.called |= !self.unproven.is_empty();
    }

    /// Whether to call back, if something waits of which that was not said yet. `now` is real time.
    pub fn announce(&mut self, now: f64) -> Announcement {
        let events = self.called || !self.waiting.is_empty();
        if self.announced || (!self.urgent && !events) {
            return Announcement::Nothing;
        }
        if !events {
            let earned = (now - self.counted_at).max(0.0) * REPORTS_PER_SECOND;
            self.allowance = (self.allowance + earned).min(REPORTS_AT_ONCE);
            self.counted_at = now;
            if self.allowance < 1.0 {
                if std::mem::replace(&mut self.promised, true) {
                    return Announcement::Nothing;
                }
                return Announcement::Later((1.0 - self.allowance) / REPORTS_PER_SECOND);
            }
            self.allowance -= 1.0;
        }
        self.announced = true;
        Announcement::Now
    }

    /// The promised callback is due now.
    pub fn keep_promise(&mut self) {
        self.promised = false;
    }

    /// How many initiations that prove nothing wait.
    #[must_use]
    pub fn unproven(&self) -> usize {
        self.unproven.len()
    }

    /// Events so far, at most `unproven` initiations that prove nothing behind them, and whose facts changed.
    pub fn take(&mut self, unproven: usize) -> (Vec<Event>, Vec<usize>) {
        self.datagrams = 0;
        self.inner = 0;
        self.urgent = false;
        self.called = false;
        self.announced = false;
        let mut events = std::mem::take(&mut self.waiting);
        events.extend(self.unproven.drain(..unproven.min(self.unproven.len())));
        (events, std::mem::take(&mut self.moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_for_timers_come_at_most_so_often() {
        let mut queue = Queue::default();
        for _ in 0..8 {
            queue.hurry();
            assert_eq!(queue.announce(1000.0), Announcement::Now);
            queue.take(MAX_DATAGRAMS);
        }
        queue.hurry();
        assert_eq!(queue.announce(1000.0), Announcement::Later(0.1));
        assert_eq!(queue.announce(1000.05), Announcement::Nothing, "it was promised");
        queue.keep_promise();
        assert_eq!(queue.announce(1000.1), Announcement::Now);
    }

    #[test]
    fn events_never_wait() {
        let mut queue = Queue::default();
        for peer in 0..20 {
            queue.push(Event::WantsHandshake { peer });
            assert_eq!(queue.announce(1000.0), Announcement::Now);
            assert_eq!(queue.announce(1000.0), Announcement::Nothing, "said already");
            assert_eq!(queue.take(MAX_DATAGRAMS).0.len(), 1);
        }
    }

    #[test]
    fn of_initiations_that_prove_nothing_the_first_is_news() {
        let mut queue = Queue::default();
        let call = {
            let mut call = [0; 148];
            call[0] = 1;
            call
        };
        let from = "192.0.2.1:1".parse().unwrap();
        for _ in 0..MAX_UNPROVEN {
            assert!(queue.push_datagram(&call, from, None));
        }
        assert!(!queue.push_datagram(&call, from, None), "there is no room for more");
        assert!(queue.push_datagram(&call[..92], from, None), "but for others");
        assert_eq!(queue.announce(1000.0), Announcement::Now);
        assert_eq!(queue.take(64).0.len(), 1 + 64);
        assert!(queue.push_datagram(&call, from, None));
        assert_eq!(queue.announce(1000.0), Announcement::Nothing, "the tunnel knows that there are some");
        assert_eq!(queue.unproven(), MAX_UNPROVEN - 63);
        queue.take(MAX_DATAGRAMS);
        assert!(queue.push_datagram(&call, from, None));
        assert_eq!(queue.announce(1000.0), Announcement::Now);
    }
}
