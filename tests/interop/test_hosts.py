"""Our tunnel on unusual hosts: several addresses, no IPv6, deleted devices, names in use."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop_rig import (
    HERE,
    INNER,
    PORTS,
    PYTHON,
    WAIT,
    End,
    Host,
    Pair,
    namespaces,
    ours,
    running,
    transfer,
    until,
    wire,
)

pytestmark = [pytest.mark.root, pytest.mark.needs("wg", "ping")]


@pytest.fixture
def two() -> Iterator[tuple[Host, Host]]:
    with namespaces(2) as (a, b):
        wire(a, b, "eth0", ("192.0.2.1/24", "192.0.2.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
        yield a, b


def ends(a: Host, b: Host) -> Pair:
    return Pair(End(a, ours(), "rva"), End(b, ours(), "rvb"))


def bring_up(pair: Pair, endpoint: str, side: int = 1) -> None:
    """Configure both ends; the one at `side` initiates to `endpoint`."""
    for here, end in enumerate(pair):
        end.start(f"{INNER[4][here]}/24", f"{INNER[6][here]}/64")
    for here, end in enumerate(pair):
        end.configure(
            port=PORTS[here],
            peer=pair[1 - here],
            allowed=f"{INNER[4][1 - here]}/32, {INNER[6][1 - here]}/128",
            endpoint=endpoint if here == side else "",
        )


@pytest.mark.parametrize(
    ("prefix", "second"), [("24", "192.0.2.11"), ("64", "2001:db8::11")], ids=["outer v4", "outer v6"]
)
def test_responses_leave_from_the_address_that_was_addressed(two: tuple[Host, Host], prefix: str, second: str):
    """On a host with several addresses the kernel would choose the first one; then the caller, or a NAT before it,
    would not know who answers."""
    two[0].ip("address", "add", f"{second}/{prefix}", "dev", "eth0", *(["nodad"] if ":" in second else []))
    pair = ends(*two)
    called = f"[{second}]:{PORTS[0]}" if ":" in second else f"{second}:{PORTS[0]}"
    with running(*pair):
        bring_up(pair, called)
        pair.them.host.pings(INNER[4][0], 10)
        pair.us.host.pings(INNER[4][1], 10)
        # Had one answer come from elsewhere, the caller would have roamed to it.
        assert pair.them.show("endpoints") == called

        # The address goes: nothing to stick to any more, and no packet is worth being lost over it.
        two[0].ip("address", "delete", f"{second}/{prefix}", "dev", "eth0")
        pair.us.host.pings(INNER[4][1], 10)
        assert pair.them.show("endpoints") in {f"192.0.2.1:{PORTS[0]}", f"[2001:db8::1]:{PORTS[0]}"}


def talk_over_ipv4(us: End, them: End) -> None:
    """Our end initiates, from a port that the kernel chose."""
    us.start(f"{INNER[4][0]}/24")
    them.start(f"{INNER[4][1]}/24")
    us.configure(port=0, peer=them, allowed=f"{INNER[4][1]}/32", endpoint=f"192.0.2.2:{PORTS[1]}")
    them.configure(port=PORTS[1], peer=us, allowed=f"{INNER[4][0]}/32")
    us.host.pings(INNER[4][1], 10)


def test_a_host_without_ipv6_is_served_over_ipv4(two: tuple[Host, Host]):
    us, them = End(two[0], [PYTHON, HERE / "without_ipv6.py", *ours()], "rva"), End(two[1], ours(), "rvb")
    with running(us, them):
        talk_over_ipv4(us, them)
        port = us.wg("show", "listen-port").strip()
        assert f"[::]:{port}" not in us.host.run("ss", "-Hnlu")


def test_a_host_with_ipv6_switched_off_is_served_over_ipv4(two: tuple[Host, Host]):
    for which in ("all", "default"):
        two[0].sysctl(f"net.ipv6.conf.{which}.disable_ipv6", "1")
    us, them = ends(*two)
    with running(us, them):
        talk_over_ipv4(us, them)


def test_a_link_local_peer_is_found_on_its_interface(two: tuple[Host, Host]):
    for host, address in zip(two, ("fe80::a", "fe80::b"), strict=True):
        host.ip("address", "add", f"{address}/64", "dev", "eth0", "nodad")
    pair = ends(*two)
    with running(*pair):
        bring_up(pair, f"[fe80::a%eth0]:{PORTS[0]}")
        pair.them.host.pings(INNER[4][0], 10)
        pair.us.host.pings(INNER[4][1], 10)


def test_two_devices_on_one_host_are_independent(two: tuple[Host, Host]):
    first, second = ends(*two), ends(*two)
    with running(*first, *second):
        bring_up(first, f"192.0.2.1:{PORTS[0]}")
        for end, side in ((second.us, 0), (second.them, 1)):
            end.start(f"10.8.0.{side + 1}/24")
            peer = second[1 - side]
            endpoint = "192.0.2.1:52000" if side else ""
            end.configure(port=52000 + side, peer=peer, allowed=f"10.8.0.{2 - side}/32", endpoint=endpoint)
        first.them.host.pings(INNER[4][0], 10)
        second.them.host.pings("10.8.0.1", 10)
        second.us.stop()
        second.them.stop()
        first.them.host.pings(INNER[4][0], 10)


def test_a_random_port_is_the_same_in_both_families(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us):
        us.start()
        port = us.wg("show", "listen-port").strip()
        assert int(port) > 0
        bound = us.host.run("ss", "-Hnlu").split()
        assert {f"0.0.0.0:{port}", f"[::]:{port}"} <= set(bound)


def test_the_process_ends_when_its_device_is_deleted(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us):
        us.start("10.9.0.1/24")
        assert us.process is not None
        us.host.ip("link", "delete", us.device)
        assert us.process.wait(2) == 0
        assert not us.socket.exists()


def test_the_process_ends_when_its_socket_is_removed(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us):
        us.start("10.9.0.1/24")
        assert us.process is not None
        us.socket.unlink()
        assert us.process.wait(2) == 0
        assert us.device not in us.host.run("ip", "link")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_nothing_is_left(two: tuple[Host, Host], how: int):
    us = End(two[0], ours(), "rva")
    with running(us):
        us.start("10.9.0.1/24")
        assert us.stop(how) == 0
        assert not us.socket.exists()
        assert us.device not in us.host.run("ip", "link")


def test_a_device_name_in_use_is_refused_with_a_remedy(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us):
        us.start("10.9.0.1/24")
        said = us.host.fails(*ours(), us.device)
        assert f"a process already holds the TUN device {us.device}" in said
        assert "choose another name" in said
        assert us.answers()
        said = us.host.fails(*ours(), "eth0")
        assert "eth0 exists and is no TUN device" in said


def test_one_device_name_in_two_namespaces_is_refused_for_the_shared_socket_folder(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us):
        us.start("10.9.0.1/24")
        assert "another process answers" in two[1].fails(*ours(), us.device)
        assert us.answers()
        assert us.device not in two[1].run("ip", "link")


def test_without_net_admin_the_error_names_the_capability(two: tuple[Host, Host]):
    said = two[0].fails("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *ours(), "rvnoadmin")
    assert "CAP_NET_ADMIN" in said


def test_the_background_process_is_ready_when_the_command_returns(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us):
        command = [word for word in ours() if word != "--foreground"]
        us.host.run(*command, us.device)
        us.host.run("wg", "show", us.device)
        us.host.ip("link", "delete", us.device)
        until(lambda: not us.socket.exists(), "the background process ends with its device")


def test_the_command_prints_why_the_background_process_failed(two: tuple[Host, Host]):
    command = [word for word in ours() if word != "--foreground"]
    assert "cannot name a network device" in two[0].fails(*command, "much-too-long-a-name")


COUNT_MARKED = """
table inet t {
    chain out {
        type filter hook output priority 0
        meta mark 0x77 counter
    }
}
"""


@pytest.mark.needs("nft")
def test_every_outer_packet_has_the_fwmark(two: tuple[Host, Host]):
    pair = ends(*two)
    two[0].run("nft", "-f", "-", stdin=COUNT_MARKED)
    with running(*pair):
        bring_up(pair, f"192.0.2.2:{PORTS[1]}", side=0)
        pair.us.wg("set", "fwmark", "0x77")
        pair.us.host.pings(INNER[4][1], 10)
        counted = two[0].run("nft", "list", "table", "inet", "t").split("packets ")[1].split()[0]
        assert int(counted) >= 10


def test_padding_follows_a_change_of_the_mtu(two: tuple[Host, Host]):
    """Padding stops at the MTU (whitepaper §5.4.6): 1,300 bytes are not a multiple of 16."""
    pair = ends(*two)
    with running(*pair):
        bring_up(pair, f"192.0.2.2:{PORTS[1]}", side=0)
        pair.us.host.pings(INNER[4][1])
        pair.us.host.ip("link", "set", pair.us.device, "mtu", "1300")
        before = int(pair.us.show("transfer").split()[1])
        pair.us.host.run("ping", "-n", "-c", "1", "-s", str(1300 - 28), INNER[4][1])
        assert int(pair.us.show("transfer").split()[1]) - before == 1300 + 32


def test_an_idle_process_uses_no_measurable_cpu(two: tuple[Host, Host]):
    pair = ends(*two)
    with running(*pair):
        bring_up(pair, f"192.0.2.2:{PORTS[1]}", side=0)
        pair.us.wg("set", "peer", pair.them.public, "persistent-keepalive", "1")
        pair.us.host.pings(INNER[4][1])
        assert pair.us.process is not None
        before = cpu_seconds(pair.us.process.pid)
        time.sleep(2)
        assert cpu_seconds(pair.us.process.pid) - before <= 0.02


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_process_ends_when_its_device_is_deleted_under_traffic(two: tuple[Host, Host]):
    pair = ends(*two)
    with running(*pair):
        bring_up(pair, f"192.0.2.2:{PORTS[1]}", side=0)
        pair.us.host.pings(INNER[4][1])
        flood = subprocess.Popen(
            pair.us.host.command("ping", "-f", "-q", "-n", INNER[4][1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert pair.us.process is not None
            pair.us.host.ip("link", "delete", pair.us.device)
            assert pair.us.process.wait(WAIT) == 0
        finally:
            flood.kill()
            flood.wait()


def test_with_the_aes_suite_both_ends_must_have_it(two: tuple[Host, Host]):
    """An initiator with AES asks for it and a plain WireGuard end refuses, which shows that AES is used."""
    aes = [*ours(), "--suite", "aes256gcm"]
    us, them, plain = End(two[0], aes, "rva"), End(two[1], aes, "rvb"), End(two[1], ours(), "rvc")
    with running(us, them, plain):
        bring_up(Pair(us, them), f"192.0.2.2:{PORTS[1]}", side=0)
        us.host.pings(INNER[4][1], 10)
        transfer(us.host, them.host, INNER[4][1], 1_000_000)
        them.stop()
        us.stop()
        bring_up(Pair(us, plain), f"192.0.2.2:{PORTS[1]}", side=0)
        assert not us.host.reaches(INNER[4][1], wait=1)
        assert us.handshake() == plain.handshake() == 0


def test_many_silent_clients_do_not_lock_out_wg(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    with running(us), contextlib.ExitStack() as crowd:
        us.start()
        for _ in range(200):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(us.socket))
            client.sendall(b"set=1\nlisten_port=")
        assert us.answers()
        assert us.process is not None
        assert len(os.listdir(f"/proc/{us.process.pid}/fd")) < 100


def test_hostile_lines_change_nothing(two: tuple[Host, Host]):
    us = End(two[0], ours(), "rva")
    chance = random.Random(3)
    valid = (
        f"set=1\nlisten_port=4500\npublic_key={'11' * 32}\nendpoint=192.0.2.1:1\nallowed_ip=10.0.0.0/8\n\n".encode()
    )
    with running(us):
        us.start()
        before = us.wg("showconf")
        for _ in range(500):
            mutated = bytearray(valid)
            # The last line is broken for certain, so whatever else happens nothing may be applied.
            mutated[-4:-1] = b"/8x"
            for _ in range(chance.randrange(6)):
                mutated[chance.randrange(6, len(mutated) - 5)] = chance.randrange(256)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(us.socket))
                client.sendall(mutated)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        assert us.wg("showconf") == before


@pytest.mark.parametrize("outer", [4, 6], ids=["outer v4", "outer v6"])
def test_outer_packets_are_fragmented_on_a_path_with_a_small_mtu(outer: int):
    """Outer packets can be fragmented, on the path (IPv4) or by us after a router's Packet Too Big (IPv6)."""
    with namespaces(3) as (a, router, b):
        wire(a, router, "near", ("192.0.2.1/24", "192.0.2.254/24"), ("2001:db8::1/64", "2001:db8::fe/64"))
        wire(b, router, "far", ("198.51.100.2/24", "198.51.100.254/24"), ("2001:db8:2::2/64", "2001:db8:2::fe/64"))
        for host, device in ((b, "far"), (router, "far")):
            host.ip("link", "set", device, "mtu", "1300")
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        for host, via in ((a, ("192.0.2.254", "2001:db8::fe")), (b, ("198.51.100.254", "2001:db8:2::fe"))):
            for gateway in via:
                host.ip("route", "add", "default", "via", gateway)
        pair = ends(a, b)
        with running(*pair):
            bring_up(pair, f"198.51.100.2:{PORTS[1]}" if outer == 4 else f"[2001:db8:2::2]:{PORTS[1]}", side=0)
            a.pings(INNER[4][1])
            until(lambda: a.reaches(INNER[4][1], size=1392), "a packet of 1,420 bytes arrives")
            a.run("ping", "-n", "-c", "5", "-i", "0.01", "-s", "1392", INNER[4][1])
            transfer(a, b, INNER[4][1], 1_000_000)
            transfer(b, a, INNER[6][0], 1_000_000)


