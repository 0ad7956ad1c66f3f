"""The native body on a kernel that refuses superpackets on the TUN, as Linux 6.6.44 did, or io_uring.

A seccomp filter (seccomp(2)) on one thread simulates such a kernel. The body writes a superpacket with three or
more iovecs and a single packet with two, so the filter answers writev of more than two with EINVAL. Descriptors and
body are real.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import platform
import struct
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from dataplane.packets import apart, superpacket, tcp, udp
from dataplane.rig import two

from ravenvpn import dataplane

pytestmark = [
    pytest.mark.skipif(bool(dataplane.native_absence()), reason="THE NATIVE BODY IS NOT BUILT"),
    pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="NO NUMBER OF WRITEV KNOWN HERE"),
]

WRITEV = {"x86_64": 20, "aarch64": 66}
IO_URING_SETUP, IO_URING_ENTER = 425, 426
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, IF_EQUAL, IF_GREATER, RETURN = 0x20, 0x15, 0x25, 0x06  # BPF, linux/bpf_common.h
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
NUMBER, THIRD_ARGUMENT = 0, 32  # offsets in struct seccomp_data


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
SUPERPACKETS: tuple[Instruction, ...] = (
    (LOAD, 0, 0, NUMBER),
    (IF_EQUAL, 0, 3, WRITEV.get(platform.machine(), 0)),  # the tests are skipped on other machines
    (LOAD, 0, 0, THIRD_ARGUMENT),
    (IF_GREATER, 0, 1, 2),
    (RETURN, 0, 0, ERRNO | errno.EINVAL),
    (RETURN, 0, 0, ALLOW),
)


def forbid(number: int) -> tuple[Instruction, ...]:
    """Return a filter that answers this system call with EPERM."""
    return (
        (LOAD, 0, 0, NUMBER),
        (IF_EQUAL, 0, 1, number),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    )


def refuse(instructions: tuple[Instruction, ...]) -> None:
    """Install the filter for the rest of this thread's life."""
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0)):
        if libc.prctl(*arguments):
            pytest.skip(f"SECCOMP IS NOT AVAILABLE: {errno.errorcode[ctypes.get_errno()]}")


def under_refusal(instructions: tuple[Instruction, ...], scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the scene in a thread of its own, because the filter can not be removed."""

    def run() -> None:
        refuse(instructions)
        asyncio.run(scene())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


def frame_of(protocol: str) -> bytes:
    """Return a superpacket of 20 packets with 1000 bytes of payload each."""
    if protocol == "tcp":
        return superpacket(tcp("10.1.0.1", "10.2.0.1", bytes(20 * 1000)), 1000, hdr_len=40)
    return superpacket(udp("fd01::1", "fd02::1", bytes(20 * 1000)), 1000, hdr_len=48)


@pytest.mark.parametrize(("protocol", "given_up"), [("tcp", "tun_gro"), ("udp", "tun_gro_udp")])
def test_refused_coalescing_is_switched_off_without_loss(protocol, given_up):
    frame = frame_of(protocol)

    async def scene() -> None:
        async with two("native") as pair:
            await pair.connect()
            for turn in range(1, 5):
                pair.alice.wire.send(frame)
                await pair.settle()
                assert pair.bob.frames() == [bytes(10) + packet for packet in apart(frame)], turn
                assert getattr(pair.bob.plane.offloads(), given_up) == (turn < 3)
            assert pair.bob.counters.fallbacks == {given_up: 1}
            assert pair.bob.drops() == {}

    under_refusal(SUPERPACKETS, scene)


def test_the_filter_passes_single_packets():
    async def scene() -> None:
        async with two("native") as pair:
            await pair.connect()
            packet = udp("10.1.0.1", "10.2.0.1", b"alone")
            pair.alice.put(packet)
            await pair.settle()
            assert pair.bob.packets() == [packet]
            assert pair.bob.counters.fallbacks == {}

    under_refusal(SUPERPACKETS, scene)


@pytest.mark.parametrize("refused", [IO_URING_SETUP, IO_URING_ENTER], ids=["setup", "enter"])
def test_without_io_uring_frames_are_written_one_by_one(refused):
    async def scene() -> None:
        async with two("native") as pair:
            await pair.connect()
            packets = [udp("10.1.0.1", "10.2.0.1", bytes([flow] * 100), ports=(flow, 80)) for flow in range(16)]
            for turn in range(2):
                before = pair.bob.counters.tun_writes
                for packet in packets:
                    pair.alice.put(packet)
                await pair.settle()
                assert pair.bob.packets() == packets
                assert pair.bob.counters.tun_writes - before >= 16, turn
            assert not pair.bob.plane.offloads().tun_batch
            assert pair.bob.drops() == {}

    under_refusal(forbid(refused), scene)
