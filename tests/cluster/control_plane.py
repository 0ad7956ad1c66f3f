"""A real control plane of one version: etcd and kube-apiserver (controller-manager and scheduler on demand).

Its data, certificates, logs and kubeconfigs stand in one folder, and everything goes when it is stopped, or when the
process that made it ends in whatever way. `inside` runs it in a network namespace.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy"
CI = os.environ.get("CI") == "true"

_PINNED = dict(
    line.split("=", 1) for line in (HERE / "versions.env").read_text().splitlines() if line and line[0] != "#"
)
DEFAULT, OLDEST, NEWEST = (_PINNED[f"KUBE_{name}"] for name in ("VERSION", "OLDEST", "NEWEST"))
VERSIONS = (DEFAULT, OLDEST, NEWEST)
ETCD = f"etcd-{_PINNED['ETCD_VERSION']}/etcd"
FLANNELD = f"flannel-{_PINNED['FLANNEL_VERSION']}/flanneld"

# Every request of every client, one JSON line each, written before it is answered: tests count them.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

NOT_BUILT = "NOT RUN, NOT BUILT"


class NotBuilt(Exception):
    """Programs of a cluster that `make kube` would have built."""


class Failed(Exception):
    """A program of the cluster, or kubectl, ended badly. Says what it said."""


def kube_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("RAVENVPN_KUBE") or cache / "ravenvpn" / "kube")


def programs(version: str, *names: str) -> None:
    """NotBuilt if one is missing. With a slash in it, a name stands below the folder of all versions."""
    folder = kube_folder()
    wanted = [name if "/" in name else f"{version}/{name}" for name in names]
    if missing := [name for name in wanted if not os.access(folder / name, os.X_OK)]:
        target = "kube" if all(name.startswith((DEFAULT, "etcd-", "flannel-")) for name in missing) else "kube-all"
        raise NotBuilt(f"{NOT_BUILT}: {', '.join(missing)} in {folder}; run `make {target}` (minutes, once)")


def require_kube(version: str = DEFAULT, *names: str) -> None:
    """Skip the test, in capitals, where the control plane or one of `names` is not built; with CI=true, fail it."""
    try:
        programs(version, ETCD, "kube-apiserver", "kubectl", *names)
    except NotBuilt as error:
        if CI:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@contextmanager
def running(folder: Path, version: str = DEFAULT, *more: str, **options: Any) -> Iterator[ControlPlane]:
    """A control plane for as long as the block lasts; the test is skipped where one is not built.

    `more` as for `ControlPlane.start`, `options` as for `ControlPlane`.
    """
    require_kube(version, *(f"kube-{name}" for name in more))
    plane = ControlPlane(folder, version, **options)
    try:
        plane.start(*more)
        yield plane
    finally:
        plane.stop()


def define_kinds(plane: ControlPlane) -> None:
    """Gateway and Peer as deploy/ defines them, whatever stood there, and until they are served."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(DEPLOY / "crds"))
    names = ("crd/gateways.raven.openyurt.io", "crd/peers.ravenvpn.io")
    plane.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")


