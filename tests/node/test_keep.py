"""What another program undoes comes back; what it keeps undoing is called a fight."""

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
from ravenvpn.node.observe import HostPart
from ravenvpn.node.reconciler import (
    AddressesChanged,
    ChangeRefused,
    DeviceGone,
    Event,
    FlappingDetected,
    Reconciler,
    Restored,
    WantedState,
)
from ravenvpn.node.watch import AddressChange, attach, worth_a_look

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge")]

FACTORIES = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LOOPS = pytest.mark.parametrize("loop_factory", FACTORIES.values(), ids=FACTORIES)


@dataclass
class Scene:
    """A kept host, and everything it has said."""

    box: Box
    host: Host
    keeper: Reconciler
    events: list[Event]
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def sh(self, command: str) -> str:
        return await asyncio.to_thread(self.box.sh, command)

    async def settled(self) -> None:
        """Until what our own start was told of has been looked at: it would mend what a scene breaks."""
        await self.sh("sleep 0.05")
        while self.keeper.disturbed:
            await self.sh("sleep 0.05")
        await self.keeper.look(lambda _: None)

    async def event(self, kind: type[Event]) -> Event:
        """The next event of this kind that nobody has asked for yet."""
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
    """Run a scene on a loop inside the namespace, with the keeper started and the wanted state in place."""

    async def main() -> None:
        events: list[Event] = []
        with Host(state_file) as host:
            keeper = Reconciler(host, lambda event: (events.append(event), one.arrived.set())[0])
            one = Scene(box, host, keeper, events)
            keeper.start()
            try:
                assert (await keeper.want(WantedState.of(wanted or lan_gateway()))).failed == ()
                await scene(one)
            finally:
                await keeper.stop()

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
            # The kernel drops its IPv4 routes and tells nobody.
            "ip link set ravenvpn0 down; ip link set ravenvpn0 up",
            "route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) and value.startswith(("ip", "nft")) else "",
)
def test_what_is_undone_comes_back(
    node: Box,
    state_file: Path,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    harm: str,
    thing: str,
) -> None:
    """Within two seconds (on an idle machine a fifth of one), with an event that says what."""

    async def scene(one: Scene) -> None:
        await one.settled()
        await one.sh(harm)
        start = time.monotonic()
        restored: list[str] = []
        while thing not in restored:
            event = await one.event(Restored)
            assert isinstance(event, Restored)
            restored += event.things
        assert time.monotonic() - start < 8
        assert await one.keeper.look(lambda host: host.apply(lan_gateway())) == ApplyResult()

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
def test_what_is_undone_on_a_plain_node_comes_back(
    box: Callable[[], Box], state_file: Path, harm: str, things: list[str]
) -> None:
    """No tunnel device: all it has is the VXLAN and what hangs on it."""
    plain = box()
    plain.sh(HOST)

    async def scene(one: Scene) -> None:
        await one.settled()
        await one.sh(harm)
        restored: list[str] = []
        while not set(things) <= set(restored):
            event = await one.event(Restored)
            assert isinstance(event, Restored)
            restored += event.things
        assert await one.keeper.look(lambda host: host.apply(planned("plain"))) == ApplyResult()

    play(plain, state_file, scene, wanted=planned("plain"))


def test_the_kernel_keeps_away_what_concerns_nobody_here(node: Box, state_file: Path) -> None:
    """Of a routing daemon's routes, of neighbours elsewhere and of our own routes nothing is even queued."""

    def listen() -> tuple[socket.socket, Host]:
        host = Host(state_file)
        assert host.apply(lan_gateway()).failed == ()
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.bind((0, 1 << 2 | 1 << 6 | 1 << 7))  # neighbours, IPv4 routes and rules
        attach(sock, worth_a_look(host.port, socket.if_nametoindex("raven0")))
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


def test_nft_changes_name_the_program(node: Box, state_file: Path) -> None:
    async def scene(one: Scene) -> None:
        await one.sh("nft delete table inet ravenvpn")
        event = await one.event(Restored)
        assert isinstance(event, Restored)
        assert [who.split()[0] for who in event.by] == ["nft"]

    play(node, state_file, scene)


def test_our_own_changes_disturb_nobody(node: Box, state_file: Path) -> None:
    """What `want` and `change` do comes back as notifications; nothing is restored because of it."""

    async def scene(one: Scene) -> None:
        wanted = lan_gateway()
        await one.keeper.cleanup()
        await one.keeper.want(WantedState.of(HostState(rules=wanted.rules, packet_filter=wanted.packet_filter)))
        await one.sh("ip rule del pref 99 lookup 9127")  # the one real harm
        event = await one.event(Restored)
        assert event == Restored(("rule 99 IPv4 lookup 9127",), ())
        assert one.events == []

    play(node, state_file, scene)


