"""A lab is built within seconds, has the topology it was asked for, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ravenvpn.errors import HostError
from ravenvpn.lab import Lab, Nat, Region, kept_labs, sweep

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(
        Region("cloud", nodes=2, pods=2),
        Region("factory", nodes=2, pods=1, nat=Nat.PORT_RESTRICTED),
        Region("narrow", nodes=1, pods=0, mtu=1400),
        Region("masked", nodes=1, pods=1, masquerade=True),
        Region("far", nodes=1, pods=0, delay=0.02),
    ) as lab:
        yield lab


def machine() -> tuple[str, ...]:
    """Return the machine's own devices, addresses, routes and rules, which a lab must not change."""
    commands = ("-o link", "-o address", "-4 route show table all", "-6 route show table all", "rule", "-6 rule")
    outputs = [subprocess.check_output(["ip", *command.split()], text=True) for command in commands]
    # Lifetimes count down by themselves.
    return tuple(" ".join(word for word in output.split() if not word.endswith("sec")) for output in outputs)


def traces(prefix: str) -> list[str]:
    """Return the namespaces and records of a lab that exist."""
    namespaces = [str(path) for path in Path("/run/netns").glob(f"{prefix}*")]
    records = [str(path) for path in Path("/run/ravenvpn-lab").glob(f"{prefix}*")]
    return namespaces + records


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


# Topology.


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("cloud-1-pod-1", "cloud-1-pod-2"),  # over one bridge
        ("cloud-1-pod-1", "cloud-2-pod-2"),  # over the LAN
        ("factory-1-pod-1", "factory-2-pod-1"),
    ],
)
def test_pods_of_one_region_reach_each_other(lab: Lab, source: str, target: str):
    for address in (lab.pod(target).v4, lab.pod(target).v6):
        lab.pod(source).run(["ping", "-c", "1", "-W", "2", str(address)])


def test_pods_of_different_regions_do_not_reach_each_other(lab: Lab):
    """A lab has no tunnels: agents make them."""
    for address in (lab.pod("cloud-1-pod-1").v4, lab.pod("cloud-1-pod-1").v6):
        ping = lab.pod("factory-1-pod-1").run(["ping", "-c", "1", "-W", "0.3", str(address)], check=False)
        assert ping.returncode != 0


def test_nodes_reach_public_regions(lab: Lab):
    for address in (lab.node("cloud-2").v4, lab.node("cloud-2").v6):
        lab.node("factory-2").run(["ping", "-c", "1", "-W", "2", str(address)])


def test_a_narrow_uplink_reports_its_mtu(lab: Lab):
    cloud, narrow = lab.node("cloud-1"), lab.node("narrow-1")
    cloud.run(["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1372", str(narrow.v4)])  # 1372 + 28 = 1400
    refused = cloud.run(["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1373", str(narrow.v4)], check=False)
    assert "mtu = 1400" in refused.stdout


def test_a_delayed_uplink_has_its_delay_and_carries_bulk_tcp(lab: Lab):
    cloud, far = lab.node("cloud-1"), lab.node("far-1")
    for address in (far.v4, far.v6):
        output = cloud.run(["ping", "-c", "10", "-i", "0.01", "-W", "2", str(address)]).stdout
        times = [float(ms) for ms in re.findall(r"time=([0-9.]+)", output)]
        assert len(times) == 10
        assert min(times) >= 40
        assert min(times) < 80  # a busy machine adds to it

    sent = os.urandom(1 << 22)
    with cloud.socket(kind=socket.SOCK_STREAM) as listener, far.socket(kind=socket.SOCK_STREAM) as client:
        listener.bind((str(cloud.v4), 7002))
        listener.listen()
        client.connect((str(cloud.v4), 7002))
        server, _ = listener.accept()
        sender = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        sender.start()
        with server, server.makefile("rb") as stream:
            assert stream.read() == sent
        sender.join()


def test_a_masquerading_cni_replaces_the_source_of_pods_with_the_node(lab: Lab):
    cloud, masked = lab.node("cloud-1"), lab.node("masked-1")
    with cloud.socket() as server, masked.pods[0].socket() as client:
        server.bind((str(cloud.v4), 7000))
        server.settimeout(2)
        client.sendto(b"hello", (str(cloud.v4), 7000))
        assert server.recvfrom(100)[1][0] == str(masked.v4)


def test_a_node_has_its_own_files_and_host_name(lab: Lab):
    one, two = lab.node("cloud-1"), lab.node("cloud-2")
    for folder in ("/run/ravenvpn", "/var/run/wireguard", "/etc/ravenvpn", "/etc/wireguard", "/var/lib/ravenvpn"):
        one.write(f"{folder}/lab-test", "mine")
        assert one.read(f"{folder}/lab-test") == "mine"
        assert one.run(["cat", f"{folder}/lab-test"]).stdout == "mine"
        assert not two.path(f"{folder}/lab-test").exists()
        assert not Path(folder, "lab-test").exists()
    assert one.run(["hostname"]).stdout == "cloud-1\n"
    assert "root" in one.run(["cat", "/etc/passwd"]).stdout  # other files are the machine's


def test_a_capture_has_the_frames_that_passed_while_it_ran(lab: Lab):
    cloud, factory = lab.node("cloud-1"), lab.node("factory-1")
    with factory.socket() as client:
        client.sendto(b"before the capture", (str(cloud.v4), 7001))
        with lab.internet.capture("cloud", "udp port 7001") as seen:
            client.sendto(b"during the capture", (str(cloud.v4), 7001))
            factory.run(["ping", "-c", "1", str(cloud.v4)])
    assert seen.count(b"during the capture") == 1
    assert seen.count(b"before the capture") == 0
    assert seen.count() == 1