class ControlPlane:
    """`folder` may be one that was stopped before: it goes on with its data. Start it with `start`."""

    def __init__(
        self,
        folder: Path,
        version: str = DEFAULT,
        *,
        inside: Sequence[str] = (),
        address: str = "127.0.0.1",
        advertise: str = "192.0.2.10",
        port: int = 0,
        pod_cidr: str = "",
        arguments: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`inside` is the argv that enters a network namespace; there `address` and `advertise` are the namespace's
        own. `arguments` are flags for kube-apiserver besides. Port 0 picks a free one, kept over restarts."""
        self.folder, self.version, self.address = folder, version, address
        self.binaries = kube_folder() / version
        self._inside = list(inside)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "audit-policy.json").write_text(json.dumps(_AUDIT_POLICY))
        audit = (
            f"--audit-policy-file={folder}/audit-policy.json --audit-log-path={folder}/audit.log"
            " --audit-log-mode=blocking --audit-log-maxsize=1024"
        )
        self._environment = {
            **os.environ,
            "ETCD": str(kube_folder() / ETCD),
            "KUBE_ADDR": address,
            "KUBE_ADVERTISE": advertise,
            "KUBE_POD_CIDR": pod_cidr,
            "KUBE_ARGS": f"{audit} {arguments}",
            **({"KUBE_PORT": str(port)} if port else {}),
            **(environment or {}),
        }
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Until it is ready; what has ended since the last time is started again on the old data and port.

        `more` names "controller-manager" and "scheduler", where they are wanted besides.
        """
        if self._guard is None:
            self._guard = self._watch_over_it()
        self._script("start-kube.sh", str(self.binaries), str(self.folder), *more)

    def stop(self) -> None:
        """All of it, at once; the folder goes too."""
        if self._guard is not None:
            os.killpg(self._guard.pid, signal.SIGTERM)
            self._guard.wait(10)
            self._guard = None
        self._script("stop-kube.sh", str(self.folder), "--delete")

    @property
    def url(self) -> str:
        return (self.folder / "url").read_text().strip()

    @property
    def ca(self) -> Path:
        return self.folder / "pki" / "ca.crt"

    @property
    def admin(self) -> Path:
        """A kubeconfig that may do anything."""
        return self.folder / "admin.kubeconfig"

    def kubeconfig(self, name: str, subject: str) -> Path:
        """A kubeconfig with a client certificate for this subject, such as `/CN=system:kube-proxy`."""
        return Path(self._script("kubeconfig.sh", str(self.folder), name, subject).strip())

    def token(
        self, account: str, namespace: str = "kube-system", *, bound_to: Mapping[str, Any] | None = None
    ) -> str:
        """A token of a service account, as the kubelet mounts it; `bound_to` is a `boundObjectRef` (a Pod)."""
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if bound_to is not None:
            spec["boundObjectRef"] = dict(bound_to)
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(
            json.loads(self.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(wanted)))["status"]["token"]
        )

    def account(self, account: str, namespace: str = "kube-system", **token: Any) -> Path:
        """A kubeconfig with a fresh token of this service account."""
        cluster = {"server": self.url, "certificate-authority-data": base64.b64encode(self.ca.read_bytes()).decode()}
        user = {"token": self.token(account, namespace, **token)}
        file = self.folder / f"{namespace}-{account}.kubeconfig"
        file.touch(0o600)
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": account, "user": user}],
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": account, "namespace": namespace}}
                    ],
                    "current-context": "test",
                }
            )
        )
        return file

    def kubectl(
        self,
        *arguments: str,
        input: str = "",  # noqa: A002 - as subprocess calls it
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> str:
        """Its output; with `check` off its errors too, and no exception. As admin unless told otherwise."""
        argv = [*self._inside, str(self.binaries / "kubectl"), f"--kubeconfig={kubeconfig or self.admin}"]
        done = subprocess.run(
            [*argv, *arguments],
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**self._environment, "HOME": str(self.folder)},  # where it keeps what it discovered
        )
        if check and done.returncode:
            raise Failed(f"kubectl {shlex.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def requests(self) -> list[dict[str, Any]]:
        """All requests answered so far, as audit events: `verb`, `user.username`, `objectRef`, `responseStatus`."""
        log = self.folder / "audit.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def pid(self, program: str = "kube-apiserver") -> int:
        return int((self.folder / f"{program}.pid").read_text())

    def kill(self, program: str = "kube-apiserver") -> None:
        """By SIGKILL, and it is gone when this returns. `start` brings it back."""
        pid = self.pid(program)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    @contextmanager
    def hung(self, program: str = "kube-apiserver") -> Iterator[None]:
        """Stopped by SIGSTOP: connections stand, and nobody answers."""
        pid = self.pid(program)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def forget_serving_certificate(self, *, new_ca: bool = False) -> None:
        """The next start makes another one, of the same CA or, with all identities, of a new one."""
        for file in (self.folder / "pki").glob("*.crt" if new_ca else "apiserver.*"):
            file.unlink()

    def compact(self) -> int:
        """Make etcd forget all history before now; returns the revision."""
        url = f"http://127.0.0.1:{(self.folder / 'etcd.port').read_text().strip()}/v3/kv"
        revision = json.loads(self._etcd(url + "/range", {"key": "AA=="}))["header"]["revision"]
        self._etcd(url + "/compaction", {"revision": revision, "physical": True})
        return int(revision)

    def _etcd(self, url: str, body: object) -> str:
        argv = [*self._inside, "curl", "-sf", "--max-time", "10", "-d", json.dumps(body), url]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=15).stdout

    def _watch_over_it(self) -> subprocess.Popen[bytes]:
        """Stop the cluster at exit if it still runs: its programs have sessions of their own and would go on."""
        script = 'tail --pid="$1" -f /dev/null; exec "$2" "$3" --delete'
        argv = ["sh", "-c", script, "guard", str(os.getpid()), str(HERE / "stop-kube.sh"), str(self.folder)]
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _script(self, name: str, *arguments: str) -> str:
        # Only those that start something go inside: the programs stay in the namespace they are started in.
        inside = self._inside if name == "start-kube.sh" else []
        try:
            done = subprocess.run(
                [*inside, str(HERE / name), *arguments],
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
                env=self._environment,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{name}: no end within 180 s") from None
        if done.returncode:
            raise Failed(f"{name}: {done.stderr.strip()}")
        return done.stdout
