"""The contract, scene by scene, for every body there is."""

from __future__ import annotations

import pytest
from dataplane.packets import udp
from dataplane.rig import two

A, B = "10.1.0.1", "10.2.0.1"


@pytest.fixture(params=["pure"])
def body(request):
    return request.param


async def test_a_packet_goes_through(body):
    async with two(body) as pair:
        await pair.connect()
        packet = udp(A, B, b"hello")
        pair.alice.put(packet)
        await pair.settle()
        assert pair.bob.packets() == [packet]
        assert pair.alice.drops() == pair.bob.drops() == {}
