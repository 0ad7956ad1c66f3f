"""Capabilities that applying needs, errors without them, and settings of other programs that stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from node.box import Box, changes
from node.worlds import HOST, planned

from ravenvpn.node.apply import ApplyResult, Host

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge", "setpriv", "unshare", "sysctl", "iptables-legacy")]

TESTS = Path(__file__).parent.parent
ROLES = pytest.mark.parametrize("role", ["gateway", "standby", "plain"])

# Applies, applies again and cleans up, each with a new Host. Prints the changes and the failures.
PROGRAM = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from contextlib import ExitStack
from pathlib import Path
from node.box import open_tun
from node.worlds import planned
from ravenvpn.errors import HostError
from ravenvpn.node.apply import Host
from ravenvpn.node import conntrack

def once(work):
    with Host(Path(sys.argv[3])) as host:
        result = work(host)
    failed = [str(failure) for failure in result.failed]
    try:
        if result.flow_check is not None:
            conntrack.delete_misbound_flows(result.flow_check)
    except HostError as error:
        failed.append(str(error))
    return len(result.changed), failed

with ExitStack() as devices:
    role = sys.argv[4]
    wanted = planned(role)
    if role != "plain":
        devices.enter_context(open_tun())
    results = [once(lambda host: host.apply(wanted)), once(lambda host: host.apply(wanted))]
    results.append(once(lambda host: host.cleanup()))
print(json.dumps(results))
"""


def run(node: Box, state_file: Path, role: str, *before: str) -> list[list[object]]:
    program = [sys.executable, "-c", PROGRAM, str(TESTS), str(TESTS.parent), str(state_file), role]
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, *before, *program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[list[object]] = json.loads(done.stdout)
    return results


@pytest.fixture
def node(box: Callable[[], Box]) -> Box:
    one = box()
    one.sh(HOST + "sysctl -qw net.ipv4.conf.cni0.forwarding=0")
    return one


@ROLES
def test_cap_net_admin_is_enough(node: Box, state_file: Path, role: str) -> None:
    """No other capability is needed: the kernel loads modules itself, and no raw socket is opened."""
    before = node.dump()
    only = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", "--no-new-privs"]

    applied, again, cleaned = run(node, state_file, role, *only)

    assert applied[1] == []
    assert again == [0, []]
    assert cleaned[1] == []
    assert changes(before, node.dump()) == []


def test_without_cap_net_admin_every_failure_names_it(node: Box, state_file: Path) -> None:
    none = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]

    applied, _, _ = run(node, state_file, "plain", *none)

    assert applied[0] == 1  # cni0/forwarding: root may write sysctls by its user id
    assert isinstance(applied[1], list)
    assert (
        "add rule 99 IPv4 lookup 9127: Operation not permitted [EPERM] (run as root, or with CAP_NET_ADMIN)"
        in (applied[1])
    )
    # Objects on the device that could not be created fail too.
    others = [text for text in applied[1] if "CAP_NET_ADMIN" not in text]
    assert [text for text in others if "ENODEV" not in text and "/raven0/" not in text] == []


def test_read_only_sysctls_are_reported_and_do_not_stop_the_rest(node: Box, state_file: Path) -> None:
    """As in an unprivileged container. Sysctls that already have the right value are not written and do not fail."""
    sealed = ["unshare", "-m", "sh", "-ec", 'mount --bind -o ro /proc/sys /proc/sys; exec "$@"', "sh"]

    applied, _, _ = run(node, state_file, "plain", *sealed)

    refused = applied[1]
    assert isinstance(refused, list)
    assert (
        "change sysctl net/ipv4/conf/raven0/rp_filter=2: Read-only file system [EROFS] (read-only here"
        " (a container wants the host's /proc/sys/net at /host/proc/sys/net))"
    ) in refused
    assert [text for text in refused if "EROFS" not in text] == []
    node.sh(
        """
        cd /proc/sys/net
        for key in rp_filter=2 forwarding=1 send_redirects=0; do
            echo ${key#*=} > ipv4/conf/default/${key%=*}; echo ${key#*=} > ipv4/conf/cni0/${key%=*}
        done
        for where in default cni0; do echo 1 > ipv6/conf/$where/force_forwarding; done
        """
    )
    applied, again, cleaned = run(node, state_file, "plain", *sealed)
    assert [applied[1], again, cleaned[1]] == [[], [0, []], []]


@ROLES
def test_sysctls_of_foreign_devices_stay_strict(node: Box, state_file: Path, held: ExitStack, role: str) -> None:
    """Reverse-path filters are loose on ravenvpn's devices only. Of other devices only pod devices get forwarding."""
    node.sh(
        "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1"
    )
    node.sh("sysctl -qw net.ipv4.conf.cni0.rp_filter=1 net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    before = node.dump()
    if role != "plain":
        held.enter_context(node.tun())

    def apply() -> ApplyResult:
        with Host(state_file) as host:
            return host.apply(planned(role))

    assert node.call(apply).failed == ()

    settings = [line for line in changes(before, node.dump()) if "/conf/" in line]
    assert [line for line in settings if "/ravenvpn0/" not in line and "/raven0/" not in line] == [
        "-ipv4/conf/cni0/forwarding:0",
        "+ipv4/conf/cni0/forwarding:1",
        "-ipv6/conf/cni0/force_forwarding:0",
        "+ipv6/conf/cni0/force_forwarding:1",
    ]
