use super::*;
use crate::test_packets::{ACK, Flow, PSH, has_valid_checksums};
use proptest::prelude::*;

const FIN_PSH_CWR: u8 = 0x89;

fn segment(header: &virtio_net::Header, frame: &[u8]) -> Result<Vec<Vec<u8>>, BadOffload> {
    let segmentation = Segmentation::new(header, frame)?;
    Ok((0..segmentation.count())
        .map(|index| {
            let mut packet = vec![0xaa; segmentation.packet_length(index)];
            segmentation.write(index, frame, &mut packet);
            packet
        })
        .collect())
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn a_tcp_superpacket_is_segmented_with_correct_headers() {
    for v6 in [false, true] {
        let flow = Flow { v6, port: 1 };
        let data = payload(2500);
        let whole = flow.tcp(0xffff_ff00, ACK | FIN_PSH_CWR, &data);
        let (header, frame) = flow.superpacket(whole, TCP, 1000);
        let segments = segment(&header, &frame).expect("a superpacket");
        let expected = [
            flow.tcp(0xffff_ff00, ACK | 0x80, &data[..1000]),
            flow.tcp(0xffff_ff00u32.wrapping_add(1000), ACK, &data[1000..2000]),
            flow.tcp(0xffff_ff00u32.wrapping_add(2000), ACK | 0x09, &data[2000..]),
        ];
        for (index, (mut segment, mut expected_segment)) in segments.into_iter().zip(expected).enumerate() {
            assert!(has_valid_checksums(&segment), "{v6} {index}");
            if !v6 {
                assert_eq!(segment[4..6], 0xff00u16.wrapping_add(index as u16).to_be_bytes(), "identification");
                for packet in [&mut segment, &mut expected_segment] {
                    packet[4..6].fill(0);
                    packet[10..12].fill(0);
                }
            }
            assert_eq!(segment, expected_segment, "{v6} {index}");
        }
    }
}

#[test]
fn a_udp_superpacket_is_segmented_into_its_datagrams() {
    for v6 in [false, true] {
        let flow = Flow { v6, port: 1 };
        let data = payload(450);
        let (header, frame) = flow.superpacket(flow.udp(7, &data), UDP, 200);
        let expected = [flow.udp(7, &data[..200]), flow.udp(8, &data[200..400]), flow.udp(9, &data[400..])];
        assert_eq!(segment(&header, &frame), Ok(expected.to_vec()));
    }
}

#[test]
fn a_payload_of_an_exact_multiple_has_no_empty_last_segment() {
    let flow = Flow { v6: false, port: 1 };
    let (header, frame) = flow.superpacket(flow.tcp(1, ACK, &payload(3000)), TCP, 1000);
    assert_eq!(
        Segmentation::new(&header, &frame).map(|segmentation| (segmentation.count(), segmentation.packet_length(2))),
        Ok((3, 1052))
    );
}

#[test]
fn a_partial_checksum_is_completed() {
    let flow = Flow { v6: true, port: 1 };
    let whole = flow.udp(0, b"odd number of bytes");
    let (header, frame) = flow.superpacket(whole.clone(), UDP, 100);
    let header = virtio_net::Header { gso_type: virtio_net::GSO_NONE, gso_size: 0, ..header };
    assert_eq!(segment(&header, &frame), Ok(vec![whole]));
}

#[test]
fn a_packet_without_offload_passes_unchanged() {
    let frame = payload(77);
    assert_eq!(segment(&virtio_net::Header::default(), &frame), Ok(vec![frame]));
}

#[test]
fn a_frame_that_contradicts_its_header_is_refused() {
    let flow = Flow { v6: false, port: 1 };
    let (good, frame) = flow.superpacket(flow.tcp(1, ACK, &payload(3000)), TCP, 1000);
    let bad = [
        virtio_net::Header { gso_size: 0, ..good },
        virtio_net::Header { gso_size: 1, ..good },
        virtio_net::Header { flags: 0, ..good },
        virtio_net::Header { gso_type: 3, ..good },
        virtio_net::Header { gso_type: virtio_net::GSO_TCPV6, ..good },
        virtio_net::Header { gso_type: virtio_net::GSO_UDP_L4, ..good },
        virtio_net::Header { csum_start: 24, ..good },
        virtio_net::Header { csum_start: 65000, ..good },
        virtio_net::Header { csum_offset: 6, ..good },
        virtio_net::Header { gso_type: virtio_net::GSO_NONE, csum_start: 3050, ..good },
        virtio_net::Header { gso_type: virtio_net::GSO_NONE, csum_start: 8, ..good },
    ];
    for header in bad {
        assert_eq!(segment(&header, &frame), Err(BadOffload), "{header:?}");
    }
    assert!(segment(&virtio_net::Header { gso_type: good.gso_type | virtio_net::GSO_ECN, ..good }, &frame).is_ok());
    assert_eq!(segment(&good, &frame[..frame.len() - 1]), Err(BadOffload), "the length field differs");
    let (header, empty) = flow.superpacket(flow.tcp(1, ACK, &[]), TCP, 1000);
    assert_eq!(segment(&header, &empty), Err(BadOffload), "no payload");
}

proptest! {
    #[test]
    fn a_random_header_never_causes_a_panic_or_a_longer_packet(
        bytes in any::<[u8; virtio_net::LEN]>(),
        kind in prop::sample::select(vec![0u8, 1, 4, 5, 0x81]),
        frame in prop::collection::vec(any::<u8>(), 40..400),
        plausible in any::<bool>(),
    ) {
        let mut header = virtio_net::Header::parse(&bytes);
        header.gso_type = kind;
        let mut frame = frame;
        if plausible {
            header.flags = virtio_net::NEEDS_CSUM;
            header.gso_size %= 300;
            header.csum_start = if kind == 4 { 40 } else { 20 };
            header.csum_offset = if kind == 5 { 6 } else { 16 };
            frame[0] = if kind == 4 { 0x60 } else { 0x45 };
            let length = frame.len() as u16;
            frame[2..4].copy_from_slice(&length.to_be_bytes());
            frame[6..8].fill(if kind == 4 { TCP } else { 0 });
            if kind == 4 {
                frame[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            } else {
                frame[9] = if kind == 5 { UDP } else { TCP };
            }
        }
        prop_assume!(packet::is_ip(&frame));
        if let Ok(packets) = segment(&header, &frame) {
            prop_assert!(packets.iter().all(|packet| packet.len() <= frame.len()));
        }
    }

    #[test]
    fn segments_hold_the_payload_once_and_in_order(v6 in any::<bool>(), length in 1usize..9000, size in 48u16..2000) {
        let flow = Flow { v6, port: 9 };
        let data = payload(length);
        let (header, frame) = flow.superpacket(flow.tcp(5, ACK | PSH, &data), TCP, size);
        let segments = segment(&header, &frame).expect("a superpacket");
        prop_assert!(segments.iter().all(|segment| has_valid_checksums(segment)));
        let skip = flow.transport() + 32;
        let joined: Vec<u8> = segments.iter().flat_map(|segment| segment[skip..].to_vec()).collect();
        prop_assert_eq!(joined, data);
    }
}