@pytest.mark.parametrize("what", [("delete", "second"), ("set", "second", "down")], ids=["deleted", "down"])
def test_an_uplink_that_goes_down_is_not_used_any_more(what: tuple[str, ...]):
    """A gateway with two uplinks answers through the one that was addressed, until that one is down."""
    with namespaces(2) as (a, b):
        wire(a, b, "first", ("192.0.2.1/24", "192.0.2.2/24"))
        wire(a, b, "second", ("198.51.100.1/24", "198.51.100.2/24"))
        b.ip("address", "add", "203.0.113.2/32", "dev", "lo")
        a.ip("route", "add", "203.0.113.2", "via", "198.51.100.2", "metric", "10")
        a.ip("route", "add", "203.0.113.2", "via", "192.0.2.2", "metric", "20")
        pair = ends(a, b)
        with running(*pair):
            bring_up(pair, f"198.51.100.1:{PORTS[0]}")
            pair.us.wg("set", "peer", pair.them.public, "endpoint", f"203.0.113.2:{PORTS[1]}")
            pair.us.host.pings(INNER[4][1])
            assert pair.them.show("endpoints") == f"198.51.100.1:{PORTS[0]}"
            a.ip("link", *what)
            pair.us.host.pings(INNER[4][1], 10, within=3)
            assert pair.them.show("endpoints") == f"192.0.2.1:{PORTS[0]}"