def test_a_capture_that_cannot_start_raises_the_reason(lab: Lab):
    with pytest.raises(HostError, match="no_such_device"), lab.internet.capture("no_such_device"):
        pass


def test_the_error_of_a_program_names_host_and_command(lab: Lab):
    with pytest.raises(HostError, match=r"cloud-1: ls /no/such/place: .*No such file"):
        lab.node("cloud-1").run(["ls", "/no/such/place"])
    with pytest.raises(HostError, match=r"cloud-1: sleep 60: did not end within 0.1 s"):
        lab.node("cloud-1").run(["sleep", "60"], timeout=0.1)


def test_manifests_have_the_addresses_of_the_lab(lab: Lab, tmp_path: Path):
    key = "tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww="
    lab.write_manifests(tmp_path, {"cloud-1": key}, suites=("chacha20poly1305", "aes256gcm"))

    files = sorted(path.name for path in tmp_path.iterdir())
    assert files[:2] == ["gateway-cloud.yaml", "gateway-factory.yaml"]
    assert [name for name in files if name.startswith("peer-")] == ["peer-cloud-1.yaml"]
    peer = yaml.safe_load((tmp_path / "peer-cloud-1.yaml").read_text())
    assert peer["spec"]["publicKey"] == key
    assert peer["spec"]["suites"] == ["chacha20poly1305", "aes256gcm"]
    assert peer["spec"]["addresses"] == ["198.51.100.2", "2001:db8:1::2"]
    assert peer["spec"]["sources"] == ["10.244.1.1", "fd00:10:244:1::1"]
    node = yaml.safe_load((tmp_path / "node-factory-2.yaml").read_text())
    assert node["spec"]["podCIDRs"] == ["10.244.4.0/24", "fd00:10:244:4::/64"]
    assert node["status"]["addresses"][0] == {"type": "InternalIP", "address": "10.2.0.3"}
    assert node["metadata"]["labels"] == {"raven.openyurt.io/gateway": "factory"}
    gateway = yaml.safe_load((tmp_path / "gateway-factory.yaml").read_text())
    assert gateway["spec"]["endpoints"] == [
        {"nodeName": "factory-1", "type": "tunnel", "port": 4500, "underNAT": True}
    ]


# Removal.


def test_a_removed_lab_leaves_nothing_and_the_machine_is_unchanged():
    before = machine()
    with Lab(Region("one", nodes=2), Region("two", nat=Nat.FULL_CONE)) as lab:
        process = lab.pod("one-1-pod-1").popen(["sleep", "1000"])
        assert traces(lab.prefix)
        assert machine() == before
    assert traces(lab.prefix) == []
    assert process.returncode == -signal.SIGKILL
    assert machine() == before


def test_an_exception_inside_with_removes_the_lab():
    with pytest.raises(ZeroDivisionError), Lab(Region("one")) as lab:
        1 / 0  # noqa: B018
    assert traces(lab.prefix) == []


ABANDONED = """
import sys, time
from ravenvpn.lab import Lab, Region
with Lab(Region("one")) as lab:
    process = lab.node("one-1").popen(["sleep", "1000"])
    if "keep" in sys.argv:
        lab.keep()
    print(lab.prefix, process.pid, lab.node("one-1").pid, flush=True)
    time.sleep("keep" not in sys.argv and 1000)
"""


def other_owner(*arguments: str) -> tuple[subprocess.Popen[str], str, list[int]]:
    process = subprocess.Popen([sys.executable, "-c", ABANDONED, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    prefix, *pids = process.stdout.readline().split()
    process.stdout.close()
    return process, prefix, [int(pid) for pid in pids]


def test_the_lab_of_a_killed_owner_is_removed_by_the_next_lab():
    owner, prefix, pids = other_owner()
    with Lab(Region("mine")):
        assert traces(prefix), "the lab of a living owner is not a leftover"
    owner.kill()
    owner.wait()
    assert traces(prefix)
    assert all(is_running(pid) for pid in pids)

    with Lab(Region("mine")):
        assert traces(prefix) == []
        assert not any(is_running(pid) for pid in pids)


def test_a_kept_lab_outlives_its_owner_until_someone_asks():
    owner, prefix, pids = other_owner("keep")
    assert owner.wait(10) == 0
    assert prefix not in sweep()
    assert prefix in kept_labs()
    assert all(is_running(pid) for pid in pids)

    assert prefix in sweep(also=[prefix])
    assert traces(prefix) == []
    assert not any(is_running(pid) for pid in pids)


def test_without_root_the_error_names_root():
    script = "import os; from ravenvpn.lab import Lab, Region; os.setuid(65534); Lab(Region('one')).__enter__()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "HostError: a lab consists of network namespaces, and only root can make them" in done.stderr


def test_nine_nodes_with_eighteen_pods_are_built_within_ten_seconds():
    began = time.monotonic()
    with Lab(
        Region("cloud", nodes=3, pods=2),
        Region("factory", nodes=3, pods=2, nat=Nat.PORT_RESTRICTED),
        Region("shop", nodes=3, pods=2, nat=Nat.SYMMETRIC),
    ) as lab:
        assert time.monotonic() - began < 10
        assert (len(lab.nodes), len(lab.pods)) == (9, 18)
        lab.pod("shop-1-pod-1").run(["ping", "-c", "1", "-W", "2", str(lab.pod("shop-3-pod-2").v6)])
