"""Tunnels on a running loop without TUN device and root: sessions over loopback, inner packets on the probe port."""

import asyncio
import os
from ipaddress import IPv6Address, ip_network

import pytest

from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.dataplane.contract import Drop, Endpoint, Timing
from ravenvpn.offloads import Offloads
from ravenvpn.tunnel.device import PeerSettings, SessionUp
from ravenvpn.tunnel.driver import Listeners, Tunnel
from ravenvpn.tunnel.linux.opener import open_resources
from ravenvpn.tunnel.linux.udp import PortInUseError, bind
from ravenvpn.tunnel.loop_timer import LoopTimer, boottime

ANNA, BERT = IPv6Address("fd00:1::a"), IPv6Address("fd00:1::b")
PROBE = 10277
SOL_UDP, UDP_GRO = 17, 104  # include/uapi/linux/udp.h


def probe_packet(source: IPv6Address, destination: IPv6Address, payload: bytes) -> bytes:
    """Return a UDP packet over IPv6 to the probe port; its checksum is not verified here."""
    udp = (40000).to_bytes(2) + PROBE.to_bytes(2) + (8 + len(payload)).to_bytes(2) + b"\x00\x01" + payload
    return b"\x60\0\0\0" + len(udp).to_bytes(2) + b"\x11\x40" + source.packed + destination.packed + udp


class Node:
    """A tunnel without a TUN device that records its events."""

    def __init__(self, name: str, address: IPv6Address, timing: Timing | None = None) -> None:
        self.name, self.address = name, address
        self.key = PrivateKey.generate(os.urandom)
        self.up: list[SessionUp] = []
        self.inner: asyncio.Queue[tuple[str, bytes, bool]] = asyncio.Queue()
        self.tunnel = Tunnel(
            open_resources(),
            timing=timing,
            listeners=Listeners(
                on_session_event=lambda report: self.up.append(report) if isinstance(report, SessionUp) else None,
                on_inner_packet=lambda *arrived: self.inner.put_nowait(arrived),
            ),
        )
        self.tunnel.set_private_key(self.key)
        self.tunnel.set_own_address(address, PROBE)

    def knows(self, other: "Node", *, at: Endpoint | None = None, psk: PresharedKey | None = None) -> None:
        settings = PeerSettings(other.name, (other.key.public,), endpoints=(at,) if at else (), preshared_key=psk)
        self.tunnel.peers.set(settings)
        self.tunnel.peers.accept(other.name, [ip_network(other.address)])

    @property
    def here(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.tunnel.listen_port)


@pytest.fixture
async def nodes():
    anna, bert = Node("anna", ANNA), Node("bert", BERT)
    anna.tunnel.start()
    bert.tunnel.start()
    bert.knows(anna)
    anna.knows(bert, at=bert.here)
    yield anna, bert
    anna.tunnel.stop()
    bert.tunnel.stop()


async def test_an_inner_packet_of_ours_makes_a_session_and_arrives(nodes):
    anna, bert = nodes
    packet = probe_packet(ANNA, BERT, b"are you there?")
    anna.tunnel.peers.send_inner("bert", packet)
    assert await asyncio.wait_for(bert.inner.get(), 5) == ("anna", packet, False)
    answer = probe_packet(BERT, ANNA, b"yes")
    bert.tunnel.peers.send_inner("anna", answer)
    assert await asyncio.wait_for(anna.inner.get(), 5) == ("bert", answer, False)
    assert [report.name for report in anna.up] == ["bert"]
    assert [report.name for report in bert.up] == ["anna"]


async def test_an_inner_packet_for_another_address_is_counted_as_no_tun(nodes):
    anna, bert = nodes
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, IPv6Address("fd00:1::c"), b"not for bert"))
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b"for bert"))
    await asyncio.wait_for(bert.inner.get(), 5)
    assert bert.tunnel.counters().drops[Drop.NO_TUN] == 1


async def test_the_status_shows_port_key_body_prefixes_and_peers(nodes):
    anna, bert = nodes
    anna.tunnel.peers.route(ip_network("10.0.0.0/8"), ["bert"])
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b""))
    await asyncio.wait_for(bert.inner.get(), 5)
    status = anna.tunnel.status()
    assert status.device is None
    assert status.up
    assert status.public_key == anna.key.public
    assert status.listen_port == anna.here.port > 0
    assert status.body in {"pure", "native"}
    assert status.prefixes == {"bert": [ip_network("10.0.0.0/8"), ip_network("fd00:1::b/128")]}
    (peer,) = status.peers
    assert peer.settings.name == "bert"
    assert peer.endpoint == bert.here
    assert peer.tx_bytes == 148 + 32 + 48  # an initiation, and one message with 48 inner bytes
    assert peer.rx_bytes >= 92
    assert peer.last_handshake_ns > 0
    assert all(count == 0 for count in status.counters.drops.values())


async def test_the_peer_follows_a_change_of_the_listen_port(nodes):
    anna, bert = nodes
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b"1"))
    await asyncio.wait_for(bert.inner.get(), 5)
    before = anna.here
    anna.tunnel.listen(port=0)
    assert anna.here != before
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b"2"))
    await asyncio.wait_for(bert.inner.get(), 5)
    assert bert.tunnel.peers.statuses()[0].endpoint == anna.here


async def test_a_port_in_use_changes_nothing(nodes):
    anna, bert = nodes
    before = anna.here
    with pytest.raises(PortInUseError):
        anna.tunnel.listen(port=bert.here.port, fwmark=7)
    assert anna.here == before
    assert anna.tunnel.fwmark == 0
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b"still here"))
    await asyncio.wait_for(bert.inner.get(), 5)


