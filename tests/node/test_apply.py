"""`Host.apply` and `Host.cleanup` on a real kernel, in a network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from node.applying import apply, cleanup
from node.box import Box, changes
from node.worlds import gateway, lan_gateway

from ravenvpn.mesh.hoststate import TABLE_REMOTE, HostState, Route, Sysctl
from ravenvpn.node.apply import ApplyResult
from ravenvpn.node.format import format_object

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge", "sysctl", "iptables-legacy")]


@pytest.mark.parametrize("wanted", [gateway(), lan_gateway()], ids=["gateway", "gateway with a LAN"])
def test_ip_and_nft_show_the_applied_state(gateway_node: Box, state_file: Path, wanted: HostState) -> None:
    result = gateway_node.call(apply, state_file, wanted)

    assert result.failed == ()
    v4 = gateway_node.sh("ip route show table 9127")
    assert "10.244.2.0/24 dev ravenvpn0 proto 157 scope link src 10.244.1.1 mtu 1420" in v4
    assert "unreachable 10.244.2.0/24 proto 157 metric 4278198272" in v4
    v6 = gateway_node.sh("ip -6 route show table 9127")
    assert "fd00:2::/64 dev ravenvpn0 proto 157 src fd00:1::1 metric 1024 mtu 1420" in v6
    assert "unreachable fd00:2::/64 dev lo proto 157 metric 4278198272" in v6
    for command in ("ip rule", "ip -6 rule"):
        assert gateway_node.sh(command).splitlines()[1:6] == [
            "98:\tfrom all iif ravenvpn0 ipproto udp sport 4500 nop proto 157",
            "98:\tfrom all iif lo ipproto udp sport 4500 goto 102 proto 157",
            "98:\tfrom all iif ravenvpn0 lookup 9129 proto 157",
            "99:\tfrom all lookup 9127 proto 157",
            "102:\tfrom all nop proto 157",
        ]
    assert gateway_node.sh("sysctl -n net.ipv4.conf.ravenvpn0.rp_filter").strip() == "2"
    assert "mtu 1420" in gateway_node.sh("ip link show ravenvpn0")
    table = gateway_node.sh("nft list table inet ravenvpn")
    assert "type nat hook postrouting priority srcnat - 10" in table
    assert "tcp option maxseg size set rt mtu" in table
    if wanted.vxlan:
        assert "vxlan id 200 local 10.0.0.5 dev eth0" in gateway_node.sh("ip -d link show raven0")
        assert " nolearning " in gateway_node.sh("ip -d link show raven0")
        assert "aa:0f:0a:00:00:06 dst 10.0.0.6 self permanent" in gateway_node.sh("bridge fdb show dev raven0")
        assert "10.244.4.0/24 via 240.0.0.6 dev raven0 proto 157 onlink mtu 1370" in gateway_node.sh(
            "ip route show table 9129"
        )


@pytest.mark.parametrize("wanted", [gateway(), lan_gateway()], ids=["gateway", "gateway with a LAN"])
def test_cleanup_leaves_nothing(node: Box, state_file: Path, wanted: HostState, held: ExitStack) -> None:
    node.sh("sysctl -qw net.ipv4.conf.cni0.forwarding=0")
    before = node.dump()
    held.enter_context(node.tun())
    assert node.call(apply, state_file, wanted).failed == ()
    assert node.sh("sysctl -n net.ipv4.conf.cni0.forwarding").strip() == "1"

    result = node.call(cleanup, state_file)

    assert result.failed == ()
    assert changes(before, node.dump()) == []
    assert not state_file.exists()
    assert node.call(cleanup, state_file) == ApplyResult()


def test_applying_twice_writes_nothing(gateway_node: Box, state_file: Path) -> None:
    """External monitors show no write through rtnetlink, to nf_tables or to a sysctl."""
    gateway_node.sh("sysctl -qw net.ipv4.conf.cni0.forwarding=0")
    gateway_node.call(apply, state_file, lan_gateway())
    gateway_node.sh("ip -6 route flush cache; ip neigh flush all")
    monitors = [gateway_node.start("ip", "-4", "monitor"), gateway_node.start("ip", "-6", "monitor")]
    monitors.append(gateway_node.start("nft", "monitor"))
    wait_until_monitored(gateway_node)
    remembered = state_file.stat().st_mtime_ns

    result = gateway_node.call(apply, state_file, lan_gateway())

    assert result == ApplyResult()
    assert state_file.stat().st_mtime_ns == remembered
    # control: the monitors report these changes
    gateway_node.sh("ip route add 192.0.2.0/24 dev lo; nft add table inet marker")
    heard = [listen(monitor, until) for monitor, until in zip(monitors, ("192.0.2.0", None, "marker"), strict=True)]
    assert [line for line in heard[0] if "192.0.2.0" not in line] == []
    assert heard[1] == []
    assert [line for line in heard[2] if "marker" not in line and "generation" not in line] == []


def wait_until_monitored(box: Box) -> None:
    """Wait until three more sockets listen: two of NETLINK_ROUTE, one of NETLINK_NETFILTER."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = box.sh("cat /proc/thread-self/net/netlink").splitlines()[1:]
        groups = [(line.split()[1], line.split()[3]) for line in lines]
        listening = [protocol for protocol, group in groups if int(group, 16)]
        if listening.count("0") >= 2 and listening.count("12") >= 1:
            return
    pytest.fail("the monitors did not start")


