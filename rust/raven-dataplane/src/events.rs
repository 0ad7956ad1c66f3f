//! What the tunnel hears: as the events of `ravenvpn.dataplane.contract`.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::peer::{PeerId, Traffic};
use crate::sys::Source;
use crate::wire;

/// Datagrams waiting to be taken, as the Linux kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
pub const MAX_DATAGRAMS: usize = 4096;

/// Of initiations that prove nothing: see the contract.
pub const MAX_WAITING_INITIATIONS: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Datagram { data: Vec<u8>, endpoint: SocketAddr, source: Option<Source> },
    InnerPacket { peer: PeerId, packet: Vec<u8>, outer_ce: bool },
    HandshakeNeeded { peer: PeerId },
    KeyPromoted { peer: PeerId, local_index: u32 },
    KeypairRetired { peer: PeerId, local_index: u32 },
    EndpointMoved { peer: PeerId, endpoint: SocketAddr, source: Option<Source> },
    Traffic { peer: PeerId, facts: Traffic },
}

/// Reports for timers alone, per second in the long run and at once. Busy peers set and clear what timers are made of
/// hundreds of times a second; a timer of seconds loses nothing if it is armed a tenth later.
const REPORTS_PER_SECOND: f64 = 10.0;
const REPORTS_AT_ONCE: f64 = 8.0;

/// When to call back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wakeup {
    Nothing,
    Now,
    /// After so many seconds.
    Later(f64),
}

/// Events in the order they happened, and whether the tunnel has to hear of them unasked.
pub struct EventQueue {
    waiting: Vec<Event>,
    /// Initiations that prove nothing, until the tunnel has room for them.
    initiations: VecDeque<Event>,
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

impl Default for EventQueue {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            initiations: VecDeque::new(),
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

impl EventQueue {
    pub fn push(&mut self, event: Event) {
        self.waiting.push(event);
    }

    /// False if too many wait already.
    pub fn push_datagram(&mut self, data: &[u8], endpoint: SocketAddr, source: Option<Source>) -> bool {
        let without_mac2 = wire::is_initiation_without_mac2(data);
        let full = if without_mac2 {
            self.initiations.len() >= MAX_WAITING_INITIATIONS
        } else {
            self.datagrams >= MAX_DATAGRAMS
        };
        if full {
            return false;
        }
        let event = Event::Datagram { data: data.to_vec(), endpoint, source };
        if without_mac2 {
            self.called |= self.initiations.is_empty();
            self.initiations.push_back(event);
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
        self.waiting.push(Event::InnerPacket { peer, packet: packet.to_vec(), outer_ce });
        true
    }

    /// The peer at this place has new facts.
    pub fn moved(&mut self, handle: usize) {
        self.moved.push(handle);
    }

    /// Facts can arm a timer: the tunnel has to hear of them unasked.
    pub fn mark_urgent(&mut self) {
        self.urgent = true;
    }

    /// The peer at this place is gone.
    pub fn forget(&mut self, handle: usize) {
        self.moved.retain(|moved| *moved != handle);
    }

    /// Somebody new listens, to whom nothing was said yet.
    pub fn listen(&mut self) {
        self.announced = false;
        self.promised = false;
        self.urgent |= !self.moved.is_empty();
        self.called |= !self.initiations.is_empty();
    }

    /// Whether to call back, if something waits of which that was not said yet. `now` is real time.
    pub fn next_wakeup(&mut self, now: f64) -> Wakeup {
        let events = self.called || !self.waiting.is_empty();
        if self.announced || (!self.urgent && !events) {
            return Wakeup::Nothing;
        }
        if !events {
            let earned = (now - self.counted_at).max(0.0) * REPORTS_PER_SECOND;
            self.allowance = (self.allowance + earned).min(REPORTS_AT_ONCE);
            self.counted_at = now;
            if self.allowance < 1.0 {
                if std::mem::replace(&mut self.promised, true) {
                    return Wakeup::Nothing;
                }
                return Wakeup::Later((1.0 - self.allowance) / REPORTS_PER_SECOND);
            }
            self.allowance -= 1.0;
        }
        self.announced = true;
        Wakeup::Now
    }

    /// The promised callback is due now.
    pub fn wakeup_due(&mut self) {
        self.promised = false;
    }

    /// How many initiations that prove nothing wait.
    #[must_use]
    pub fn waiting_initiations(&self) -> usize {
        self.initiations.len()
    }

    /// Events so far, at most `max_initiations` initiations that prove nothing behind them, and whose facts changed.
    pub fn take(&mut self, max_initiations: usize) -> (Vec<Event>, Vec<usize>) {
        self.datagrams = 0;
        self.inner = 0;
        self.urgent = false;
        self.called = false;
        self.announced = false;
        let mut events = std::mem::take(&mut self.waiting);
        events.extend(self.initiations.drain(..max_initiations.min(self.initiations.len())));
        (events, std::mem::take(&mut self.moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_for_timers_come_at_most_so_often() {
        let mut queue = EventQueue::default();
        for _ in 0..8 {
            queue.mark_urgent();
            assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
            queue.take(MAX_DATAGRAMS);
        }
        queue.mark_urgent();
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Later(0.1));
        assert_eq!(queue.next_wakeup(1000.05), Wakeup::Nothing, "it was promised");
        queue.wakeup_due();
        assert_eq!(queue.next_wakeup(1000.1), Wakeup::Now);
    }

    #[test]
    fn events_never_wait() {
        let mut queue = EventQueue::default();
        for peer in 0..20 {
            queue.push(Event::HandshakeNeeded { peer });
            assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
            assert_eq!(queue.next_wakeup(1000.0), Wakeup::Nothing, "said already");
            assert_eq!(queue.take(MAX_DATAGRAMS).0.len(), 1);
        }
    }

    #[test]
    fn of_initiations_that_prove_nothing_the_first_is_news() {
        let mut queue = EventQueue::default();
        let call = {
            let mut call = [0; 148];
            call[0] = 1;
            call
        };
        let from = "192.0.2.1:1".parse().unwrap();
        for _ in 0..MAX_WAITING_INITIATIONS {
            assert!(queue.push_datagram(&call, from, None));
        }
        assert!(!queue.push_datagram(&call, from, None), "there is no room for more");
        assert!(queue.push_datagram(&call[..92], from, None), "but for others");
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
        assert_eq!(queue.take(64).0.len(), 1 + 64);
        assert!(queue.push_datagram(&call, from, None));
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Nothing, "the tunnel knows that there are some");
        assert_eq!(queue.waiting_initiations(), MAX_WAITING_INITIATIONS - 63);
        queue.take(MAX_DATAGRAMS);
        assert!(queue.push_datagram(&call, from, None));
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
    }
}
