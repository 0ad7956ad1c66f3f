"""Names of the Kubernetes API: resources and their paths, objects and their keys, and the error of a request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import quote

from ravenvpn.errors import ClusterError

Object = dict[str, Any]  # an object of the API as JSON; `crd` converts it to a value


@dataclass(frozen=True, slots=True)
class Resource:
    """A collection of the API."""

    group: str  # "" for the core group
    version: str
    plural: str  # lower case, as in paths
    namespace: str | None = None  # None: cluster-scoped, or all namespaces

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects: "v1", "raven.openyurt.io/v1beta1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def within(self, namespace: str) -> Resource:
        """Return the part of the collection that is in one namespace."""
        return replace(self, namespace=namespace)

    def path(self, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, or of one object, or of its subresource; names are quoted."""
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
SERVICES = Resource("", "v1", "services")
CONFIG_MAPS = Resource("", "v1", "configmaps")
EVENTS = Resource("", "v1", "events")
ENDPOINTS = Resource("", "v1", "endpoints")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
BLOCK_AFFINITIES = Resource("crd.projectcalico.org", "v1", "blockaffinities")


class ApiError(ClusterError):
    """A request that the API server refused or did not answer."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        """`status` is that of HTTP (409 Conflict, 410 Expired), 0 without an answer. `reason` is the one of the
        Status object, or "Unreachable", "Silent" or "Malformed" without a usable answer. `retry_after`: seconds that
        the server asks the client to wait."""
        super().__init__(message)
        self.message, self.status, self.reason, self.retry_after = message, status, reason, retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.status}]" if self.status else self.message


class Page(NamedTuple):
    """One page of a list."""

    items: list[Object]
    resource_version: str  # of the whole list, the same on each page


class WatchEvent(NamedTuple):
    """A change that the API server reports on a watch, or a BOOKMARK with a newer resourceVersion."""

    type: str  # ADDED, MODIFIED, DELETED or BOOKMARK
    object: Object  # of a BOOKMARK: nothing but a resourceVersion


class ObjectKey(NamedTuple):
    """Identifies an object among several kinds. Sorts by kind, then name."""

    kind: str
    name: str


def key_of(obj: Object) -> str:
    """Return the key of `obj` in its collection: `name`, or `namespace/name` (client-go's MetaNamespaceKeyFunc)."""
    metadata = obj.get("metadata") or {}
    name, namespace = str(metadata.get("name", "")), metadata.get("namespace")
    return f"{namespace}/{name}" if namespace else name


def version_of(obj: Object) -> str:
    """Return the resourceVersion of `obj`, "" if it has none."""
    return str((obj.get("metadata") or {}).get("resourceVersion", ""))
