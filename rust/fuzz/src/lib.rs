//! The rig of the fuzz targets: a body on real descriptors, and one peer whose keys the fuzzer has, so that it can
//! send any content, authenticated or not.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use raven_dataplane::aead::{Key, TAG};
use raven_dataplane::{DataPlane, NewKeypair, Offloads, Prefix, Role, Suite, Timing, wire};

/// Id of the peer.
pub const PEER: u64 = 1;
/// Local index of the keypair.
pub const OUR_INDEX: u32 = 0x0101_0101;
/// Remote index of the keypair.
pub const THEIR_INDEX: u32 = 0x0202_0202;

/// A body with a TUN (a socket pair), a UDP socket on loopback, and one peer.
pub struct Rig {
    pub body: DataPlane,
    /// The kernel's side of the TUN.
    pub wire: UnixDatagram,
    _inside: UnixDatagram,
    /// The body's socket.
    pub ours: UdpSocket,
    /// The peer's socket.
    pub theirs: UdpSocket,
    send: Key,
    receive: Key,
    /// Counter for messages in sequence.
    pub next_counter: u64,
    /// The body's clock, in seconds.
    pub now: f64,
}

/// Return a non-blocking UDP socket on loopback.
fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

impl Default for Rig {
    fn default() -> Self {
        let (wire, inside) = UnixDatagram::pair().expect("a socket pair");
        for one in [&wire, &inside] {
            one.set_nonblocking(true).expect("non-blocking");
        }
        let (ours, theirs) = (socket(), socket());
        let mut body = DataPlane::new(Some(inside.as_raw_fd()), Offloads::default(), Timing::default(), String::new());
        body.set_sockets(Some(ours.as_raw_fd()), None);
        body.set_mtu(1420);
        body.set_own_address("fd00::1".parse().ok(), 10277);
        body.add_peer(PEER);
        let there = theirs.local_addr().ok();
        body.set_endpoint(PEER, there, None).expect("a known peer");
        for (address, length) in [("10.1.0.0", 16), ("fd01::", 64)] {
            let address: IpAddr = address.parse().expect("an address");
            let prefix = Prefix::new(address, length).expect("a prefix");
            body.route(prefix, &[PEER]).expect("a known peer");
            body.accept(PEER, &[prefix], &[]).expect("a known peer");
        }
        let mut rig = Self {
            body,
            wire,
            _inside: inside,
            ours,
            theirs,
            send: Key::new(Suite::ChaCha20Poly1305, &[1; 32]),
            receive: Key::new(Suite::ChaCha20Poly1305, &[2; 32]),
            next_counter: 0,
            now: 1000.0,
        };
        rig.new_session();
        rig
    }
}

impl Rig {
    /// Install the same keys again, with counters from zero.
    pub fn new_session(&mut self) {
        let keypair = NewKeypair {
            suite: Suite::ChaCha20Poly1305,
            role: Role::Initiator,
            local_index: OUR_INDEX,
            remote_index: THEIR_INDEX,
            send_key: &[2; 32],
            receive_key: &[1; 32],
            birth: self.now,
        };
        let _ = self.body.drop_keypairs(PEER);
        let _ = self.body.install_keypair(PEER, &keypair, self.now);
        self.next_counter = 0;
    }

    /// Send an authenticated message with this inner packet to the body.
    pub fn send_authentic(&mut self, inner: &[u8], counter: u64) {
        let mut datagram = wire::pack(OUR_INDEX, counter).to_vec();
        datagram.extend_from_slice(inner);
        datagram.extend_from_slice(&[0; TAG]);
        self.send.seal(counter, &mut datagram[wire::HEADER..]);
        let to = self.ours.local_addr().expect("bound");
        let _ = self.theirs.send_to(&datagram, to);
    }

    /// Pump both directions once and discard the events.
    pub fn pump(&mut self) {
        self.body.pump_udp(false, self.now);
        self.body.pump_tun(self.now);
        self.body.drain_events(usize::MAX);
    }

    /// Return the frames that were written to the TUN.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        std::iter::from_fn(|| self.wire.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
    }

    /// Return counter and plaintext of every message that reached the peer.
    ///
    /// # Panics
    /// If one is no transport message or does not open.
    pub fn received(&self) -> Vec<(u64, Vec<u8>)> {
        let mut buffer = vec![0; 70_000];
        std::iter::from_fn(|| self.theirs.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
            .map(|mut datagram| {
                let wire::Message::Transport { receiver, counter } = wire::parse(&datagram) else {
                    panic!("not a transport message: {datagram:?}");
                };
                assert_eq!(receiver, THEIR_INDEX);
                self.receive.open(counter, &mut datagram[wire::HEADER..]).expect("we sealed it");
                (counter, datagram[wire::HEADER..datagram.len() - TAG].to_vec())
            })
            .collect()
    }
}

/// Takes pieces from the front of the fuzzer's input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Take one byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Take up to 510 bytes: twice the value of the next byte.
    pub fn piece(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?) * 2;
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some(piece)
    }
}