def test_a_fight_is_told_and_met_more_slowly(node: Box, state_file: Path) -> None:
    async def scene(one: Scene) -> None:
        event: Event | None = None
        for _ in range(4):
            await one.sh("ip rule del pref 99 lookup 9127")
            event = await one.event(Restored)
        event = await one.event(FlappingDetected)
        assert isinstance(event, FlappingDetected)
        (fight,) = event.fights
        assert (fight.part, fight.what, fight.times) == (HostPart.RULES, "rule 99 IPv4 lookup 9127", 4)
        assert str(fight) == "rule 99 IPv4 lookup 9127: undone 4 times by another program"
        assert event.delay == 1.0
        assert one.keeper.fights == [fight]
        # A fight over rules does not delay the rest.
        await one.sh("ip rule del pref 99 lookup 9127; ip route del 10.244.2.0/24 dev ravenvpn0 table 9127")
        event = await one.event(Restored)
        assert event == Restored(("route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",), ())

    play(node, state_file, scene)


def test_addresses_that_come_and_go_are_told(node: Box, state_file: Path) -> None:
    async def scene(one: Scene) -> None:
        await one.sh("ip addr add 10.0.0.77/24 dev eth0")
        assert await one.event(AddressesChanged) == AddressesChanged((AddressChange(ip_address("10.0.0.77"), True),))
        await one.sh("ip addr del fd00:10::5/64 dev eth0")
        event = await one.event(AddressesChanged)
        assert event == AddressesChanged((AddressChange(ip_address("fd00:10::5"), False),))

    play(node, state_file, scene)


def test_a_route_that_lost_its_source_is_seen_and_comes_back(node: Box, state_file: Path) -> None:
    """The kernel strips a preferred IPv6 source that is gone and tells nobody; planning has to choose another."""

    async def scene(one: Scene) -> None:
        await one.sh("ip addr del fd00:1::1/64 dev cni0")
        refused = await one.event(ChangeRefused)
        assert isinstance(refused, ChangeRefused)
        assert [failure.error.errno_name for failure in refused.failed] == ["EINVAL"]
        assert "unreachable fd00:2::/64" in await one.sh("ip -6 route show table 9127")
        await one.sh("ip addr add fd00:1::1/64 dev cni0")
        while one.keeper.failed:  # tried again by itself
            await one.event(Restored)
        assert "fd00:2::/64 dev ravenvpn0 proto 157 src fd00:1::1" in await one.sh("ip -6 route show table 9127")

    play(node, state_file, scene)


def test_a_deleted_tunnel_device_is_told_at_once(node: Box, state_file: Path) -> None:
    """Only the daemon can open it again; until then its prefixes are closed."""

    async def scene(one: Scene) -> None:
        await one.sh("ip link del ravenvpn0")
        assert await one.event(DeviceGone) == DeviceGone("ravenvpn0")
        await one.event(ChangeRefused)
        assert "dev eth0" not in await one.sh("ip route get 10.244.2.9 || true")

    play(node, state_file, scene)


def test_others_may_change_what_is_theirs(node: Box, state_file: Path) -> None:
    """Their routes, rules, links and nft tables wake nobody up."""

    async def scene(one: Scene) -> None:
        looked: list[Event] = one.events
        await asyncio.sleep(0.3)  # our own start has been looked at
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
        async with asyncio.timeout(10):  # nor is a socket leaked, once what is under way is through
            while int(await one.sh("cat /proc/thread-self/net/netlink | wc -l")) > int(before):
                pass

    play(node, state_file, scene)


# --- Fights, with a clock one moves ------------------------------------------------------------------------------


def test_an_accident_is_no_fight() -> None:
    fights = FlapDetector()

    fights.restored(HostPart.RULES, ["rule 100"], [], now=0.0)

    assert fights.current(0.0) == []
    assert fights.delay(HostPart.RULES, 0.0) == 0.1


def test_patience_grows_while_it_goes_on_and_returns_when_it_ends() -> None:
    fights, now, delays = FlapDetector(), 0.0, []
    for _ in range(11):
        fights.restored(HostPart.FILTER, ["nft table ravenvpn"], ["kube-proxy (process 7)"], now)
        delays.append(fights.delay(HostPart.FILTER, now))
        now += delays[-1]

    assert delays == [0.1, 0.1, 0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert str(fights.current(now)[0]) == "nft table ravenvpn: undone 11 times by kube-proxy (process 7)"
    assert fights.delay(HostPart.ROUTES, now) == 0.1
    assert fights.current(now + 119) != []
    assert fights.current(now + 121) == []
    assert fights.delay(HostPart.FILTER, now + 121) == 0.1


def test_accidents_far_apart_make_no_fight() -> None:
    fights = FlapDetector()
    for hour in range(10):
        fights.restored(HostPart.RULES, ["rule 100"], [], now=hour * 3600.0)

        assert fights.current(hour * 3600.0) == []
