use super::*;
use crate::segmentation::Segmentation;
use crate::test_packets::{ACK, Flow, PSH, has_valid_checksums};
use proptest::prelude::*;

const V4: Flow = Flow { v6: false, port: 1 };
const V6: Flow = Flow { v6: true, port: 2 };

/// Coalesce these packets and return the frames: (virtio-net header, IP packet).
fn coalesce(packets: &[Vec<u8>]) -> Vec<(virtio_net::Header, Vec<u8>)> {
    let mut coalescer = Coalescer::new(true, true);
    let arena = packets.concat();
    let mut at = 0;
    for packet in packets {
        coalescer.push(&arena, at, packet.len());
        at += packet.len();
    }
    let frames = coalescer.outputs().map(|output| frame(&arena, &output)).collect();
    coalescer.clear();
    assert_eq!(coalescer.outputs().len(), 0);
    frames
}

/// Return an output as the TUN would get it.
fn frame(arena: &[u8], output: &Output<'_>) -> (virtio_net::Header, Vec<u8>) {
    let mut header = [0; HEADER_ROOM];
    let length = output.write_header(arena, &mut header);
    let mut packet = header[virtio_net::LEN..length].to_vec();
    for slice in output.slices(arena) {
        packet.extend_from_slice(&slice);
    }
    (virtio_net::Header::parse(header.first_chunk().expect("its header")), packet)
}

/// Return the number of packets in each frame.
fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesce(packets).iter().map(|(header, frame)| Segmentation::new(header, frame).expect("a frame").count()).collect()
}

