"""Names of the Kubernetes API: which path an object lives under, and what the API server says when it says no."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import quote

from ravenvpn.errors import ClusterError

Object = dict[str, Any]  # as JSON has it; `crd` is where it becomes a value


@dataclass(frozen=True, slots=True)
class Resource:
    """A collection of the API. The core group is ""; without a namespace it is that of the whole cluster."""

    group: str
    version: str
    plural: str
    namespace: str | None = None

    def within(self, namespace: str) -> Resource:
        return replace(self, namespace=namespace)

    def path(self, name: str = "", subresource: str = "") -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        space = f"namespaces/{quote(self.namespace, safe='')}" if self.namespace else ""
        parts = (root, space, self.plural, quote(name, safe=""), subresource)
        return "/".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


GATEWAYS = Resource("raven.openyurt.io", "v1beta1", "gateways")
PEERS = Resource("ravenvpn.io", "v1alpha1", "peers")
NODES = Resource("", "v1", "nodes")
NAMESPACES = Resource("", "v1", "namespaces")
PODS = Resource("", "v1", "pods")
SERVICES = Resource("", "v1", "services")
SECRETS = Resource("", "v1", "secrets")
CONFIG_MAPS = Resource("", "v1", "configmaps")
EVENTS = Resource("", "v1", "events")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
BLOCK_AFFINITIES = Resource("crd.projectcalico.org", "v1", "blockaffinities")


class ApiError(ClusterError):
    """The API server's no, or its silence.

    `status` is HTTP's (410 Expired, 409 Conflict, ...), 0 where no answer came; `reason` is Kubernetes' word for it,
    "Unreachable", "Silent" or "Malformed" without an answer; `retry_after` seconds, where the server asks for them.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.reason, self.retry_after = message, status, reason, retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.status}]" if self.status else self.message


class Page(NamedTuple):
    """Part of a list; `resource_version` is that of the whole list, the same on each page."""

    items: list[Object]
    resource_version: str


class WatchEvent(NamedTuple):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK (whose object holds nothing but a resourceVersion)."""

    type: str
    object: Object


def key_of(thing: Object) -> str:
    """What tells an object from the others of its collection: its name, after its namespace where it has one."""
    metadata = thing.get("metadata") or {}
    name, namespace = str(metadata.get("name", "")), metadata.get("namespace")
    return f"{namespace}/{name}" if namespace else name


def version_of(thing: Object) -> str:
    return str((thing.get("metadata") or {}).get("resourceVersion", ""))
