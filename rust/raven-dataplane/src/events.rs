//! The event queue from a body to the tunnel, and the decision when to call the tunnel back.
//!
//! The events are those of `ravenvpn.dataplane.contract`, which documents their meaning and order.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::peer::{PeerId, Traffic};
use crate::sys::Source;
use crate::wire;

/// Limit of datagrams in the queue, and of inner packets as well: the Linux kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
pub const MAX_DATAGRAMS: usize = 4096;

/// Limit of initiations without mac2 in their queue; the contract gives the reason for the number.
pub const MAX_WAITING_INITIATIONS: usize = 1024;

/// An event for the tunnel. `contract.py` documents each; `facts` are the times of a peer.
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

/// Refill rate of the token bucket for wake-ups that only report timer times, per second.
///
/// Busy peers set and clear these times hundreds of times a second. A timer of seconds can be armed a tenth of a
/// second late without harm.
const REPORTS_PER_SECOND: f64 = 10.0;
/// Size of that token bucket: wake-ups that may follow each other at once.
const REPORT_BURST: f64 = 8.0;

/// When the driver of a body calls the tunnel's `on_events`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wakeup {
    /// Not at all: no event waits, or the call was made already.
    Nothing,
    /// At once. The call counts as made.
    Now,
    /// In so many seconds, call `wakeup_due` and ask again.
    Later(f64),
}

/// Events in order, initiations without mac2 apart, and the peers whose times changed since the last report.
///
/// Invariant: after [`Wakeup::Now`] there is no second one before `drain` or `set_listener`.
pub struct EventQueue {
    /// All other events, in order.
    waiting: Vec<Event>,
    /// Initiations without mac2, at most [`MAX_WAITING_INITIATIONS`], until the tunnel has room for them.
    initiations: VecDeque<Event>,
    /// Datagrams in `waiting`, at most [`MAX_DATAGRAMS`].
    datagrams: usize,
    /// Inner packets in `waiting`, at most [`MAX_DATAGRAMS`].
    inner_packets: usize,
    /// Handles of the peers whose times changed, in the order of the changes, each once.
    changed: Vec<usize>,
    /// The times of a changed peer can arm a timer.
    urgent: bool,
    /// An initiation came into an empty queue and the tunnel was not called since.
    initiations_unannounced: bool,
    /// The tunnel was called and nothing was drained since.
    announced: bool,
    /// [`Wakeup::Later`] was returned, and its time has not come yet.
    wakeup_scheduled: bool,
    /// Tokens in the bucket at `refilled_at`, 0 to [`REPORT_BURST`].
    tokens: f64,
    /// CLOCK_BOOTTIME, in seconds.
    refilled_at: f64,
}

impl Default for EventQueue {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            initiations: VecDeque::new(),
            datagrams: 0,
            inner_packets: 0,
            changed: Vec::new(),
            urgent: false,
            initiations_unannounced: false,
            announced: false,
            wakeup_scheduled: false,
            tokens: REPORT_BURST,
            refilled_at: 0.0,
        }
    }
}

impl EventQueue {
    /// Append an event that happens rarely: no limit applies.
    pub fn post(&mut self, event: Event) {
        self.waiting.push(event);
    }

