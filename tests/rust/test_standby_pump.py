"""The standby pump: packets of the native body are handled while Python blocks the event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator

import pytest
from dataplane.packets import udp
from dataplane.rig import BOB, End, Eve, keypairs

from ravenvpn import dataplane

pytestmark = pytest.mark.skipif(bool(dataplane.native_absence()), reason="THE NATIVE BODY IS NOT BUILT")

PACKET = udp("10.1.0.1", "10.2.0.1", b"on the way")
BLOCKED = 1.0  # seconds


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, Eve]]:
    """A body on the real clock, because only such a body has a standby pump, and a peer that records its packets."""
    with Eve(host="127.0.0.1") as eve:
        end = End("native", dataplane.boottime)
        try:
            end.knows(BOB, eve.endpoint)
            end.start()
            end.plane.install_keypair(BOB, keypairs(dataplane.boottime())[0])
            yield end, eve
        finally:
            end.close()


async def traffic(end: End, packets: int = 100) -> None:
    """Send packets through the TUN, with a turn of the loop for each."""
    for _ in range(packets):
        end.put(PACKET)
        await asyncio.sleep(0)


def while_blocked(action, *arguments) -> None:
    """Block the loop, which runs in this thread, for a second, and call `action` meanwhile."""
    timer = threading.Timer(BLOCKED / 4, action, arguments)
    timer.start()
    time.sleep(BLOCKED)
    timer.join()


async def test_packets_leave_while_the_loop_is_blocked(ends):
    end, eve = ends
    await traffic(end)
    eve.captured()

    while_blocked(end.put, PACKET)
    assert len(eve.captured()) == 1


async def test_packets_are_counted_for_the_standby_pump_not_turns_of_the_loop(ends):
    """Under a flood the loop pumps seldom and finds many packets at once."""
    end, eve = ends
    end.put(*[PACKET] * 50)
    await asyncio.sleep(0.01)
    eve.captured()

    while_blocked(end.put, PACKET)
    assert len(eve.captured()) == 1


async def test_the_standby_pump_is_inactive_with_little_traffic(ends):
    end, eve = ends
    await traffic(end, 3)
    await asyncio.sleep(0.3)
    eve.captured()

    while_blocked(end.put, PACKET)
    assert eve.captured() == []
    await asyncio.sleep(0.2)
    assert len(eve.captured()) == 1


async def test_events_received_meanwhile_are_announced_when_the_loop_returns(ends):
    end, eve = ends
    await traffic(end)
    await asyncio.sleep(0.2)  # for reports that are announced later
    end.happened()
    before = end.woken

    while_blocked(eve.send, b"\x01" + bytes(147), end.endpoint())
    with pytest.raises(BlockingIOError):
        end.v4.recv(2048, socket.MSG_PEEK)  # it was read
    assert end.woken == before
    await asyncio.sleep(0.2)
    assert end.woken > before
    assert [type(event).__name__ for event in end.happened()] == ["Datagram"]


async def test_no_packet_is_read_after_stop(ends):
    end, eve = ends
    await traffic(end)
    eve.captured()
    end.plane.stop()

    while_blocked(end.put, PACKET)
    assert eve.captured() == []
