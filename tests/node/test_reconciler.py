"""The reconciler on a real kernel: repairs, flap detection, events."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from node.applying import change_host
from node.box import Box
from node.worlds import HOST, lan_gateway, planned

from ravenvpn.mesh.hoststate import HostState
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.flapping import FlapDetector
from ravenvpn.node.host_events import (
    AddressesChanged,
    ChangeRefused,
    DeviceGone,
    FlappingDetected,
    HostEvent,
    Restored,
)
from ravenvpn.node.notification_filter import attach_filter, notification_filter
from ravenvpn.node.parts import HostPart
from ravenvpn.node.reconciler import Reconciler, WantedState
from ravenvpn.node.watch import AddressChange

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge")]

FACTORIES = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LOOPS = pytest.mark.parametrize("loop_factory", FACTORIES.values(), ids=FACTORIES)


@dataclass
class Scene:
    """A host with a running reconciler, and its events so far."""

    box: Box
    host: Host
    reconciler: Reconciler
    events: list[HostEvent]
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def sh(self, command: str) -> str:
        return await asyncio.to_thread(self.box.sh, command)

    async def settled(self) -> None:
        """Wait until the notifications of the start are processed: a repair by them would hide one of the test."""
        await self.sh("sleep 0.05")
        while self.reconciler.pending:
            await self.sh("sleep 0.05")
        await self.reconciler.run(lambda _: None)

    async def event(self, kind: type[HostEvent]) -> HostEvent:
        """Return the next event of this kind; those before it are dropped."""
        async with asyncio.timeout(20):
            while True:
                for at, event in enumerate(self.events):
                    if isinstance(event, kind):
                        del self.events[: at + 1]
                        return event
                self.arrived.clear()
                await self.arrived.wait()


def play(
    box: Box,
    state_file: Path,
    scene: Callable[[Scene], Awaitable[None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    wanted: HostState | None = None,
) -> None:
    """Run a scene on a loop inside the namespace, with the reconciler started and the wanted state in place."""

    async def main() -> None:
        events: list[HostEvent] = []
        with Host(state_file) as host:
            reconciler = Reconciler(host, lambda event: (events.append(event), one.arrived.set())[0])
            one = Scene(box, host, reconciler, events)
            reconciler.start()
            try:
                assert (await reconciler.reconcile(WantedState.fixed(wanted or lan_gateway()))).failed == ()
                await scene(one)
            finally:
                await reconciler.stop()

    def inside() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    box.call(inside)


@pytest.fixture
def node(box: Callable[[], Box], held: ExitStack) -> Box:
    one = box()
    one.sh(HOST)
    held.enter_context(one.tun())
    return one


@LOOPS
@pytest.mark.parametrize(
    ("harm", "thing"),
    [
        ("ip rule del pref 99 lookup 9127", "rule 99 IPv4 lookup 9127"),
        ("ip -6 rule del pref 98 iif lo", "rule 98 IPv6 iif lo ipproto 17 sport 4500 goto 102"),
        (
            "ip route del 10.244.2.0/24 dev ravenvpn0 table 9127",
            "route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        ),
        ("ip -6 route flush table 9127", "route unreachable fd00:2::/64 table 9127 metric 4278198272"),
        ("ip route add 10.244.2.64/26 via 10.0.0.9 table 9127", "route 10.244.2.64/26 in table 9127"),
        ("nft delete table inet ravenvpn", "nft table ravenvpn"),
        ("nft flush chain inet ravenvpn source", "nft table ravenvpn"),
        ("ip link set ravenvpn0 down", "device ravenvpn0 mtu 1420 up"),
        ("ip link del raven0", "device raven0 VXLAN 200 port 4472 local 10.0.0.5 mtu 1370"),
        ("ip addr del 240.0.0.5/8 dev raven0", "address 240.0.0.5/8 dev raven0"),
        ("ip neigh del 240.0.0.6 dev raven0", "neighbour 240.0.0.6 at aa:0f:0a:00:00:06 dev raven0"),
        (
            "ip neigh replace fdaa:0:0:2::6 lladdr aa:0f:00:00:00:01 dev raven0 nud permanent",
            "neighbour fdaa:0:0:2::6 at aa:0f:0a:00:00:06 dev raven0",
        ),
        (
            "bridge fdb del aa:0f:0a:00:00:06 dev raven0 dst 10.0.0.6",
            "forwarding entry aa:0f:0a:00:00:06 to 10.0.0.6 dev raven0",
        ),
        (
            # The kernel drops its IPv4 routes without a notification.
            "ip link set ravenvpn0 down; ip link set ravenvpn0 up",
            "route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) and value.startswith(("ip", "nft")) else "",
)
def test_a_reverted_object_is_restored(
    node: Box,
    state_file: Path,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    harm: str,
    thing: str,
) -> None:
    """Within two seconds (0.2 s on an idle machine), with an event that names the object."""

    async def scene(one: Scene) -> None:
        await one.settled()
        await one.sh(harm)
        start = time.monotonic()
        restored: list[str] = []
        while thing not in restored:
            event = await one.event(Restored)
            assert isinstance(event, Restored)
            restored += event.descriptions
        assert time.monotonic() - start < 8
        assert await one.reconciler.run(lambda host: host.apply(lan_gateway())) == ApplyResult()

    play(node, state_file, scene, loop_factory)


@pytest.mark.parametrize(
    ("harm", "things"),
    [
        (
            "ip link del raven0",
            [
                "device raven0 VXLAN 200 port 4472 local 10.0.0.5 mtu 1420",
                "address 240.0.0.5/8 dev raven0",
                "neighbour 240.0.0.6 at aa:0f:f0:00:00:06 dev raven0",
                "forwarding entry aa:0f:f0:00:00:06 to 10.0.0.6 dev raven0",
                "route 10.244.2.0/24 table 9127 via 240.0.0.6 dev raven0 src 10.244.1.1 mtu 1420",
            ],
        ),
        ("nft flush ruleset", ["nft table ravenvpn"]),
        (
            "bridge fdb del aa:0f:f0:00:00:06 dev raven0 dst 10.0.0.6",
            ["forwarding entry aa:0f:f0:00:00:06 to 10.0.0.6 dev raven0"],
        ),
    ],
    ids=["device", "packet filter", "forwarding entry"],
)
def test_a_reverted_object_on_a_plain_node_is_restored(
    box: Callable[[], Box], state_file: Path, harm: str, things: list[str]
) -> None:
    """A plain node has no tunnel device, only the VXLAN and its objects."""
    plain = box()
    plain.sh(HOST)

    async def scene(one: Scene) -> None:
        await one.settled()
        await one.sh(harm)
        restored: list[str] = []
        while not set(things) <= set(restored):
            event = await one.event(Restored)
            assert isinstance(event, Restored)
            restored += event.descriptions
        assert await one.reconciler.run(lambda host: host.apply(planned("plain"))) == ApplyResult()

    play(plain, state_file, scene, wanted=planned("plain"))


def test_the_socket_filter_drops_irrelevant_notifications(node: Box, state_file: Path) -> None:
    """A routing daemon's routes, neighbours on other devices and the reconciler's own routes are not queued."""

    def listen() -> tuple[socket.socket, Host]:
        host = Host(state_file)
        assert host.apply(lan_gateway()).failed == ()
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.bind((0, 1 << 2 | 1 << 6 | 1 << 7))  # neighbours, IPv4 routes and rules
        attach_filter(sock, notification_filter(host.port, socket.if_nametoindex("raven0")))
        return sock, host

    def heard(sock: socket.socket) -> list[int]:
        kinds = []
        with contextlib.suppress(BlockingIOError):
            while data := sock.recv(1 << 16):
                kinds.append(int.from_bytes(data[4:6], sys.byteorder))
        return kinds

    sock, host = node.call(listen)
    with sock, host:
        node.sh(
            """
            ip route add 10.77.0.0/16 via 10.0.0.9
            ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
            """
        )
        changed = replace(lan_gateway(), routes=lan_gateway().routes[2:], rules=lan_gateway().rules[1:])
        assert len(node.call(change_host, host, lan_gateway(), changed).changed) == 3
        assert heard(sock) == []
        node.sh(
            """
            ip route add 10.78.0.0/16 via 10.0.0.9 proto 157
            ip route add 10.79.0.0/16 via 10.0.0.9 table 9127
            ip rule add pref 50 lookup 77
            ip neigh add 240.0.0.9 lladdr aa:0f:00:00:00:09 dev raven0 nud permanent
            """
        )
        assert heard(sock) == [24, 24, 32, 28]  # RTM_NEWROUTE twice, RTM_NEWRULE, RTM_NEWNEIGH


def test_a_changed_nft_table_is_reported_with_the_program(node: Box, state_file: Path) -> None:
    async def scene(one: Scene) -> None:
        await one.sh("nft delete table inet ravenvpn")
        event = await one.event(Restored)
        assert isinstance(event, Restored)
        assert [who.split()[0] for who in event.programs] == ["nft"]

    play(node, state_file, scene)


def test_our_own_changes_cause_no_repair(node: Box, state_file: Path) -> None:
    """Changes by the reconciler itself come back as notifications and are ignored."""

    async def scene(one: Scene) -> None:
        wanted = lan_gateway()
        await one.reconciler.cleanup()
        await one.reconciler.reconcile(
            WantedState.fixed(HostState(rules=wanted.rules, packet_filter=wanted.packet_filter))
        )
        await one.sh("ip rule del pref 99 lookup 9127")  # the only change by another program
        event = await one.event(Restored)
        assert event == Restored(("rule 99 IPv4 lookup 9127",), ())
        assert one.events == []

    play(node, state_file, scene)


def test_flapping_is_reported_and_delays_the_repair(node: Box, state_file: Path) -> None:
    async def scene(one: Scene) -> None:
        event: HostEvent | None = None
        for _ in range(4):
            await one.sh("ip rule del pref 99 lookup 9127")
            event = await one.event(Restored)
        event = await one.event(FlappingDetected)
        assert isinstance(event, FlappingDetected)
        (fight,) = event.flapping
        assert (fight.part, fight.description, fight.times) == (HostPart.RULES, "rule 99 IPv4 lookup 9127", 4)
        assert str(fight) == "rule 99 IPv4 lookup 9127: undone 4 times by another program"
        assert event.delay == 1.0
        assert one.reconciler.flapping == [fight]
        # Flapping rules do not delay other parts.
        await one.sh("ip rule del pref 99 lookup 9127; ip route del 10.244.2.0/24 dev ravenvpn0 table 9127")
        event = await one.event(Restored)
        assert event == Restored(("route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",), ())

    play(node, state_file, scene)


def test_added_and_removed_addresses_are_reported(node: Box, state_file: Path) -> None:
    async def scene(one: Scene) -> None:
        await one.sh("ip addr add 10.0.0.77/24 dev eth0")
        assert await one.event(AddressesChanged) == AddressesChanged((AddressChange(ip_address("10.0.0.77"), True),))
        await one.sh("ip addr del fd00:10::5/64 dev eth0")
        event = await one.event(AddressesChanged)
        assert event == AddressesChanged((AddressChange(ip_address("fd00:10::5"), False),))

    play(node, state_file, scene)


def test_a_route_that_lost_its_source_is_restored(node: Box, state_file: Path) -> None:
    """The kernel removes a deleted IPv6 source from routes without a notification."""

    async def scene(one: Scene) -> None:
        await one.sh("ip addr del fd00:1::1/64 dev cni0")
        refused = await one.event(ChangeRefused)
        assert isinstance(refused, ChangeRefused)
        assert [failure.error.errno_name for failure in refused.failed] == ["EINVAL"]
        assert "unreachable fd00:2::/64" in await one.sh("ip -6 route show table 9127")
        await one.sh("ip addr add fd00:1::1/64 dev cni0")
        while one.reconciler.failed:  # the reconciler retries by itself
            await one.event(Restored)
        assert "fd00:2::/64 dev ravenvpn0 proto 157 src fd00:1::1" in await one.sh("ip -6 route show table 9127")

    play(node, state_file, scene)


def test_a_deleted_tunnel_device_is_reported_at_once(node: Box, state_file: Path) -> None:
    """Only the tunnel can open it again; until then traffic for remote prefixes is refused."""

    async def scene(one: Scene) -> None:
        await one.sh("ip link del ravenvpn0")
        assert await one.event(DeviceGone) == DeviceGone("ravenvpn0")
        await one.event(ChangeRefused)
        assert "dev eth0" not in await one.sh("ip route get 10.244.2.9 || true")

    play(node, state_file, scene)


def test_changes_of_foreign_objects_are_ignored(node: Box, state_file: Path) -> None:
    """Routes, rules, devices and nft tables of other programs cause no repair."""

    async def scene(one: Scene) -> None:
        looked: list[HostEvent] = one.events
        await asyncio.sleep(0.3)  # the events of the start have been processed
        looked.clear()
        before = await one.sh("cat /proc/thread-self/net/netlink | wc -l")
        await one.sh(
            """
            ip route add 10.77.0.0/16 via 10.0.0.9; ip rule add pref 50 lookup 77; ip link add dummy type veth
            nft add table inet other; nft add chain inet other c; nft delete table inet other
            """
        )
        await one.sh("ip rule del pref 99 lookup 9127")
        event = await one.event(Restored)
        assert event == Restored(("rule 99 IPv4 lookup 9127",), ())
        async with asyncio.timeout(10):  # no socket is leaked, once pending work has ended
            while int(await one.sh("cat /proc/thread-self/net/netlink | wc -l")) > int(before):
                pass

    play(node, state_file, scene)


# --- Flap detection, with a clock of the test ------------------------------------------------------------------


def test_a_single_repair_is_not_flapping() -> None:
    detector = FlapDetector()

    detector.record_repairs(HostPart.RULES, ["rule 100"], [], now=0.0)

    assert detector.flapping(0.0) == []
    assert detector.delay(HostPart.RULES, 0.0) == 0.1


def test_the_delay_grows_while_an_object_flaps_and_is_reset_after_a_quiet_period() -> None:
    detector, now, delays = FlapDetector(), 0.0, []
    for _ in range(11):
        detector.record_repairs(HostPart.FILTER, ["nft table ravenvpn"], ["kube-proxy (process 7)"], now)
        delays.append(detector.delay(HostPart.FILTER, now))
        now += delays[-1]

    assert delays == [0.1, 0.1, 0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert str(detector.flapping(now)[0]) == "nft table ravenvpn: undone 11 times by kube-proxy (process 7)"
    assert detector.delay(HostPart.ROUTES, now) == 0.1
    assert detector.flapping(now + 119) != []
    assert detector.flapping(now + 121) == []
    assert detector.delay(HostPart.FILTER, now + 121) == 0.1


def test_repairs_far_apart_are_not_flapping() -> None:
    detector = FlapDetector()
    for hour in range(10):
        detector.record_repairs(HostPart.RULES, ["rule 100"], [], now=hour * 3600.0)

        assert detector.flapping(hour * 3600.0) == []
