"""The agent with exactly the rights and mounts that deploy/workloads/agent.yaml gives its pod.

The restrictions of a container runtime are imitated: a read-only root file system, read-only /proc/sys and /sys, a
private /dev, only the added capabilities, no new privileges. The world comes from files.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ravenvpn.lab import Lab, Region
from ravenvpn.lab.agents import RAVEN_VPN, WORLD, Agents, wait_until
from ravenvpn.lab.host import LabNode

ROOT = Path(__file__).parents[2]
POD = next(yaml.safe_load_all((ROOT / "deploy" / "workloads" / "agent.yaml").read_text()))["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "unshare", "setpriv", "ping"),
    pytest.mark.timeout(120),
]


def container(argv: Sequence[str], without: str = "") -> list[str]:
    """Return the command line that runs `argv` as the container would on a lab node.

    `without` names a mount to leave out.
    """
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert POD["hostNetwork"]
    capabilities = ",".join(["-all", *(f"+{name.lower()}" for name in context["capabilities"]["add"])])
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    steps = [
        "set -eu",
        "mount --make-rprivate /",
        "base=$(mktemp -d /run/pod.XXXXXX); mount -t tmpfs tmpfs $base; mkdir $base/up $base/work $base/root",
        "root=$base/root",
        "mount -t overlay overlay -o lowerdir=/,upperdir=$base/up,workdir=$base/work $root",
        "mount --rbind /proc $root/proc",
        "mount --bind $root/proc/sys $root/proc/sys; mount -o remount,bind,ro $root/proc/sys",
        "mount --bind /sys $root/sys; mount -o remount,bind,ro $root/sys",
        "mount -t tmpfs tmpfs $root/dev; mount -t tmpfs tmpfs $root/run; mount -t tmpfs tmpfs $root/tmp",
        "for d in null zero random urandom; do touch $root/dev/$d; mount --bind /dev/$d $root/dev/$d; done",
        "ln -s /proc/self/fd $root/dev/fd; ln -s fd/0 $root/dev/stdin; ln -s fd/1 $root/dev/stdout",
    ]
    for mount in CONTAINER["volumeMounts"]:
        if mount["name"] == without:
            continue
        volume, target = volumes[mount["name"]], f"$root{mount['mountPath']}"
        if "emptyDir" in volume:
            steps.append(f"mkdir -p {target}; mount -t tmpfs -o mode=1777 tmpfs {target}")
            continue
        source, kind = volume["hostPath"]["path"], volume["hostPath"]["type"]
        if kind == "DirectoryOrCreate":
            steps.append(f"mkdir -p {source}")
        steps.append(f"mkdir -p $(dirname {target}); [ -d {source} ] && mkdir -p {target} || touch {target}")
        steps.append(f"mount --bind {source} {target}")
        if mount.get("readOnly"):
            steps.append(f"mount -o remount,bind,ro {target}")
    # The image is the Python, its libraries and the package of this machine, plus the world of this test. They are
    # mounted last, since they may be below a folder that the pod has mounted.
    for folder in dict.fromkeys([str(ROOT), sys.prefix, sys.base_prefix]):
        steps.append(f"mkdir -p $root{folder}; mount --bind {folder} $root{folder}")
    steps.append(f"mkdir -p $root{WORLD}; mount --bind {WORLD} $root{WORLD}")
    steps.append("mount -o remount,ro $root; cd /")
    run = ["setpriv", "--no-new-privs", f"--bounding-set={capabilities}", "--inh-caps=-all", *argv]
    steps.append(f"exec chroot $root {shlex.join(run)}")
    return ["unshare", "--mount", "--", "sh", "-c", "\n".join(steps)]


def environment() -> dict[str, str]:
    """Return the environment of the manifest without Kubernetes, so that the default source (files) is used."""
    return {
        entry["name"]: entry["value"]
        for entry in CONTAINER["env"]
        if "value" in entry and entry["name"] != "RAVENVPN_SOURCE"
    }


@dataclass
class Scene:
    lab: Lab
    agents: Agents
    boxed: LabNode
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    def start(self, without: str = "") -> subprocess.Popen[Any]:
        argv = [*RAVEN_VPN, *CONTAINER["command"][1:], "--node", self.boxed.name]
        log = self.boxed.path("/run/boxed.log")
        with log.open("ab") as output:
            self.started.append(
                self.boxed.popen(container(argv, without), stdout=output, stderr=subprocess.STDOUT, env=environment())
            )
        return self.started[-1]

    def said(self) -> str:
        return self.boxed.read("/run/boxed.log")


@pytest.fixture(scope="module")
def regions() -> Iterator[tuple[Lab, Agents]]:
    with Lab(Region("cloud"), Region("factory")) as lab:
        agents = Agents(lab)
        agents.prepare()
        agents.start(lab.node("cloud-1"))
        yield lab, agents


@pytest.fixture
def scene(regions: tuple[Lab, Agents]) -> Iterator[Scene]:
    """A node without a running agent and without remains of one."""
    lab, agents = regions
    scene = Scene(lab, agents, lab.node("factory-1"))
    yield scene
    for process in scene.started:
        process.terminate()
        process.wait(20)
    scene.boxed.run(["rm", "-f", "/run/boxed.log"])
    agents.cli(scene.boxed, "cleanup")


def test_the_agent_needs_no_more_than_its_pod_gives(scene: Scene) -> None:
    process = scene.start()
    try:
        scene.agents.wait_until_well(patience=40)
    except Exception as error:
        raise AssertionError(scene.said()) from error

    mine, other = scene.lab.pod("factory-1-pod-1"), scene.lab.pod("cloud-1-pod-1")
    for address in (other.v4, other.v6):
        mine.run(["ping", "-c", "1", "-W", "3", str(address)])
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert re.findall(r"^Cap(?:Eff|Bnd):\t(\w+)$", status, re.MULTILINE) == [f"{1 << 12:016x}"] * 2  # CAP_NET_ADMIN
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert scene.boxed.run(["cat", "/proc/sys/net/ipv4/conf/ravenvpn0/rp_filter"]).stdout == "2\n"
    # The control socket is visible on the host.
    assert "ravenvpn0" in scene.boxed.run(["ls", "/run/wireguard"]).stdout
    assert scene.boxed.path("/var/lib/ravenvpn/private.key").stat().st_mode & 0o777 == 0o600


def test_without_a_writable_proc_sys_it_says_what_the_pod_lacks(scene: Scene) -> None:
    """The agent needs the mount of /host/proc/sys in the manifest, and logs the remedy if it is missing."""
    scene.start(without="sysctls")
    try:
        wait_until(lambda: "/host/proc/sys/net" in scene.said(), "the remedy is in the log", 40)
    except Exception as error:
        raise AssertionError(scene.said()) from error
    assert "ravenvpn0" in scene.said()


def test_in_its_pod_the_agent_finds_the_host_fit(scene: Scene) -> None:
    done = scene.boxed.run(container([*RAVEN_VPN, "check"]), check=False)
    found = done.stdout + done.stderr
    assert "fail" not in found.lower(), found
