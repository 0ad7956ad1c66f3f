"""While Python holds the loop up, the native body's packets go on."""

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
HELD_UP = 1.0  # seconds


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, Eve]]:
    """A body on the real clock, as only then somebody stands in for the loop, and a peer that hears it."""
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
    for _ in range(packets):
        end.put(PACKET)
        await asyncio.sleep(0)


def while_held_up(action, *arguments) -> None:
    """The loop, which is whose thread this is, does nothing for a second; amid that this happens."""
    timer = threading.Timer(HELD_UP / 4, action, arguments)
    timer.start()
    time.sleep(HELD_UP)
    timer.join()


async def test_packets_leave_while_the_loop_is_held_up(ends):
    end, eve = ends
    await traffic(end)
    eve.captured()

    while_held_up(end.put, PACKET)
    assert len(eve.captured()) == 1


async def test_a_loop_that_comes_by_seldom_and_finds_much_is_relieved_too(ends):
    """Under a flood it does."""
    end, eve = ends
    end.put(*[PACKET] * 50)
    await asyncio.sleep(0.01)
    eve.captured()

    while_held_up(end.put, PACKET)
    assert len(eve.captured()) == 1


async def test_nobody_stands_in_for_the_loop_where_little_happens(ends):
    end, eve = ends
    await traffic(end, 3)
    await asyncio.sleep(0.3)
    eve.captured()

    while_held_up(end.put, PACKET)
    assert eve.captured() == []
    await asyncio.sleep(0.2)
    assert len(eve.captured()) == 1


async def test_what_was_heard_meanwhile_is_told_when_the_loop_is_back(ends):
    end, eve = ends
    await traffic(end)
    await asyncio.sleep(0.2)  # for what is announced later
    end.happened()
    before = end.woken

    while_held_up(eve.send, b"\x01" + bytes(147), end.endpoint())
    with pytest.raises(BlockingIOError):
        end.v4.recv(2048, socket.MSG_PEEK)  # it was read
    assert end.woken == before
    await asyncio.sleep(0.2)
    assert end.woken > before
    assert [type(event).__name__ for event in end.happened()] == ["Datagram"]


async def test_after_stop_nothing_moves(ends):
    end, eve = ends
    await traffic(end)
    eve.captured()
    end.plane.stop()

    while_held_up(end.put, PACKET)
    assert eve.captured() == []
