"""Node addresses across regions: with `forward_node_ip` every pod and node reaches them from its own source address.

Agents that differ in the setting do not affect pod traffic and send nothing in clear.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ravenvpn.lab import Lab, Nat, Region
from ravenvpn.lab.agents import Agents, answers, wait_until
from ravenvpn.lab.echo import PORT
from ravenvpn.lab.host import LabHost

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "tcpdump", "ss"), pytest.mark.timeout(240)]

# A public gateway is dialled at its InternalIP here, which is routed into the tunnel as well.
REGIONS = (
    Region("cloud", nodes=2, masquerade=True),
    Region("factory", nodes=2, nat=Nat.PORT_RESTRICTED, masquerade=True),
    Region("ship", nat=Nat.SYMMETRIC),
)
ECHO = (sys.executable, "-m", "ravenvpn.lab.echo")
PATIENCE = 60.0


@dataclass
class Mesh:
    lab: Lab
    agents: Agents

    def restart(self, name: str, *, forward_node_ip: bool) -> None:
        node = self.lab.node(name)
        self.agents.end(node)
        self.agents.start(node, "--forward-node-ip" if forward_node_ip else "--no-forward-node-ip")
        self.agents.wait_until_well([node], PATIENCE)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        agents = Agents(lab)
        agents.prepare()
        for node in lab.nodes:
            node.path("/etc/ravenvpn/config.yaml").write_text("forward_node_ip: true\n")
        agents.start_all()
        hosts: list[LabHost] = [*lab.pods, *lab.nodes]
        for host in hosts:
            host.popen([*ECHO, "serve"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        agents.wait_until_well(patience=PATIENCE)
        for host in hosts:
            listens = ["ss", "-Hltn", "sport", "=", str(PORT)]
            wait_until(lambda host=host, listens=listens: answers(host, listens), f"{host.name} serves")
        yield Mesh(lab, agents)


def ask(host: LabHost, addresses: list[str]) -> dict[str, str]:
    """Return for each address the source that the server saw, or the error."""
    done = host.run([*ECHO, "ask", "-", *addresses], timeout=90, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {answer["host"]: answer["source"] if answer["ok"] else answer["error"] for answer in answers}


def addresses(lab: Lab, region: str) -> list[str]:
    """Return the addresses of the nodes of the other regions."""
    return [str(a) for node in lab.nodes if node.region.name != region for a in (node.v4, node.v6)]


def test_every_pod_reaches_every_node_of_other_regions_with_its_own_source(mesh: Mesh) -> None:
    for pod in mesh.lab.pods:
        seen = ask(pod, addresses(mesh.lab, pod.node.region.name))
        assert len(seen) >= 6
        assert seen == {host: str(pod.v6 if ":" in host else pod.v4) for host in seen}, pod.name


def test_every_node_reaches_every_node_of_other_regions(mesh: Mesh) -> None:
    """The source is the address that the node announces, as for packets to pods."""
    for node in mesh.lab.nodes:
        own, seen = node.bridge_addresses, ask(node, addresses(mesh.lab, node.region.name))
        assert seen == {host: str(own.v6 if ":" in host else own.v4) for host in seen}, node.name


SPEAK_AS = """
import http.client, sys
own, there, port = sys.argv[1:]
connection = http.client.HTTPConnection(there, int(port), timeout=10, source_address=(own, 0))
connection.request("GET", "/")
print(connection.getresponse().read().decode().split()[0])
"""


def test_a_node_may_use_its_node_address_as_source(mesh: Mesh) -> None:
    """For example a kubelet or an exporter that is bound to the InternalIP."""
    plain, far = mesh.lab.node("factory-2"), mesh.lab.node("cloud-2")
    for own, there in ((plain.v4, far.v4), (plain.v6, far.v6)):
        done = plain.run([sys.executable, "-c", SPEAK_AS, str(own), str(there), str(PORT)], timeout=30)
        assert done.stdout.strip() == str(own)


def test_agents_with_different_settings_keep_pod_traffic_and_send_nothing_unencrypted(mesh: Mesh) -> None:
    """The factory's gateway turns the setting off for a while. Its plain node has it on, and is refused there."""
    lab = mesh.lab
    plain, far = lab.node("factory-2"), lab.node("cloud-2")
    uplink = lab.node("factory-1")
    mesh.restart("factory-1", forward_node_ip=False)
    try:
        with uplink.capture("eth0", f"tcp and (host {far.v4} or host {far.v6})") as clear:
            refused = ask(plain, [str(far.v4), str(far.v6)])
            pods = [str(a) for pod in lab.pods if pod.node is far for a in (pod.v4, pod.v6)]
            reached = ask(plain, pods)
        own = plain.bridge_addresses
        assert reached == {host: str(own.v6 if ":" in host else own.v4) for host in pods}
        assert len(refused) == 2
        assert not any(answer in (str(own.v4), str(own.v6)) for answer in refused.values()), refused
        assert list(clear.frames()) == []
    finally:
        mesh.restart("factory-1", forward_node_ip=True)
    assert set(ask(plain, [str(far.v4), str(far.v6)]).values()) == {str(own.v4), str(own.v6)}