async def test_a_removed_peer_can_be_added_again(nodes):
    anna, bert = nodes
    anna.tunnel.peers.remove("bert")
    assert anna.tunnel.status().peers == ()
    assert anna.tunnel.peers.allowed_ips.prefixes("bert") == []
    with pytest.raises(KeyError):
        anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b""))
    with pytest.raises(KeyError):
        anna.tunnel.peers.remove("bert")
    anna.knows(bert, at=bert.here)
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b"again"))
    await asyncio.wait_for(bert.inner.get(), 5)


async def test_the_loop_timer_serves_the_timers_of_the_device():
    """An initiation without a response is sent again after REKEY_TIMEOUT, here 50 ms."""
    anna = Node("anna", ANNA, Timing(rekey_timeout=0.05, max_jitter=0.0))
    anna.tunnel.start()
    deaf = bind(0)
    bert = Node("bert", BERT)
    try:
        anna.knows(bert, at=Endpoint("127.0.0.1", deaf.port))
        anna.tunnel.peers.initiate("bert")
        assert deaf.v4 is not None
        deaf.v4.setblocking(True)
        deaf.v4.settimeout(5)
        for _ in range(3):
            assert len(await asyncio.to_thread(deaf.v4.recv, 2000)) == 148
    finally:
        deaf.close()
        anna.tunnel.stop()
        bert.tunnel.stop()


async def test_a_tunnel_can_be_configured_before_the_start():
    anna, bert = Node("anna", ANNA), Node("bert", BERT)
    free = bind(0)
    free.close()
    bert.tunnel.listen(port=free.port)
    bert.knows(anna)
    anna.knows(bert, at=Endpoint("::1", free.port))
    anna.tunnel.peers.send_inner("bert", probe_packet(ANNA, BERT, b"early"))
    bert.tunnel.start()
    anna.tunnel.start()
    await asyncio.wait_for(bert.inner.get(), 5)
    anna.tunnel.stop()
    bert.tunnel.stop()


async def test_a_stopped_tunnel_leaves_no_descriptor_and_no_timer():
    before = set(os.listdir("/proc/self/fd"))
    anna = Node("anna", ANNA)
    anna.tunnel.start()
    anna.tunnel.stop()
    anna.tunnel.stop()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_offloads_can_be_forbidden():
    resources = open_resources()
    tunnel = Tunnel(resources, offloads=Offloads(udp_gso=False, udp_gro=False))
    tunnel.start()
    assert resources.sockets.v4 is not None
    assert resources.sockets.v4.getsockopt(SOL_UDP, UDP_GRO) == 0
    assert not tunnel.status().offloads.udp_gso
    assert not tunnel.status().offloads.udp_gro
    tunnel.stop()


# The timer.


class Callback:
    """A callback that counts its calls and returns `answers` in order, as seconds from now; then None."""

    def __init__(self, *answers: float | None) -> None:
        self.answers = list(answers)
        self.count = 0
        self.enough = asyncio.Event()

    def __call__(self, now: float) -> float | None:
        self.count += 1
        answer = self.answers.pop(0) if self.answers else None
        if not self.answers:
            self.enough.set()
        return None if answer is None else now + answer


async def test_a_wake_calls_back_once_in_the_next_turn():
    callback = Callback(None)
    timer = LoopTimer(callback)
    timer.start(asyncio.get_running_loop())
    timer.wake()
    timer.wake()
    assert callback.count == 0
    await callback.enough.wait()
    await asyncio.sleep(0)
    assert callback.count == 1


async def test_a_deadline_in_the_past_means_the_next_turn_and_lets_others_run():
    callback = Callback(-1, -1, -1, None)
    turns = 0

    def other() -> None:
        nonlocal turns
        turns += 1
        if not callback.enough.is_set():
            asyncio.get_running_loop().call_soon(other)

    timer = LoopTimer(callback)
    timer.start(asyncio.get_running_loop())
    other()
    await callback.enough.wait()
    assert callback.count == 4
    assert turns >= 3


async def test_an_earlier_deadline_replaces_a_later_one():
    instants: list[float] = []
    answers = iter([30.0, 0.02, None])
    done = asyncio.Event()

    def call(now: float) -> float | None:
        instants.append(now)
        answer = next(answers)
        if answer is None:
            done.set()
            return None
        return now + answer

    timer = LoopTimer(call)
    timer.start(asyncio.get_running_loop())
    await asyncio.sleep(0)
    timer.wake()
    began = boottime()
    await asyncio.wait_for(done.wait(), 5)
    assert len(instants) == 3
    assert 0.015 < boottime() - began < 2
    timer.stop()


async def test_the_timer_goes_on_after_a_callback_that_raises():
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    callback = Callback(None)
    failing = True

    def call(now: float) -> float | None:
        nonlocal failing
        if failing:
            failing = False
            raise ZeroDivisionError
        return callback(now)

    timer = LoopTimer(call)
    timer.start(asyncio.get_running_loop())
    await asyncio.wait_for(callback.enough.wait(), 5)
    assert [type(error) for error in reported] == [ZeroDivisionError]


async def test_a_stopped_timer_never_calls_back():
    callback = Callback(0.0)
    timer = LoopTimer(callback)
    timer.start(asyncio.get_running_loop())
    timer.stop()
    timer.wake()
    for _ in range(3):
        await asyncio.sleep(0)
    assert callback.count == 0