def listen(monitor: subprocess.Popen[str], until: str | None) -> list[str]:
    """Return the output of a monitor up to the marker, or all of it without one."""
    assert monitor.stdout is not None
    lines: list[str] = []
    with monitor:
        if until is not None:
            for line in monitor.stdout:
                lines.append(line.strip())
                if until in line:
                    break
        monitor.terminate()
        if until is None:
            lines += [line.strip() for line in monitor.stdout]
    return lines


def test_objects_of_other_programs_are_kept(node: Box, state_file: Path, held: ExitStack) -> None:
    """Upstream's table and rule, iptables of both kinds, other nft tables, and routes in other tables stay."""
    node.sh(
        """
        sysctl -qw net.ipv4.conf.cni0.forwarding=0
        ip route add 10.9.0.0/16 via 10.0.0.9 table 9027
        ip rule add fwmark 0x40 lookup 9027 pref 100
        ip route add 10.244.2.0/24 via 10.0.0.7 proto bird
        ip route add 10.245.0.0/16 via 10.0.0.7 table 77
        ip rule add from 10.0.0.5 lookup 77 pref 98
        ip -6 rule add from fd00:10::5 lookup 77 pref 101
        iptables-nft -t nat -A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.1.0/24 -j MASQUERADE
        iptables-legacy -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
        ip6tables-legacy -t mangle -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
        nft add table inet ravenvpn-of-another
        nft 'add chain inet ravenvpn-of-another c { type nat hook postrouting priority 90; }'
        """
    )
    before = node.dump()

    held.enter_context(node.tun())
    assert node.call(apply, state_file, lan_gateway()).failed == ()

    # The diff may attribute a closing brace of an nft listing to any block, so its position has no meaning.
    gone = [line for line in changes(before, node.dump()) if line.startswith("-") and line[1:].strip() != "}"]
    assert gone == ["-ipv4/conf/cni0/forwarding:0"]
    assert node.call(cleanup, state_file).failed == ()
    assert changes(before, node.dump()) == []


def test_foreign_objects_in_our_tables_are_removed(gateway_node: Box, state_file: Path) -> None:
    """A route or chain in ravenvpn's tables that no plan contains could leak packets or bind flows."""
    gateway_node.call(apply, state_file, gateway())
    clean = gateway_node.dump()
    gateway_node.sh(
        """
        ip route replace 10.244.2.0/24 via 10.0.0.7 table 9127
        ip route add 10.244.2.128/25 via 10.0.0.7 table 9127
        ip route add 10.246.0.0/16 table 9127 nexthop via 10.0.0.7 nexthop via 10.0.0.8
        ip route add blackhole 10.247.0.0/16 table 9129
        ip -6 route add fd00:2:0:0:1::/80 via fd00:10::7 table 9127
        ip route add 10.248.0.0/16 via 10.0.0.7 table 55 proto 157
        ip rule add pref 50 lookup 55 proto 157
        ip rule add pref 51 fwmark 3 lookup 55 proto 157
        nft 'add rule inet ravenvpn leaving counter accept'
        nft 'add element inet ravenvpn local4 { 10.99.0.0/16 }'
        ip addr add 192.0.2.7/32 dev ravenvpn0
        ip link set ravenvpn0 mtu 1300
        """
    )

    result = gateway_node.call(apply, state_file, gateway())

    assert result.failed == ()
    assert changes(clean, gateway_node.dump()) == []
    assert gateway_node.call(apply, state_file, gateway()) == ApplyResult()


