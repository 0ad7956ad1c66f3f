//! Fuzz target: packets that are coalesced and segmented again are the same packets, whatever their content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use raven_dataplane::coalesce::{Coalescer, HEADER_ROOM};
use raven_dataplane::segmentation::Segmentation;
use raven_dataplane::{checksum, packet, virtio_net};
use raven_dataplane_fuzz::Input;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut arena = Vec::new();
    let mut handles = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    while let Some(kind) = input.byte() {
        // Either a new packet from the input, or the last one with an advanced sequence number and up to three bytes
        // changed.
        let mut packet = if kind & 1 == 0 { input.piece().unwrap_or_default().to_vec() } else { last.clone() };
        if kind & 1 == 1 {
            advance_sequence(&mut packet);
            for _ in 0..(kind >> 1 & 3) {
                let at = usize::from(input.byte().unwrap_or(0));
                let value = input.byte().unwrap_or(0);
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
        }
        if kind & 8 == 0 {
            fix_lengths_and_checksums(&mut packet);
        }
        let Some(length) = packet::length(&packet).filter(|_| arena.len() < 200_000) else { continue };
        packet.truncate(length);
        handles.push((arena.len(), length));
        arena.extend_from_slice(&packet);
        last = packet;
    }
    let mut coalescer = Coalescer::new(true, true);
    for (at, length) in &handles {
        coalescer.push(&arena, *at, *length);
    }
    let mut seen = 0;
    for output in coalescer.outputs() {
        seen += output.count();
        if output.count() > 1 {
            check_superpacket(&arena, &output);
        }
    }
    assert_eq!(seen, handles.len());
});

/// Segment an output again and compare the packets with those in the arena.
fn check_superpacket(arena: &[u8], output: &raven_dataplane::coalesce::Output<'_>) {
    let mut header = [0; HEADER_ROOM];
    let length = output.write_header(arena, &mut header);
    let mut frame = header[virtio_net::LEN..length].to_vec();
    for slice in output.slices(arena) {
        frame.extend_from_slice(&slice);
    }
    let virtio = virtio_net::Header::parse(header.first_chunk().expect("a virtio-net header"));
    let segmentation = Segmentation::new(&virtio, &frame).expect("a valid frame");
    assert_eq!(segmentation.count(), output.count());
    for (index, (at, length)) in output.packets().enumerate() {
        let mut segment = vec![0; segmentation.packet_length(index)];
        segmentation.write(index, &frame, &mut segment);
        let mut original = arena[at..at + length].to_vec();
        for packet in [&mut segment, &mut original] {
            if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
                packet[4..6].fill(0); // with DF set the identification has no meaning
                packet[10..12].fill(0);
            }
        }
        // Zero and all ones are the same sum: segmentation stores one of them, and the input may have the other.
        let field = usize::from(virtio.csum_start + virtio.csum_offset);
        for packet in [&mut segment, &mut original] {
            if packet[field..field + 2] == [0, 0] {
                packet[field..field + 2].fill(0xff);
            }
        }
        assert_eq!(segment, original);
    }
}

/// Advance the sequence number by the payload: the next packet of the TCP flow.
fn advance_sequence(packet: &mut [u8]) {
    let at = match packet.first() {
        Some(first) if first >> 4 == 4 && packet.len() >= 40 => 20,
        Some(first) if first >> 4 == 6 && packet.len() >= 60 => 40,
        _ => return,
    };
    let header = at + usize::from(packet[at + 12] >> 4) * 4;
    let payload = packet.len().saturating_sub(header) as u32;
    let sequence = u32::from_be_bytes([packet[at + 4], packet[at + 5], packet[at + 6], packet[at + 7]]);
    packet[at + 4..at + 8].copy_from_slice(&sequence.wrapping_add(payload).to_be_bytes());
}

/// Set correct length fields and checksums.
fn fix_lengths_and_checksums(packet: &mut [u8]) {
    let length = packet.len();
    let (at, protocol) = match packet.first() {
        Some(first) if first >> 4 == 4 && length >= 40 => {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[10..12].fill(0);
            let field = checksum::finish(checksum::sum(&packet[..20]));
            packet[10..12].copy_from_slice(&field);
            (20, packet[9])
        }
        Some(first) if first >> 4 == 6 && length >= 60 => {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            (40, packet[6])
        }
        _ => return,
    };
    let field = if protocol == 17 {
        packet[at + 4..at + 6].copy_from_slice(&((length - at) as u16).to_be_bytes());
        at + 6
    } else {
        at + 16
    };
    packet[field..field + 2].fill(0);
    let addresses = if at == 20 { 12..20 } else { 8..40 };
    let pseudo = checksum::pseudo_header(&packet[addresses], protocol, length - at);
    let value = checksum::finish(pseudo + checksum::sum(&packet[at..]));
    packet[field..field + 2].copy_from_slice(&value);
}
