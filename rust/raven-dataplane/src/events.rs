//! What the tunnel hears: as the events of `ravenvpn.dataplane.contract`.

use std::net::SocketAddr;

use crate::peer::{PeerId, Traffic};
use crate::sys::Source;

/// Datagrams waiting to be taken, as the Linux kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
pub const MAX_DATAGRAMS: usize = 4096;

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

/// Events in the order they happened, and whether the tunnel has to hear of them unasked.
#[derive(Default)]
pub struct Queue {
    waiting: Vec<Event>,
    datagrams: usize,
    inner: usize,
    /// Places of peers whose facts changed, in that order.
    moved: Vec<usize>,
    /// A timer may have to be armed.
    urgent: bool,
    /// The callback was made and nothing was taken since.
    announced: bool,
}

impl Queue {
    pub fn push(&mut self, event: Event) {
        self.waiting.push(event);
    }

    /// False if too many wait already.
    pub fn push_datagram(&mut self, data: &[u8], endpoint: SocketAddr, source: Option<Source>) -> bool {
        if self.datagrams >= MAX_DATAGRAMS {
            return false;
        }
        self.datagrams += 1;
        self.waiting.push(Event::Datagram { data: data.to_vec(), endpoint, source });
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
        self.urgent |= !self.moved.is_empty();
    }

    /// Whether to call back now: something waits, and that was not said yet.
    pub fn announce(&mut self) -> bool {
        let news = (self.urgent || !self.waiting.is_empty()) && !self.announced;
        self.announced |= news;
        news
    }

    /// Events so far, and whose facts changed.
    pub fn take(&mut self) -> (Vec<Event>, Vec<usize>) {
        self.datagrams = 0;
        self.inner = 0;
        self.urgent = false;
        self.announced = false;
        (std::mem::take(&mut self.waiting), std::mem::take(&mut self.moved))
    }
}
