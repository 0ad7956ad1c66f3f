//! Fuzz target: frames from the TUN with any content. Every message that leaves can be opened, and counters are
//! consecutive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raven_dataplane::virtio_net;
use raven_dataplane_fuzz::{Input, Rig};

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::default();
    let mut input = Input(data);
    while let Some(kind) = input.byte() {
        let Some(piece) = input.piece() else { break };
        let mut frame = piece.to_vec();
        for _ in 0..kind >> 5 {
            frame.extend_from_slice(piece.get(virtio_net::LEN..).unwrap_or_default()); // longer than a piece of input
        }
        if kind & 1 == 1 && frame.len() > virtio_net::LEN + 40 {
            make_plausible(&mut frame, kind);
        }
        let _ = rig.wire.send(&frame);
        if kind & 16 == 0 {
            rig.pump();
        }
    }
    rig.pump();
    let mut expected = None;
    for (counter, _) in rig.received() {
        assert!(expected.is_none_or(|last| counter == last + 1), "{counter} after {expected:?}");
        expected = Some(counter);
    }
});

/// Set lengths and addresses with which a frame passes the first checks.
fn make_plausible(frame: &mut [u8], kind: u8) {
    let (header, packet) = frame.split_at_mut(virtio_net::LEN);
    let length = packet.len() as u16;
    let udp = kind & 2 != 0;
    let v6 = kind & 4 != 0;
    let protocol = if udp { 17 } else { 6 };
    if v6 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        packet[6] = protocol;
        packet[24..32].copy_from_slice(&[0xfd, 1, 0, 0, 0, 0, 0, 0]);
    } else {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[6..8].fill(0);
        packet[9] = protocol;
        packet[16..18].copy_from_slice(&[10, 1]);
    }
    let gso_type = match (udp, v6) {
        (true, _) => virtio_net::GSO_UDP_L4,
        (false, true) => virtio_net::GSO_TCPV6,
        (false, false) => virtio_net::GSO_TCPV4,
    };
    let virtio = virtio_net::Header {
        flags: virtio_net::NEEDS_CSUM,
        gso_type: if kind & 8 == 0 { gso_type } else { virtio_net::GSO_NONE },
        hdr_len: 0,
        gso_size: u16::from(header[4]),
        csum_start: if v6 { 40 } else { 20 },
        csum_offset: if udp { 6 } else { 16 },
    };
    header.copy_from_slice(&virtio.pack());
}
