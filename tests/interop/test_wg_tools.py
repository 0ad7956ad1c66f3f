"""Commands of an operator: wg in all its forms, and wg-quick; compared with wireguard-go."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interop_rig import INNER, OUTER, PORTS, End, Host, Pair, namespaces, ours, running, until, wg, wire

from ravenvpn.crypto.keys import PrivateKey

pytestmark = [pytest.mark.root, pytest.mark.wireguard_go, pytest.mark.needs("wg", "ping")]

FIRST, SECOND = (str(PrivateKey.generate(os.urandom).public) for _ in range(2))
PRIVATE = PrivateKey.generate(os.urandom).to_base64()


@pytest.fixture
def fresh(wireguard_go: Path) -> Iterator[Pair]:
    """Two ends on their own hosts, not configured, with the devices down."""
    with namespaces(2) as (a, b):
        wire(a, b, "eth0", ("192.0.2.1/24", "192.0.2.2/24"))
        us, them = End(a, ours(), "rvu"), End(b, [wireguard_go, "-f"], "rvw")
        with running(us, them):
            us.launch()
            them.launch()
            yield Pair(us, them)


def configuration(end: End) -> list[list[str]]:
    """`wg showconf`, independent of the order of peers and allowed IPs."""
    sections = []
    for section in end.wg("showconf").strip().split("\n\n"):
        lines = section.splitlines()
        sections.append([", ".join(sorted(line.split(", "))) if "AllowedIPs" in line else line for line in lines])
    return sorted(sections)


BOTH_AGREE = {
    "private key": ["private-key /dev/stdin"],
    "a peer": [f"peer {FIRST}"],
    "port and mark": ["listen-port 4501 fwmark 0x1234"],
    "mark off again": ["fwmark 77", "fwmark off"],
    "everything about a peer": [
        f"peer {FIRST} endpoint 192.0.2.77:1 persistent-keepalive 25 allowed-ips 10.0.0.0/8,fd00::/8"
    ],
    "an IPv6 endpoint": [f"peer {FIRST} endpoint [2001:db8::77]:1"],
    "a link-local endpoint": [f"peer {FIRST} endpoint [fe80::1%eth0]:1"],
    "keepalive off": [f"peer {FIRST} persistent-keepalive 25", f"peer {FIRST} persistent-keepalive off"],
    "preshared key": [f"peer {FIRST} preshared-key /dev/stdin"],
    "preshared key off": [f"peer {FIRST} preshared-key /dev/stdin", f"peer {FIRST} preshared-key /dev/null"],
    "an allowed IP that moves": [
        f"peer {FIRST} allowed-ips 10.0.0.0/8,10.1.0.0/16",
        f"peer {SECOND} allowed-ips 10.1.0.0/16",
    ],
    "allowed IPs replaced": [f"peer {FIRST} allowed-ips 10.0.0.0/8", f"peer {FIRST} allowed-ips 10.9.0.0/16"],
    "no allowed IPs": [f"peer {FIRST} allowed-ips 10.0.0.0/8", f'peer {FIRST} allowed-ips ""'],
    "host bits": [f"peer {FIRST} allowed-ips 10.1.2.3/8,fd00::7/16"],
    "everything": [f"peer {FIRST} allowed-ips 0.0.0.0/0,::/0"],
    "a peer removed": [f"peer {FIRST}", f"peer {SECOND}", f"peer {FIRST} remove"],
    "a peer that is not there removed": [f"peer {FIRST} remove"],
}


@pytest.mark.parametrize("commands", BOTH_AGREE.values(), ids=BOTH_AGREE)
def test_wg_set_leaves_both_with_the_same_configuration(pair: Pair, commands: list[str]):
    for end, port in zip(pair, (4501, 4502), strict=True):
        end.setconf(f"[Interface]\nListenPort = {port}\n")
        for command in commands:
            words = [word.replace('""', "") for word in command.replace("4501", str(port)).split(" ")]
            secret = PRIVATE if "private-key" in words else SECOND
            end.wg("set", *words, stdin=secret + "\n")
    us, them = configuration(pair.us), configuration(pair.them)
    assert us == [[line.replace("4502", "4501") for line in section] for section in them]
    for end in pair:
        end.wg("set", "fwmark", "0")


def test_setconf_addconf_and_syncconf_leave_both_with_the_same(pair: Pair):
    base = f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 4500\nFwMark = 0\n"
    one = f"[Peer]\nPublicKey = {FIRST}\nAllowedIPs = 10.1.0.0/16\nEndpoint = 192.0.2.1:7\n"
    two = f"[Peer]\nPublicKey = {SECOND}\nPresharedKey = {FIRST}\nAllowedIPs = 10.2.0.0/16\nPersistentKeepalive = 9\n"
    steps = [
        ("setconf", base + one, 1),
        ("addconf", two, 2),
        ("syncconf", base + two, 1),
        ("setconf", base + one + two, 2),
        ("syncconf", base, 0),
    ]
    for verb, text, peers in steps:
        for end in pair:
            end.wg(verb, "/dev/stdin", stdin=text)
            assert len(end.wg("show", "peers").split()) == peers
        assert configuration(pair.us) == configuration(pair.them)


def test_the_output_of_showconf_can_be_set_again(pair: Pair):
    us = pair.us
    us.setconf(
        f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 4500\nFwMark = 9\n"
        f"[Peer]\nPublicKey = {FIRST}\nPresharedKey = {SECOND}\nAllowedIPs = 10.0.0.0/8, fd00::/8\n"
        "Endpoint = [2001:db8::9]:4500\nPersistentKeepalive = 25\n"
    )
    shown = us.wg("showconf")
    us.setconf("[Interface]\nListenPort = 4501\nFwMark = 0\n")
    us.setconf(shown)
    assert us.wg("showconf") == shown
    us.wg("set", "fwmark", "0")


def test_syncconf_leaves_a_running_session_alone(pair: Pair, join: Callable[..., None]):
    join(pair)
    us, them = pair
    us.host.pings(INNER[4][1])
    before, received = us.handshake(), us.show("transfer")
    us.wg("syncconf", "/dev/stdin", stdin=us.wg("showconf"))
    assert us.handshake() == before
    assert us.show("transfer") == received
    us.host.run("ping", "-n", "-c", "1", INNER[4][1])
    assert them.handshake() == before


def test_every_field_of_wg_show(pair: Pair, join: Callable[..., None]):
    psk = wg("genpsk")
    join(pair, psk=psk, keepalive=25)
    us, them = pair
    us.wg("set", "fwmark", "0x77")
    us.host.pings(INNER[4][1])
    interface, peer = (line.split("\t") for line in us.wg("show", "dump").splitlines())
    assert interface == [us.private, us.public, str(PORTS[0]), "0x77"]
    public, shown_psk, endpoint, allowed, handshake, rx, tx, keepalive = peer
    assert (public, shown_psk, endpoint) == (them.public, psk, f"{OUTER[4][1]}:{PORTS[1]}")
    assert set(allowed.split(",")) == {f"{INNER[4][1]}/32", f"{INNER[6][1]}/128"}
    assert abs(int(handshake) - time.time()) < 20
    assert int(rx) >= 92
    assert int(tx) >= 148
    assert keepalive == "25"
    human = us.host.run("wg", "show", us.device)
    for line in ("interface:", "public key:", "private key: (hidden)", f"listening port: {PORTS[0]}", "fwmark: 0x77"):
        assert line in human
    for line in ("preshared key: (hidden)", "endpoint:", "latest handshake:", "transfer:", "every 25 seconds"):
        assert line in human
    assert us.device in us.host.run("wg", "show", "interfaces").split()
    us.wg("set", "fwmark", "0")


def raw(end: End, request: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(end.socket))
        client.sendall(request.encode())
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while got := client.recv(65536):
            answer += got
        return answer.decode()


ANSWERED_ALIKE = [
    "set=1\n\n",
    "set=1\nlisten_port=65536\n\n",
    "set=1\nlisten_port=x\n\n",
    "set=1\nfwmark=4294967296\n\n",
    "set=1\nprivate_key=12\n\n",
    "set=1\nreplace_peers=false\n\n",
    "set=1\nunknown=1\n\n",
    "set=1\nnonsense\n\n",
    f"set=1\npublic_key={'11' * 32}\nendpoint=example.com:1\n\n",
    f"set=1\npublic_key={'11' * 32}\nallowed_ip=10.0.0.0/33\n\n",
    f"set=1\npublic_key={'11' * 32}\nallowed_ip=10.0.0.0\n\n",
    f"set=1\npublic_key={'11' * 32}\nprotocol_version=2\n\n",
    f"set=1\npublic_key={'11' * 32}\npersistent_keepalive_interval=65536\n\n",
    f"set=1\npublic_key={'11' * 32}\nlisten_port=1\n\n",
    f"set=1\npublic_key={'11' * 32}\nupdate_only=true\nallowed_ip=10.0.0.0/8\n\n",
    f"set=1\npublic_key={'11' * 31}\n\n",
    f"set=1\npublic_key={'11' * 32}\nremove=true\nprotocol_version=1\n\n",
    "get=2\n\n",
    "hello\n",
]


@pytest.mark.parametrize("request_text", ANSWERED_ALIKE)
def test_errors_are_answered_with_the_errno_of_wireguard_go(pair: Pair, request_text: str):
    us, them = (raw(end, request_text) for end in pair)
    # After a mistake wireguard-go reads on in the middle of the request, so only its first answer counts.
    assert us.split("\n")[0] == them.split("\n")[0]
    for end in pair:
        raw(end, "set=1\nreplace_peers=true\n\n")


def test_a_set_with_an_error_changes_nothing(pair: Pair):
    pair.us.setconf(f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 4500\n")
    before = pair.us.wg("showconf")
    key = "11" * 32
    assert raw(pair.us, f"set=1\nlisten_port=4600\nfwmark=8\npublic_key={key}\nremove=perhaps\n\n") == "errno=-22\n\n"
    assert pair.us.wg("showconf") == before


def test_a_port_in_use_is_refused_and_nothing_changes(pair: Pair):
    us = pair.us
    us.setconf(f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 4500\n")
    with namespaced_socket(us.host, 4567):
        assert "Address already in use" in us.host.fails("wg", "set", us.device, "listen-port", "4567", "peer", FIRST)
    assert us.wg("show", "listen-port").strip() == "4500"
    assert us.wg("show", "peers") == ""


def namespaced_socket(host: Host, port: int) -> subprocess.Popen[str]:
    """Have a process hold a UDP port of the host until the with-block ends."""
    holder = subprocess.Popen(
        host.command("/usr/bin/python3", "-c", HOLD_PORT, str(port)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


HOLD_PORT = """
import socket, sys
held = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
held.bind(("::", int(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_peer_with_our_own_key_is_skipped_as_by_wireguard_go(pair: Pair):
    public = wg("pubkey", stdin=PRIVATE)
    for end in pair:
        end.setconf(
            f"[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {public}\n[Peer]\nPublicKey = {FIRST}\n"
        )
        assert end.wg("show", "peers").split() == [FIRST]
        # And a peer whose key becomes ours goes.
        other = wg("genkey")
        end.wg("set", "peer", wg("pubkey", stdin=other))
        end.wg("set", "private-key", "/dev/stdin", stdin=other)
        assert end.wg("show", "peers").split() == [FIRST]


def test_a_thousand_peers_are_set_and_shown(pair: Pair):
    peers = "".join(
        f"public_key={number.to_bytes(32, 'big').hex()}\nallowed_ip=10.{number >> 8}.{number & 255}.0/24\n"
        for number in range(1, 1001)
    )
    assert raw(pair.us, f"set=1\nreplace_peers=true\n{peers}\n") == "errno=0\n\n"
    assert len(pair.us.wg("show", "allowed-ips").splitlines()) == 1000
    assert raw(pair.us, "set=1\nreplace_peers=true\n\n") == "errno=0\n\n"
    assert pair.us.wg("show", "peers") == ""


def test_an_interface_that_is_down_sends_nothing(fresh: Pair, join: Callable[..., None]):
    """As with the kernel's WireGuard: nothing is sent or answered before `ip link set up`, and at once after it."""
    us, them = fresh
    join(fresh, keepalive=25)
    time.sleep(0.3)
    assert us.show("transfer") == "0\t0"
    them.up(f"{INNER[4][1]}/24")
    us.up(f"{INNER[4][0]}/24")
    us.host.pings(INNER[4][1])
    us.host.ip("link", "set", us.device, "down")
    until(lambda: not them.host.reaches(INNER[4][0]), "a device that is down answers no more")
    counted = us.show("transfer")
    assert not them.host.reaches(INNER[4][0])
    assert us.show("transfer") == counted
    us.host.ip("link", "set", us.device, "up")
    us.host.pings(INNER[4][1])


def test_the_private_key_is_clamped_as_wg_shows_it(pair: Pair):
    for end in pair:
        end.wg("set", "private-key", "/dev/stdin", stdin="/" * 42 + "8=\n")
    assert pair.us.wg("show", "private-key") == pair.them.wg("show", "private-key")


WG_QUICK = Path(sysconfig.get_path("scripts")) / "ravenvpn-tun"


@pytest.mark.needs("wg-quick")
def test_wg_quick_brings_the_device_up_and_down(wireguard_go: Path, tmp_path: Path):
    if Path("/sys/module/wireguard").exists():
        pytest.skip("NOT RUN: THE KERNEL MODULE wireguard IS LOADED, AND wg-quick WOULD USE IT")
    with namespaces(2) as (a, b):
        wire(a, b, "eth0", ("192.0.2.1/24", "192.0.2.2/24"))
        us, them = End(a, [], "rvq"), End(b, [wireguard_go, "-f"], "rvw")
        path = tmp_path / f"{us.device}.conf"
        path.write_text(
            f"[Interface]\nPrivateKey = {us.private}\nListenPort = {PORTS[0]}\nMTU = 1380\n"
            f"Address = {INNER[4][0]}/24, {INNER[6][0]}/64\n"
            f"[Peer]\nPublicKey = {them.public}\nEndpoint = 192.0.2.2:{PORTS[1]}\n"
            f"AllowedIPs = {INNER[4][1]}/32, {INNER[6][1]}/128, 10.77.0.0/16\n"
        )
        path.chmod(0o600)
        quick = ["env", f"WG_QUICK_USERSPACE_IMPLEMENTATION={WG_QUICK}", "wg-quick"]
        with running(us, them):
            them.start(f"{INNER[4][1]}/24", f"{INNER[6][1]}/64")
            them.configure(port=PORTS[1], peer=us, allowed=f"{INNER[4][0]}/32, {INNER[6][0]}/128")
            began = time.monotonic()
            a.run(*quick, "up", path)
            assert time.monotonic() - began < 10
            try:
                a.pings(INNER[4][1])
                a.pings(INNER[6][1])
                assert "mtu 1380" in a.run("ip", "link", "show", us.device)
                assert f"dev {us.device}" in a.run("ip", "route", "get", "10.77.1.1")
                assert stat.S_IMODE(us.socket.stat().st_mode) == 0o600
                pid = pid_of(us.device)
                assert os.getsid(pid) == pid
                assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
            finally:
                a.run(*quick, "down", path)
            until(lambda: not us.socket.exists(), "the socket goes with the device", within=2)
            until(lambda: ended(pid), "the process ends when its device is deleted")
            # And once more at once, as after a change of its file.
            a.run(*quick, "up", path)
            a.pings(INNER[4][1])
            os.kill(pid_of(us.device), signal.SIGTERM)
            until(lambda: not us.socket.exists(), "SIGTERM removes the socket")
            assert us.device not in a.run("ip", "link")


def ended(pid: int) -> bool:
    """Return whether the process ended; it may be a zombie until its new parent reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def pid_of(device: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if device.encode() in words and any(b"ravenvpn-tun" in word for word in words):
                return int(entry.name)
    raise AssertionError(f"no process for {device}")
