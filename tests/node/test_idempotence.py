"""Idempotence: applying twice writes nothing, and applying after an interruption converges."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from node.applying import apply, cleanup
from node.box import Box, changes
from node.worlds import HOST, lan_gateway, planned

from ravenvpn.mesh.hoststate import HostState
from ravenvpn.node.apply import Host
from ravenvpn.node.execute import Executor
from ravenvpn.node.host_diff import required_operations
from ravenvpn.node.links import LinkClient
from ravenvpn.node.netlink import NetlinkSocket
from ravenvpn.node.sysctl import SysctlJournal

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge", "sysctl", "iptables-legacy")]

TESTS = Path(__file__).parent.parent
PATHS = [str(TESTS), str(TESTS.parent)]
ROLES = pytest.mark.parametrize("role", ["gateway", "standby", "plain"])

# Trace lines that are writes: a netlink message that creates, changes or deletes, or a file opened for writing.
WRITE = re.compile(
    r"nlmsg_type=RTM_(NEW|DEL|SET)|NFNL_MSG_BATCH_BEGIN|IPCTNL_MSG_CT_(NEW|DELETE)"
    r'|openat\(.*"/(proc|sys)/.*O_(WRONLY|RDWR)|openat\(.*sysctls.*O_(WRONLY|RDWR)|(rename|unlink)\w*\('
)

ONCE = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from node.worlds import planned
from ravenvpn.node.apply import Host

with Host(Path(sys.argv[3])) as host:
    result = host.apply(planned(sys.argv[4]))
print(len(result.changed), [str(failure) for failure in result.failed])
"""


@pytest.fixture
def node(box: Callable[[], Box]) -> Box:
    one = box()
    one.sh(HOST + "sysctl -qw net.ipv4.conf.cni0.forwarding=0")
    return one


def traced(node: Box, state_file: Path, role: str) -> tuple[str, list[str]]:
    """Apply in a process of its own. Return its output and the writes that strace recorded."""
    trace = state_file.with_name("trace")
    calls = "trace=openat,rename,unlink,sendto,sendmsg"
    watching = ["strace", "-f", "-qq", "-s", "500", "-e", calls, "-o", str(trace)]
    program = [sys.executable, "-B", "-c", ONCE, *PATHS, str(state_file), role]
    output = subprocess.run(
        ["ip", "netns", "exec", node.name, *watching, *program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.strip()
    return output, [line for line in trace.read_text().splitlines() if WRITE.search(line)]


@pytest.mark.needs("strace")
@ROLES
def test_the_second_apply_writes_nothing(node: Box, state_file: Path, held: ExitStack, role: str) -> None:
    """strace sees no write through rtnetlink, to nf_tables, conntrack, a sysctl or the journal."""
    if role != "plain":
        held.enter_context(node.tun())

    output, writes = traced(node, state_file, role)

    assert output.endswith(" []")
    for sight in ("RTM_NEWROUTE", "RTM_NEWRULE", "BATCH_BEGIN", "conf/raven0/rp_filter", "rename("):
        assert [line for line in writes if sight in line] != [], f"strace does not see {sight}"
    assert traced(node, state_file, role) == ("0 []", [])


def test_an_interruption_after_any_operation_converges(node: Box, state_file: Path) -> None:
    """Set-up and tear-down are interrupted at every fifth operation; apply then completes, cleanup leaves nothing."""
    before = node.dump()

    def cut(wanted: HostState, count: int) -> int:
        with Host(state_file) as host:
            made = required_operations(host.observe(wanted), wanted)
        with LinkClient() as links, closing(NetlinkSocket()) as netlink:
            Executor(links, netlink, SysctlJournal(state_file), lambda _: None).run(made[:count])
        return len(made)

    tun = node.tun()
    node.call(apply, state_file, lan_gateway())
    whole = node.dump()
    node.call(cleanup, state_file)
    tun.close()
    count, going_down = 0, 0
    while True:
        tun = node.tun()
        total = node.call(cut, lan_gateway(), count)
        assert node.call(apply, state_file, lan_gateway()).failed == ()
        assert changes(whole, node.dump()) == [], f"coming up, cut after {count}"
        going_down = max(going_down, node.call(cut, HostState(), count))
        node.call(cleanup, state_file)
        tun.close()
        assert changes(before, node.dump()) == [], f"going down, cut after {count}"
        if count > max(total, going_down):
            break
        count += 5
    assert count > 30


KILLED = """
import os, random, signal, sys, time
from contextlib import ExitStack
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from node.applying import change_host
from node.box import open_tun
from node.worlds import planned, remote_routes
from dataclasses import replace
from ravenvpn.node.apply import Host

state_file, role, chance = Path(sys.argv[3]), sys.argv[4], random.Random(int(sys.argv[5]))
small = planned(role)
device = "raven0" if role == "plain" else "ravenvpn0"
large = replace(small, routes=(*small.routes, *remote_routes(*(f"11.0.{n}.0/24" for n in range(200)), device=device)))


def tun():
    return open_tun() if role != "plain" else None


print("ready", flush=True)
for line in sys.stdin:
    device = tun()
    child = os.fork()
    if not child:
        with Host(state_file) as host:
            while True:
                host.apply(large)
                host.apply(small)
                change_host(host, small, large)
                host.cleanup()
                device = tun()
    os.setpgid(child, child)
    time.sleep(chance.uniform(0.001, 0.15))
    os.killpg(child, signal.SIGKILL)  # and an nft under way: it would hold the TUN, and write, a moment longer
    os.waitpid(child, 0)
    if device:
        device.close()
    print("killed", flush=True)
"""


@ROLES
@pytest.mark.parametrize("kills", [pytest.param(8), pytest.param(50, marks=pytest.mark.soak)])
def test_a_kill_at_any_instant_converges(node: Box, state_file: Path, role: str, kills: int) -> None:
    """kill -9 during applies, deltas and cleanups, followed by a start and a cleanup."""
    before = node.dump()

    def start() -> ExitStack:
        devices = ExitStack()
        if role != "plain":
            devices.enter_context(node.tun())
        assert node.call(apply, state_file, planned(role)).failed == ()
        return devices

    with start():
        whole = node.dump()
        node.call(cleanup, state_file)
    seed = random.randrange(1 << 30)
    victim = subprocess.Popen(
        ["ip", "netns", "exec", node.name, sys.executable, "-c", KILLED, *PATHS, str(state_file), role, str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert victim.stdin is not None
    assert victim.stdout is not None
    with victim:
        assert victim.stdout.readline() == "ready\n"
        for turn in range(kills):
            print("go", file=victim.stdin, flush=True)
            assert victim.stdout.readline() == "killed\n"
            with start():
                assert changes(whole, node.dump()) == [], f"seed {seed}, kill {turn}"
                assert node.call(cleanup, state_file).failed == ()
            if turn % 5 == 4:
                assert changes(before, node.dump()) == [], f"seed {seed}, kill {turn}"
        victim.stdin.close()
        victim.wait(10)
