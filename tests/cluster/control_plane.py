"""A real control plane of one version: etcd and kube-apiserver, with controller-manager and scheduler on demand.

Data, certificates, logs and kubeconfigs are in one folder. The folder is removed when the control plane is stopped or
when the process that started it ends, even by SIGKILL. `inside` runs it in a network namespace.
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

# One JSON line for each request of each client, written before the answer is sent. Tests count them.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

NOT_BUILT = "NOT RUN, NOT BUILT"


class NotBuilt(Exception):
    """Programs of the cluster are missing; `make kube` builds them."""


class Failed(Exception):
    """A program of the cluster, or kubectl, failed. The message contains its output."""


def kube_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("RAVENVPN_KUBE") or cache / "ravenvpn" / "kube")


def programs(version: str, *names: str) -> None:
    """Raise NotBuilt if a program is missing. A name with a slash is looked up below the folder of all versions."""
    folder = kube_folder()
    wanted = [name if "/" in name else f"{version}/{name}" for name in names]
    if missing := [name for name in wanted if not os.access(folder / name, os.X_OK)]:
        target = "kube" if all(name.startswith((DEFAULT, "etcd-", "flannel-")) for name in missing) else "kube-all"
        raise NotBuilt(f"{NOT_BUILT}: {', '.join(missing)} in {folder}; run `make {target}` (minutes, once)")


def require_kube(version: str = DEFAULT, *names: str) -> None:
    """Skip the test if the control plane or one of `names` is not built. With CI=true the test fails instead."""
    try:
        programs(version, ETCD, "kube-apiserver", "kubectl", *names)
    except NotBuilt as error:
        if CI:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@contextmanager
def running(folder: Path, version: str = DEFAULT, *more: str, **options: Any) -> Iterator[ControlPlane]:
    """Run a control plane for the duration of the block. The test is skipped if the programs are not built.

    `more` is passed to `ControlPlane.start`, `options` to `ControlPlane`.
    """
    require_kube(version, *(f"kube-{name}" for name in more))
    plane = ControlPlane(folder, version, **options)
    try:
        plane.start(*more)
        yield plane
    finally:
        plane.stop()


def define_kinds(plane: ControlPlane) -> None:
    """Install the CRDs of deploy/ over any existing definition, and wait until they are served."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(DEPLOY / "crds"))
    names = ("crd/gateways.raven.openyurt.io", "crd/peers.ravenvpn.io")
    plane.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")


class ControlPlane:
    """A control plane with its state in `folder`, started by `start`.

    A folder of a control plane that was stopped before is continued with its data.
    """

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
        """Describe a control plane without starting it.

        `inside` is the argv that enters a network namespace; `address` and `advertise` then belong to that namespace.
        `arguments` are additional flags for kube-apiserver. Port 0 picks a free port, which is kept over restarts.
        """
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
        """Start all programs and wait until the server is ready.

        Programs that have ended since the last start are started again with the old data and port. `more` may contain
        "controller-manager" and "scheduler".
        """
        if self._guard is None:
            self._guard = self._watch_over_it()
        self._script("start-kube.sh", str(self.binaries), str(self.folder), *more)

    def stop(self) -> None:
        """Stop all programs and remove the folder."""
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
        """Return a kubeconfig of a cluster administrator."""
        return self.folder / "admin.kubeconfig"

    def kubeconfig(self, name: str, subject: str) -> Path:
        """Return a kubeconfig with a client certificate for this subject, such as `/CN=system:kube-proxy`."""
        return Path(self._script("kubeconfig.sh", str(self.folder), name, subject).strip())

    def token(
        self, account: str, namespace: str = "kube-system", *, bound_to: Mapping[str, Any] | None = None
    ) -> str:
        """Return a service account's token as the kubelet mounts it. `bound_to` is a `boundObjectRef` (a Pod)."""
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if bound_to is not None:
            spec["boundObjectRef"] = dict(bound_to)
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(
            json.loads(self.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(wanted)))["status"]["token"]
        )

    def account(self, account: str, namespace: str = "kube-system", **token: Any) -> Path:
        """Return a kubeconfig with a fresh token of this service account."""
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
        input: str = "",  # noqa: A002 - the name that subprocess uses
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> str:
        """Run kubectl, as admin unless `kubeconfig` is given, and return its output.

        With `check` off the errors are part of the output, and nothing is raised.
        """
        argv = [*self._inside, str(self.binaries / "kubectl"), f"--kubeconfig={kubeconfig or self.admin}"]
        done = subprocess.run(
            [*argv, *arguments],
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**self._environment, "HOME": str(self.folder)},  # kubectl's discovery cache
        )
        if check and done.returncode:
            raise Failed(f"kubectl {shlex.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def requests(self) -> list[dict[str, Any]]:
        """Return all answered requests as audit events: `verb`, `user.username`, `objectRef`, `responseStatus`."""
        log = self.folder / "audit.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def pid(self, program: str = "kube-apiserver") -> int:
        return int((self.folder / f"{program}.pid").read_text())

    def kill(self, program: str = "kube-apiserver") -> None:
        """Send SIGKILL to a program and wait for its end. `start` starts it again."""
        pid = self.pid(program)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    @contextmanager
    def hung(self, program: str = "kube-apiserver") -> Iterator[None]:
        """Stop a program by SIGSTOP for the block: connections stay open, and no request is answered."""
        pid = self.pid(program)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def forget_serving_certificate(self, *, new_ca: bool = False) -> None:
        """Remove the serving certificate; the next start makes another one.

        `new_ca` replaces the CA and all identities as well.
        """
        for file in (self.folder / "pki").glob("*.crt" if new_ca else "apiserver.*"):
            file.unlink()

    def compact(self) -> int:
        """Compact etcd's history up to now and return the revision."""
        url = f"http://127.0.0.1:{(self.folder / 'etcd.port').read_text().strip()}/v3/kv"
        revision = json.loads(self._etcd(url + "/range", {"key": "AA=="}))["header"]["revision"]
        self._etcd(url + "/compaction", {"revision": revision, "physical": True})
        return int(revision)

    def _etcd(self, url: str, body: object) -> str:
        argv = [*self._inside, "curl", "-sf", "--max-time", "10", "-d", json.dumps(body), url]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=15).stdout

    def _watch_over_it(self) -> subprocess.Popen[bytes]:
        """Start a guard that stops the cluster when this process ends.

        The programs run in their own sessions and would otherwise continue.
        """
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
        # Only start-kube.sh runs inside: the programs stay in the namespace in which they were started.
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
