//! The benchmark cases of the packet path. Each is a closure that does the work once and can be repeated.
//!
//! Both measurements use this list: time by Criterion, instructions under callgrind. The names are the keys of
//! `rust/instructions.json`.

use std::hint::black_box;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use raven_dataplane::aead::{Key, TAG};
use raven_dataplane::checksum::{finish, fold, pseudo_header, sum};
use raven_dataplane::coalesce::{Coalescer, HEADER_ROOM};
use raven_dataplane::prefixes::PrefixMap;
use raven_dataplane::replay::ReplayWindow;
use raven_dataplane::segmentation::Segmentation;
use raven_dataplane::{DataPlane, NewKeypair, Offloads, Prefix, Role, Suite, Timing, virtio_net};

/// Bytes of a full packet.
const MTU: usize = 1420;
/// Packets in a superpacket of 64 KiB.
const PACKETS: usize = 46;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A case that is set up.
pub struct Case {
    pub name: &'static str,
    /// Bytes processed by one run; 0 where throughput has no meaning.
    pub bytes: usize,
    pub run: Box<dyn FnMut()>,
}

fn case(name: &'static str, bytes: usize, run: impl FnMut() + 'static) -> Case {
    Case { name, bytes, run: Box::new(run) }
}

/// Sets up a case of this name.
pub type Make = fn(&'static str) -> Case;

/// All cases by name; `Make` sets one up.
pub const ALL: [(&str, Make); 18] = [
    ("seal/chacha/1420", |name| seal(name, Suite::ChaCha20Poly1305, MTU)),
    ("seal/chacha/64", |name| seal(name, Suite::ChaCha20Poly1305, 64)),
    ("seal/aes/1420", |name| seal(name, Suite::Aes256Gcm, MTU)),
    ("seal/aes/64", |name| seal(name, Suite::Aes256Gcm, 64)),
    ("open/chacha/1420", |name| open(name, Suite::ChaCha20Poly1305, MTU)),
    ("open/aes/1420", |name| open(name, Suite::Aes256Gcm, MTU)),
    ("split/tcp4/64k", |name| split(name, false, TCP)),
    ("split/tcp6/64k", |name| split(name, true, TCP)),
    ("split/udp4/64k", |name| split(name, false, UDP)),
    ("coalesce/tcp4/1-flow", |name| coalesce(name, false, TCP, 1)),
    ("coalesce/tcp4/16-flows", |name| coalesce(name, false, TCP, 16)),
    ("coalesce/tcp6/1-flow", |name| coalesce(name, true, TCP, 1)),
    ("coalesce/udp4/1-flow", |name| coalesce(name, false, UDP, 1)),
    ("lookup/v4/10000", |name| lookup(name, |n| IpAddr::V4((0x0a80_0000 + n * 16).into()), 28)),
    ("lookup/v6/10000", |name| lookup(name, |n| IpAddr::V6(((0xfd00 << 112) + (u128::from(n) << 64)).into()), 64)),
    ("replay/in-order", |name| replay(name)),
    ("journey/chacha/64k", |name| journey(name, Suite::ChaCha20Poly1305)),
    ("journey/aes/64k", |name| journey(name, Suite::Aes256Gcm)),
];

fn seal(name: &'static str, suite: Suite, length: usize) -> Case {
    let key = Key::new(suite, &[7; 32]);
    let mut buffer = vec![0x5a; length + TAG];
    let mut counter = 0;
    case(name, length, move || {
        counter += 1;
        key.seal(counter, black_box(&mut buffer));
    })
}

/// Includes a copy of the sealed message, which each run needs because opening is in place.
fn open(name: &'static str, suite: Suite, length: usize) -> Case {
    let key = Key::new(suite, &[7; 32]);
    let mut sealed = vec![0x5a; length + TAG];
    key.seal(1, &mut sealed);
    let mut buffer = sealed.clone();
    case(name, length, move || {
        buffer.copy_from_slice(black_box(&sealed));
        key.open(1, black_box(&mut buffer)).expect("it was sealed with this key");
    })
}

/// Return one packet of a flow with `size` bytes of payload and valid checksums.
fn packet(v6: bool, protocol: u8, port: u16, sequence: u32, size: usize) -> Vec<u8> {
    let mut transport = [port.to_be_bytes(), 5201u16.to_be_bytes()].concat();
    let (field, header) = if protocol == TCP {
        transport.extend(sequence.to_be_bytes());
        // Acknowledgement, offset 8 words, ACK, window, checksum, urgent pointer; two NOPs and timestamps.
        transport.extend([0, 0, 0, 9, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        (16, 32)
    } else {
        transport.extend((size as u16 + 8).to_be_bytes());
        transport.extend([0, 0]);
        (6, 8)
    };
    transport.resize(header + size, sequence as u8);
    let total = transport.len() as u16;
    let (mut ip, addresses) = if v6 {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([protocol, 64]);
        (ip, [[0xfd; 16], [0xfc; 16]].concat())
    } else {
        let mut ip = vec![0x45, 0];
        ip.extend((total + 20).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        (ip, vec![10, 77, 0, 1, 10, 77, 0, 2])
    };
    ip.extend(&addresses);
    if !v6 {
        let checksum = finish(sum(&ip));
        ip[10..12].copy_from_slice(&checksum);
    }
    let checksum = finish(pseudo_header(&addresses, protocol, transport.len()) + sum(&transport));
    transport[field..field + 2].copy_from_slice(&checksum);
    ip.extend(transport);
    ip
}

/// Return the payload bytes of a packet of MTU size.
fn payload(v6: bool, protocol: u8) -> usize {
    let headers = if v6 { 40 } else { 20 } + if protocol == TCP { 32 } else { 8 };
    MTU - headers
}

/// Return a frame as the TUN delivers it: virtio-net header, then one set of headers and the payload of `packets`
/// packets.
fn superpacket(v6: bool, protocol: u8, packets: usize) -> Vec<u8> {
    let size = payload(v6, protocol);
    let mut whole = packet(v6, protocol, 4000, 1, size * packets);
    let start = if v6 { 40 } else { 20 };
    let (gso_type, csum_offset) = match (protocol, v6) {
        (TCP, false) => (virtio_net::GSO_TCPV4, 16),
        (TCP, true) => (virtio_net::GSO_TCPV6, 16),
        _ => (virtio_net::GSO_UDP_L4, 6),
    };
    let addresses = if v6 { &whole[8..40] } else { &whole[12..20] };
    let seed = fold(pseudo_header(addresses, protocol, whole.len() - start)).to_ne_bytes();
    whole[start + csum_offset..start + csum_offset + 2].copy_from_slice(&seed);
    let header = virtio_net::Header {
        flags: virtio_net::NEEDS_CSUM,
        gso_type,
        hdr_len: 0,
        gso_size: size as u16,
        csum_start: start as u16,
        csum_offset: csum_offset as u16,
    };
    [&header.pack()[..], &whole].concat()
}

fn split(name: &'static str, v6: bool, protocol: u8) -> Case {
    let frame = superpacket(v6, protocol, PACKETS);
    let mut target = vec![0; MTU];
    case(name, frame.len(), move || {
        let (header, packet) = black_box(&frame[..]).split_first_chunk().expect("it has a header");
        let segmentation = Segmentation::new(&virtio_net::Header::parse(header), packet).expect("it is well made");
        for index in 0..segmentation.count() {
            segmentation.write(index, packet, black_box(&mut target));
        }
    })
}

fn coalesce(name: &'static str, v6: bool, protocol: u8, flows: usize) -> Case {
    let size = payload(v6, protocol);
    let mut arena = Vec::new();
    for index in 0..PACKETS {
        let (flow, step) = (index % flows, index / flows);
        arena.extend(packet(v6, protocol, 4000 + flow as u16, (step * size) as u32, size));
    }
    let mut coalescer = Coalescer::new(true, true);
    case(name, arena.len(), move || {
        let arena = black_box(&arena[..]);
        for at in (0..arena.len()).step_by(MTU) {
            coalescer.push(arena, at, MTU);
        }
        let mut header = [0; HEADER_ROOM];
        let mut joined = 0;
        for output in coalescer.outputs() {
            output.write_header(arena, &mut header);
            for slice in output.slices(arena) {
                black_box(slice);
                joined += 1;
            }
        }
        coalescer.clear();
        assert_eq!(joined, PACKETS);
    })
}

/// Look up a thousand addresses, spread over 10,000 prefixes.
fn lookup(name: &'static str, address: fn(u32) -> IpAddr, length: u8) -> Case {
    let mut map = PrefixMap::default();
    for number in 0..10_000 {
        map.insert(Prefix::new(address(number), length).expect("a prefix"), number);
    }
    let asked: Vec<IpAddr> = (0..1000).map(|n| address(n * 7919 % 10_000)).collect();
    case(name, 0, move || {
        for address in &asked {
            assert!(black_box(map.longest_match(black_box(*address))).is_some());
        }
    })
}

fn replay(name: &'static str) -> Case {
    let mut window = ReplayWindow::default();
    let mut counter = 0;
    case(name, 0, move || {
        for _ in 0..1000 {
            counter += 1;
            assert!(window.is_fresh(black_box(counter)) && window.mark(counter));
        }
    })
}

/// Both ends of a tunnel in one process: a superpacket enters one TUN and leaves the other, over loopback.
fn journey(name: &'static str, suite: Suite) -> Case {
    let frame = superpacket(false, TCP, PACKETS);
    let (mut near, mut far) = (End::new(), End::new());
    near.connect(&far, suite, Role::Initiator, [1, 2]);
    far.connect(&near, suite, Role::Responder, [2, 1]);
    let mut arrived = vec![0; 1 << 16];
    far.body.pump_udp(false, NOW); // key confirmation
    let mut ends = (near, far);
    case(name, frame.len(), move || {
        let (near, far) = &mut ends; // moved in whole, because they own the descriptors
        near.kernel_side.send(black_box(&frame)).expect("room for one frame");
        near.body.pump_tun(NOW);
        far.body.pump_udp(false, NOW);
        let length = far.kernel_side.recv(&mut arrived).expect("it arrived");
        assert_eq!(length, frame.len());
    })
}

/// The clock of both bodies, in seconds.
const NOW: f64 = 1000.0;

/// One end of the tunnel; keeps the descriptors of its body open.
struct End {
    body: DataPlane,
    kernel_side: UnixDatagram,
    _tun: UnixDatagram,
    socket: UdpSocket,
}

impl End {
    fn new() -> Self {
        let (kernel_side, tun) = UnixDatagram::pair().expect("a socket pair");
        for one in [&kernel_side, &tun] {
            one.set_nonblocking(true).expect("non-blocking");
        }
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
        socket.set_nonblocking(true).expect("non-blocking");
        let mut body = DataPlane::new(Some(tun.as_raw_fd()), Offloads::default(), Timing::default(), String::new());
        body.set_sockets(Some(socket.as_raw_fd()), None);
        body.set_mtu(MTU as u16);
        Self { body, kernel_side, _tun: tun, socket }
    }

    /// Add the other end as a peer that carries everything, and install a keypair.
    fn connect(&mut self, other: &Self, suite: Suite, role: Role, [local_index, remote_index]: [u32; 2]) {
        const PEER: u64 = 1;
        let everything = Prefix::new(IpAddr::from([0, 0, 0, 0]), 0).expect("a prefix");
        self.body.add_peer(PEER);
        self.body.set_endpoint(PEER, other.socket.local_addr().ok(), None).expect("a known peer");
        self.body.route(everything, &[PEER]).expect("a known peer");
        self.body.accept(PEER, &[everything], &[]).expect("a known peer");
        let key = |index: u32| [index as u8; 32];
        let keypair = NewKeypair {
            suite,
            role,
            local_index,
            remote_index,
            send_key: &key(local_index),
            receive_key: &key(remote_index),
            birth: NOW,
        };
        self.body.install_keypair(PEER, &keypair, NOW).expect("a free index");
    }
}
