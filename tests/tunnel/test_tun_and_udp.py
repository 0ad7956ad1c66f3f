"""The UDP sockets and the TUN device: options, errors with a remedy, adopted descriptors, no descriptor left open."""

import os
import socket
import subprocess
import sys

import pytest

from ravenvpn.tunnel.linux import udp


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def holder():
    """A UDP port that is in use in IPv6 only."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as held:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind(("::", 0))
        yield held


def test_both_families_listen_on_one_random_port():
    sockets = udp.bind(0)
    assert sockets.v4 is not None
    assert sockets.v6 is not None
    assert sockets.port > 0
    assert sockets.v4.getsockname()[1] == sockets.v6.getsockname()[1] == sockets.port
    sockets.close()


def test_udp_sockets_have_the_options_that_the_data_plane_needs():
    sockets = udp.bind(0)
    v4, v6 = sockets.v4, sockets.v6
    assert v4 is not None
    assert v6 is not None
    assert v4.getsockopt(socket.IPPROTO_IP, udp.IP_PKTINFO) == 1
    assert v4.getsockopt(socket.IPPROTO_IP, udp.IP_RECVTOS) == 1
    assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) == 1
    assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS) == 1
    assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    for one, level, option in ((v4, socket.IPPROTO_IP, 10), (v6, socket.IPPROTO_IPV6, 23)):
        assert one.getsockopt(level, option) == 0  # IP_PMTUDISC_DONT: may be fragmented
        assert one.getsockopt(socket.SOL_SOCKET, udp.SO_RXQ_OVFL) == 1
        assert not one.getblocking()
        assert not one.get_inheritable()
    sockets.close()


def test_a_port_held_in_one_family_is_in_use(holder):
    before = descriptors()
    port = holder.getsockname()[1]
    with pytest.raises(udp.PortInUseError, match=f"UDP port {port} is in use"):
        udp.bind(port)
    assert descriptors() == before


def test_a_port_that_another_socket_of_ours_holds_is_in_use():
    sockets = udp.bind(0)
    with pytest.raises(udp.PortInUseError):
        udp.bind(sockets.port)
    sockets.close()


@pytest.mark.root
@pytest.mark.needs("setpriv")
def test_a_port_that_is_not_permitted_is_refused(netns):
    unprivileged = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]
    done = subprocess.run(
        ["ip", "netns", "exec", netns(), *unprivileged, sys.executable, "-c",
         "from ravenvpn.tunnel.linux import udp; udp.bind(1)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "HostError: binding UDP port 1 is not permitted" in done.stderr


IN_NAMESPACE = """
import socket
from ravenvpn.tunnel.linux import udp
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
    file.write("50000 50003")
held = []
for port in (50000, 50001, 50002):
    one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(("::", port))
    held.append(one)
found = set()
for _ in range(20):
    sockets = udp.bind(0)
    found.add(sockets.port)
    sockets.close()
print(found)
"""


@pytest.mark.root
def test_a_random_port_that_is_taken_in_the_other_family_is_drawn_again(netns):
    """Three of four random ports are in use in IPv6. The fourth is bound, whatever order the kernel draws them in."""
    done = subprocess.run(
        ["ip", "netns", "exec", netns(), sys.executable, "-c", IN_NAMESPACE],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{50003}\n"


WITHOUT_TUN = "from ravenvpn.tunnel.linux.tun import Tun; Tun.open('rvx')"


@pytest.mark.root
@pytest.mark.needs("unshare", "mount")
def test_a_missing_tun_device_node_is_named(netns):
    """Runs in a mount namespace where /dev/net is empty."""
    done = subprocess.run(
        ["ip", "netns", "exec", netns(), "unshare", "-m", "sh", "-c",
         'mount -t tmpfs none /dev/net && exec "$0" -c "$1"', sys.executable, WITHOUT_TUN],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "HostError: /dev/net/tun is missing: load the module (modprobe tun)" in done.stderr


TUN_FACTS = """
import os
from ravenvpn.tunnel.linux.tun import Tun
whole, plain = Tun.open("rvx"), Tun.open("rvy", tso=False, uso=False)
print(whole.name, os.get_blocking(whole.fd), os.get_inheritable(whole.fd), whole.tso, whole.is_up, whole.exists)
print(plain.tso, plain.uso)
plain.set_offloads(tso=True, uso=False)
print(plain.tso, plain.uso)
whole.mtu = 1300
whole.set_up()
print(whole.mtu, whole.is_up)
os.system("ip link set rvx down && ip link set rvx name rvz")
print(whole.name, whole.is_up)
os.system("ip link delete rvz")
print(whole.exists, whole.is_up)
whole.close()
whole.close()
"""


@pytest.mark.root
def test_a_tun_device_reports_its_current_name_mtu_offloads_and_state(netns):
    done = subprocess.run(
        ["ip", "netns", "exec", netns(), sys.executable, "-c", TUN_FACTS], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "rvx False False True False True",
        "False False",
        "True False",
        "1300 True",
        "rvz False",
        "False False",
    ]


ADOPTION = """
import os, socket
from ravenvpn.errors import HostError
from ravenvpn.tunnel.linux.tun import Tun
before = Tun.open("rvx", tso=False, uso=False)
before.mtu = 1300
os.system("ip address add 192.0.2.1/24 dev rvx && ip link set rvx up")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"waits", ("192.0.2.2", 9))
kept = os.dup(before.fd)
before.close()
os.set_blocking(kept, True)
after = Tun.adopt(kept)
print(after.name, after.mtu, after.is_up, after.exists, after.fd == kept, after.tso)
print(os.get_blocking(after.fd), os.get_inheritable(after.fd))
frames = []
while True:
    try:
        frames.append(os.read(after.fd, 2000))
    except BlockingIOError:
        break
print([frame[-5:] for frame in frames if frame.endswith(b"waits")])
null, unattached = os.open("/dev/null", os.O_RDWR), os.open("/dev/net/tun", os.O_RDWR)
for wrong in (null, unattached):
    try:
        Tun.adopt(wrong)
    except HostError:
        os.close(wrong)
        print("refused and still open")
after.close()
print(os.path.exists("/sys/class/net/rvx"))
"""


@pytest.mark.root
def test_an_adopted_tun_device_keeps_its_name_mtu_state_and_waiting_packets(netns):
    done = subprocess.run(
        ["ip", "netns", "exec", netns(), sys.executable, "-c", ADOPTION], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "rvx 1300 True True True True",
        "False False",
        "[b'waits']",
        "refused and still open",
        "refused and still open",
        "False",
    ]