def test_a_host_with_ipv6_disabled_by_sysctl(node: Box, state_file: Path, held: ExitStack) -> None:
    """ravenvpn0 has IPv6 nevertheless: the plan sets disable_ipv6=0 on it alone."""
    node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    before = node.dump()
    held.enter_context(node.tun())
    wanted = gateway(families=(4,))
    tunnel = gateway().addresses
    mesh = Route(ip_network("fdaa::/48"), TABLE_REMOTE, device="ravenvpn0", source=tunnel[0].address.ip, mtu=1420)
    wanted = replace(
        wanted,
        addresses=tunnel,
        routes=(*wanted.routes, mesh),
        sysctls=(*wanted.sysctls, Sysctl("net/ipv6/conf/ravenvpn0/disable_ipv6", "0")),
    )

    result = node.call(apply, state_file, wanted)

    assert result.failed == ()
    assert "fdaa::/48 dev ravenvpn0" in node.sh("ip -6 route show table 9127")
    assert node.sh("sysctl -n net.ipv6.conf.eth0.disable_ipv6").strip() == "1"
    assert node.call(apply, state_file, wanted) == ApplyResult()
    assert node.call(cleanup, state_file).failed == ()
    assert changes(before, node.dump()) == []


def test_a_refused_operation_does_not_stop_the_others(gateway_node: Box, state_file: Path) -> None:
    """A route with an absent source is refused and reported; all other routes are added."""
    wanted = gateway()
    absent = replace(wanted.routes[0], source=ip_address("10.244.1.77"))
    wanted = replace(wanted, routes=(absent, *wanted.routes[1:]))

    result = gateway_node.call(apply, state_file, wanted)

    (failure,) = result.failed
    assert str(failure) == (
        "add route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.77 mtu 1420: Invalid prefsrc address"
        " [EINVAL] (the plan names an address or device that this host does not have now)"
    )
    routes = gateway_node.sh("ip route show table 9127")
    assert "10.244.3.0/24 dev ravenvpn0" in routes
    # The prefix of the refused route is unreachable instead of following the default route.
    assert "unreachable 10.244.2.0/24" in routes


def test_an_unreadable_sysctl_journal_does_not_stop_the_rest(gateway_node: Box, state_file: Path) -> None:
    gateway_node.sh("sysctl -qw net.ipv4.conf.cni0.forwarding=0")
    state_file.write_text("not what we wrote")

    result = gateway_node.call(apply, state_file, gateway())

    assert [failure.error.subject for failure in result.failed] == [str(state_file), str(state_file)]
    assert "10.244.2.0/24 dev ravenvpn0" in gateway_node.sh("ip route show table 9127")
    # A sysctl whose original value cannot be recorded is not changed.
    assert gateway_node.sh("sysctl -n net.ipv4.conf.cni0.forwarding").strip() == "0"


def test_without_the_tunnel_device_traffic_is_refused(node: Box, state_file: Path) -> None:
    """The agent was killed and its TUN with it, or it has not opened the TUN yet."""
    result = node.call(apply, state_file, gateway())

    assert {format_object(failure.operation.target) for failure in result.failed if failure.operation} >= {
        "device ravenvpn0 mtu 1420 up",
        "route 10.244.2.0/24 table 9127 dev ravenvpn0 src 10.244.1.1 mtu 1420",
    }
    assert "dev eth0" not in node.sh("ip route get 10.244.2.9 || true")
    assert "dev eth0" not in node.sh("ip -6 route get fd00:2::9 || true")


def test_without_nft_all_but_the_filter_is_applied(gateway_node: Box, state_file: Path, tmp_path: Path) -> None:
    """The error names the package to install. Routes are added nevertheless."""
    script = tmp_path / "without_nft.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom node.applying import apply\nfrom node.worlds import gateway\n"
        "print(*apply(Path(sys.argv[1]), gateway()).failed, sep='\\n')\n"
    )
    # A mount namespace without nft, as on a host that never installed it.
    hidden = 'mount -t tmpfs none /usr/sbin; exec "$@"'
    program = [sys.executable, str(script), str(state_file)]
    done = subprocess.run(
        ["ip", "netns", "exec", gateway_node.name, "unshare", "-m", "sh", "-ec", hidden, "sh", *program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}:{Path(__file__).parent.parent.parent}"},
    )

    assert done.stdout.strip() == "add nft: nft is not installed (apt-get install nftables)"
    assert "10.244.2.0/24 dev ravenvpn0" in gateway_node.sh("ip route show table 9127")