/// Segment frames into packets again.
fn segment(frames: &[(virtio_net::Header, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (header, frame) in frames {
        let segmentation = Segmentation::new(header, frame).expect("a valid frame");
        for index in 0..segmentation.count() {
            let mut packet = vec![0; segmentation.packet_length(index)];
            segmentation.write(index, frame, &mut packet);
            packets.push(packet);
        }
    }
    packets
}

#[test]
fn successive_packets_of_a_flow_are_coalesced() {
    for flow in [V4, V6] {
        let packets = [flow.tcp(1, ACK, &[1; 100]), flow.tcp(101, ACK, &[2; 100]), flow.tcp(201, ACK | PSH, &[3; 7])];
        assert_eq!(counts(&packets), [3]);
        let frames = coalesce(&packets);
        assert_eq!(frames[0].0.gso_size, 100);
        assert_eq!(frames[0].0.flags, virtio_net::NEEDS_CSUM);
        assert!(segment(&frames).iter().all(|packet| has_valid_checksums(packet)));
    }
}

#[test]
fn interleaved_flows_are_coalesced_separately() {
    let mut packets = Vec::new();
    for step in 0..20 {
        for port in 0..16 {
            packets.push(Flow { v6: false, port }.tcp(1 + step * 100, ACK, &[0; 100]));
        }
    }
    assert_eq!(counts(&packets), [20; 16]);
}

#[test]
fn datagrams_of_equal_size_are_coalesced_and_a_shorter_one_is_the_last() {
    let packets = [V4.udp(1, &[1; 60]), V4.udp(2, &[2; 60]), V4.udp(3, &[3; 50]), V4.udp(4, &[4; 50])];
    assert_eq!(counts(&packets), [3, 1]);
    assert_eq!(segment(&coalesce(&packets)), packets);
}

#[test]
fn a_packet_that_differs_starts_a_new_frame() {
    let first = V4.tcp(1, ACK, &[0; 100]);
    let gap = V4.tcp(102, ACK, &[0; 100]);
    let longer = V4.tcp(101, ACK, &[0; 101]);
    let foreign = Flow { port: 7, ..V4 }.tcp(101, ACK, &[0; 100]);
    let mut other_ecn = V4.tcp(101, ACK, &[0; 100]);
    packet::set_ecn(&mut other_ecn, packet::CE);
    let mut broken = V4.tcp(101, ACK, &[0; 100]);
    broken[60] ^= 1;
    let mut broken_ip = V4.tcp(101, ACK, &[0; 100]);
    broken_ip[10] ^= 1;
    for second in [gap, longer, foreign, other_ecn, broken, broken_ip, V4.tcp(101, 0x11, &[0; 100])] {
        assert_eq!(counts(&[first.clone(), second]), [1, 1]);
    }
}

#[test]
fn psh_or_a_shorter_packet_closes_the_frame() {
    assert_eq!(counts(&[V4.tcp(1, ACK | PSH, &[0; 9]), V4.tcp(10, ACK, &[0; 9])]), [1, 1]);
    let packets = [V4.tcp(1, ACK, &[0; 9]), V4.tcp(10, ACK, &[0; 5]), V4.tcp(15, ACK, &[0; 5])];
    assert_eq!(counts(&packets), [2, 1]);
}

#[test]
fn a_pure_ack_is_not_overtaken() {
    let packets = [V4.tcp(1, ACK, &[0; 9]), V4.tcp(10, ACK, &[]), V4.tcp(10, ACK, &[0; 9])];
    assert_eq!(coalesce(&packets).into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), packets);
}

#[test]
fn a_fragment_closes_the_frames_of_all_flows() {
    let mut fragment = V4.udp(9, &[0; 30]);
    fragment[6] = 0x20;
    let packets = [V4.tcp(1, ACK, &[0; 9]), fragment, V4.tcp(10, ACK, &[0; 9])];
    assert_eq!(counts(&packets), [1, 1, 1]);
}

#[test]
fn without_df_only_consecutive_identifications_are_coalesced() {
    let clear_df = |mut packet: Vec<u8>| {
        packet[6] = 0;
        packet[10..12].fill(0);
        let field = checksum::finish(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&field);
        packet
    };
    let [one, two, four] = [1, 2, 4].map(|id| clear_df(V4.udp(id, &[0; 30])));
    assert_eq!(counts(&[one.clone(), two]), [2]);
    assert_eq!(counts(&[one, four]), [1, 1]);
}

#[test]
fn superpackets_have_at_most_64_packets_and_64_kib() {
    let many: Vec<_> = (0..130).map(|n| V4.udp(n, &[0; 10])).collect();
    assert_eq!(counts(&many), [64, 64, 2]);
    let large: Vec<_> = (0..60).map(|n| V4.tcp(n * 1400, ACK, &[0; 1400])).collect();
    assert_eq!(counts(&large), [46, 14], "64 KiB");
}

#[test]
fn datagrams_without_checksum_are_not_coalesced() {
    let mut packets = [V4.udp(1, &[1; 60]), V4.udp(2, &[2; 60])];
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(counts(&packets), [1, 1]);
}

fn one_packet() -> impl Strategy<Value = (u16, bool, u8, u8, bool)> {
    (0u16..4, any::<bool>(), 0u8..4, prop::sample::select(vec![ACK, ACK, ACK, ACK | PSH, 0x11]), any::<bool>())
}

proptest! {
    /// Segmented again, superpackets give the same packets, in order within each flow.
    #[test]
    fn coalescing_loses_changes_and_reorders_no_packet_of_a_flow(steps in prop::collection::vec(one_packet(), 1..120), sizes in any::<u64>()) {
        let mut sequence = [1u32; 4];
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for (n, (port, udp, kind, flags, v6)) in steps.into_iter().enumerate() {
            let flow = Flow { v6: v6 && port > 1, port };
            let size = [0usize, 20, 20, 33][usize::from(kind)] + usize::from(sizes >> (n % 60) & 15 == 0);
            let data: Vec<u8> = (0..size).map(|at| (at + n) as u8).collect();
            sent.push(if udp {
                flow.udp(n as u16, &data)
            } else {
                let at = &mut sequence[usize::from(port)];
                let packet = flow.tcp(*at, flags, &data);
                *at = at.wrapping_add(size as u32);
                packet
            });
        }
        let got = segment(&coalesce(&sent));
        prop_assert_eq!(got.len(), sent.len());
        let key = |packet: &[u8]| {
            let at = if packet::is_v6(packet) { 40 } else { 20 };
            (packet[0], packet[if at == 40 { 6 } else { 9 }], packet[at..at + 4].to_vec())
        };
        let clear_id = |mut packet: Vec<u8>| {
            // With DF set the identification has no meaning, and segmentation assigns new ones (RFC 6864 §4.1).
            if !packet::is_v6(&packet) {
                packet[4..6].fill(0);
                packet[10..12].fill(0);
            }
            packet
        };
        for one in &sent {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                all.iter().filter(|other| key(other) == key(one)).cloned().map(clear_id).collect()
            };
            prop_assert_eq!(of(&got), of(&sent));
        }
    }

    #[test]
    fn random_packets_pass_unchanged(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 40..90), 1..20)) {
        let packets: Vec<_> = packets
            .into_iter()
            .map(|mut packet| {
                packet[0] = if packet[0] & 1 == 0 { 0x45 } else { 0x60 };
                let length = packet.len() as u16;
                if packet[0] == 0x45 { packet[2..4].copy_from_slice(&length.to_be_bytes()) }
                else { packet[4..6].copy_from_slice(&(length - 40).to_be_bytes()) }
                let at = if packet[0] == 0x45 { 9 } else { 6 };
                packet[at] = if packet[at] & 1 == 0 { TCP } else { UDP };
                packet
            })
            .collect();
        let frames: Vec<_> = coalesce(&packets).into_iter().map(|(_, packet)| packet).collect();
        prop_assert_eq!(frames, packets);
    }
}