    /// Append a datagram that is not a transport message. Return false, and drop it, if its queue is full.
    pub fn post_datagram(&mut self, data: &[u8], endpoint: SocketAddr, source: Option<Source>) -> bool {
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
            self.initiations_unannounced |= self.initiations.is_empty();
            self.initiations.push_back(event);
        } else {
            self.datagrams += 1;
            self.waiting.push(event);
        }
        true
    }

    /// Append a probe packet from inside the tunnel. Return false, and drop it, if [`MAX_DATAGRAMS`] of them wait.
    pub fn post_inner_packet(&mut self, peer: PeerId, packet: &[u8], outer_ce: bool) -> bool {
        if self.inner_packets >= MAX_DATAGRAMS {
            return false;
        }
        self.inner_packets += 1;
        self.waiting.push(Event::InnerPacket { peer, packet: packet.to_vec(), outer_ce });
        true
    }

    /// Report the times of this peer with the next `drain`. The caller calls this once per report (`report_pending`).
    pub fn mark_changed(&mut self, handle: usize) {
        self.changed.push(handle);
    }

    /// Call the tunnel back for reports too, because the times of a changed peer can arm a timer.
    pub fn mark_urgent(&mut self) {
        self.urgent = true;
    }

    /// Report nothing of this peer any more, which is being removed.
    pub fn discard(&mut self, handle: usize) {
        self.changed.retain(|changed| *changed != handle);
    }

    /// Prepare for a new listener, which has to be called for everything that waits.
    pub fn set_listener(&mut self) {
        self.announced = false;
        self.wakeup_scheduled = false;
        self.urgent |= !self.changed.is_empty();
        self.initiations_unannounced |= !self.initiations.is_empty();
    }

    /// Return when to call the tunnel back, once for the events that wait. `now` is CLOCK_BOOTTIME, in seconds: also
    /// when the body has a test's clock, because the callback is scheduled in real time.
    pub fn next_wakeup(&mut self, now: f64) -> Wakeup {
        let events = self.initiations_unannounced || !self.waiting.is_empty();
        if self.announced || (!self.urgent && !events) {
            return Wakeup::Nothing;
        }
        if !events {
            let earned = (now - self.refilled_at).max(0.0) * REPORTS_PER_SECOND;
            self.tokens = (self.tokens + earned).min(REPORT_BURST);
            self.refilled_at = now;
            if self.tokens < 1.0 {
                if std::mem::replace(&mut self.wakeup_scheduled, true) {
                    return Wakeup::Nothing;
                }
                return Wakeup::Later((1.0 - self.tokens) / REPORTS_PER_SECOND);
            }
            self.tokens -= 1.0;
        }
        self.announced = true;
        Wakeup::Now
    }

    /// The time of [`Wakeup::Later`] has come: `next_wakeup` may return another one.
    pub fn wakeup_due(&mut self) {
        self.wakeup_scheduled = false;
    }

    /// Return the number of initiations without mac2 in their queue.
    #[must_use]
    pub fn waiting_initiations(&self) -> usize {
        self.initiations.len()
    }

    /// Remove and return the events in order, then at most `max_initiations` initiations without mac2, the oldest
    /// first; and the handles of the peers whose times changed.
    pub fn drain(&mut self, max_initiations: usize) -> (Vec<Event>, Vec<usize>) {
        self.datagrams = 0;
        self.inner_packets = 0;
        self.urgent = false;
        self.initiations_unannounced = false;
        self.announced = false;
        let mut events = std::mem::take(&mut self.waiting);
        events.extend(self.initiations.drain(..max_initiations.min(self.initiations.len())));
        (events, std::mem::take(&mut self.changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_wakeups_for_timer_reports_is_limited() {
        let mut queue = EventQueue::default();
        for _ in 0..8 {
            queue.mark_urgent();
            assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
            queue.drain(MAX_DATAGRAMS);
        }
        queue.mark_urgent();
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Later(0.1));
        assert_eq!(queue.next_wakeup(1000.05), Wakeup::Nothing, "a wake-up is scheduled already");
        queue.wakeup_due();
        assert_eq!(queue.next_wakeup(1000.1), Wakeup::Now);
    }

    #[test]
    fn a_wakeup_for_an_event_is_never_delayed() {
        let mut queue = EventQueue::default();
        for peer in 0..20 {
            queue.post(Event::HandshakeNeeded { peer });
            assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
            assert_eq!(queue.next_wakeup(1000.0), Wakeup::Nothing, "the tunnel was called already");
            assert_eq!(queue.drain(MAX_DATAGRAMS).0.len(), 1);
        }
    }

    #[test]
    fn of_initiations_without_mac2_only_the_first_wakes_the_tunnel() {
        let mut queue = EventQueue::default();
        let initiation = {
            let mut initiation = [0; 148];
            initiation[0] = 1;
            initiation
        };
        let from = "192.0.2.1:1".parse().unwrap();
        for _ in 0..MAX_WAITING_INITIATIONS {
            assert!(queue.post_datagram(&initiation, from, None));
        }
        assert!(!queue.post_datagram(&initiation, from, None), "their queue is full");
        assert!(queue.post_datagram(&initiation[..92], from, None), "the limit is not that of other datagrams");
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
        assert_eq!(queue.drain(64).0.len(), 1 + 64);
        assert!(queue.post_datagram(&initiation, from, None));
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Nothing, "the tunnel polls for the rest");
        assert_eq!(queue.waiting_initiations(), MAX_WAITING_INITIATIONS - 63);
        queue.drain(MAX_DATAGRAMS);
        assert!(queue.post_datagram(&initiation, from, None));
        assert_eq!(queue.next_wakeup(1000.0), Wakeup::Now);
    }
}
