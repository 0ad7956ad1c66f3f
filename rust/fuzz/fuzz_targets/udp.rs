//! Fuzz target: datagrams from strangers, and messages from an authenticated peer with any content. Every frame
//! written to the TUN is well-formed and from an accepted source.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raven_dataplane::segmentation::Segmentation;
use raven_dataplane::{packet, virtio_net};
use raven_dataplane_fuzz::{Input, Rig};

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::default();
    let mut input = Input(data);
    while let Some(kind) = input.byte() {
        match kind & 7 {
            0 => {
                let datagram = input.piece().unwrap_or_default();
                let to = rig.ours.local_addr().expect("bound");
                let _ = rig.theirs.send_to(datagram, to);
            }
            1 => rig.now += f64::from(kind >> 3) * 8.0,
            2 => rig.new_session(),
            3 => {
                let counter = u64::from(kind >> 3) << input.byte().unwrap_or(0).min(59);
                rig.send_authentic(input.piece().unwrap_or_default(), counter);
            }
            4 => rig.pump(),
            _ => {
                // Bulk: repeated equal packets are candidates for coalescing.
                let inner = input.piece().unwrap_or_default();
                for _ in 0..=kind >> 4 {
                    rig.send_authentic(inner, rig.next_counter);
                    rig.next_counter += 1;
                }
            }
        }
    }
    rig.pump();
    for frame in rig.frames() {
        let (header, packet) = frame.split_first_chunk().expect("a virtio-net header");
        assert!(packet::length(packet) == Some(packet.len()), "the frame has another length than its header");
        let segmentation = Segmentation::new(&virtio_net::Header::parse(header), packet).expect("a valid frame");
        assert!((0..segmentation.count()).all(|index| segmentation.packet_length(index) <= packet.len()));
        let source = packet::source(packet).to_string();
        assert!(source.starts_with("10.1.") || source.starts_with("fd01:"), "{source} was not accepted");
    }
});
