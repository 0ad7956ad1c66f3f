"""The objects of deploy/, which the package carries with it, as `kubectl kustomize deploy/` would print them.

Of kustomize's words those are read that deploy/ uses: `resources` and `images`. A test holds both against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.resource import CRDS, Object, Resource

DEPLOY = Path(__file__).parent / "deploy"  # a link in a checkout, files of the package where it is installed
IMAGE = "ravenvpn"
GATEWAY_DEFINITION = "gateways.raven.openyurt.io"
OWNER_LABEL = ("app.kubernetes.io/part-of", "ravenvpn")
FIELD_MANAGER = "raven-vpn-install"

_RBAC = "rbac.authorization.k8s.io"
_COLLECTIONS = {
    "CustomResourceDefinition": CRDS,
    "ServiceAccount": Resource("", "v1", "serviceaccounts"),
    "ClusterRole": Resource(_RBAC, "v1", "clusterroles"),
    "ClusterRoleBinding": Resource(_RBAC, "v1", "clusterrolebindings"),
    "Role": Resource(_RBAC, "v1", "roles"),
    "RoleBinding": Resource(_RBAC, "v1", "rolebindings"),
    "DaemonSet": Resource("apps", "v1", "daemonsets"),
    "Deployment": Resource("apps", "v1", "deployments"),
    "PodDisruptionBudget": Resource("policy", "v1", "poddisruptionbudgets"),
}


def objects(image: str = "", *, gateway_definition: bool = True) -> list[Object]:
    """All of them, in an order in which they can be applied: definitions first.

    `image` replaces the one in the manifests. Without `gateway_definition` the definition of Gateway is left out, as
    deploy/beside-openyurt does. ConfigError where the package was built without its manifests.
    """
    if not (DEPLOY / "kustomization.yaml").exists():
        raise ConfigError("this installation has no manifests", where=str(DEPLOY), remedy="install the package anew")
    found = list(_read(DEPLOY, image))
    return [thing for thing in found if gateway_definition or not is_gateway_definition(thing)]


def is_gateway_definition(thing: Object) -> bool:
    return thing["kind"] == "CustomResourceDefinition" and name_of(thing) == GATEWAY_DEFINITION


def is_ours(thing: Object) -> bool:
    """Whether an object of the cluster was put there by these manifests."""
    label, value = OWNER_LABEL
    return ((thing.get("metadata") or {}).get("labels") or {}).get(label) == value


def collection(thing: Object) -> Resource:
    """Where in the API it goes."""
    resource = _COLLECTIONS[thing["kind"]]
    namespace = thing["metadata"].get("namespace")
    return resource.within(namespace) if namespace else resource


def name_of(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def _read(folder: Path, image: str) -> Iterator[Object]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    images = {
        entry["name"]: f"{entry.get('newName', entry['name'])}:{entry['newTag']}"
        for entry in kustomization.get("images", ())
    }
    for entry in kustomization["resources"]:
        path = folder / entry
        if path.is_dir():
            things = _read(path, image)
        else:
            things = (thing for thing in yaml.safe_load_all(path.read_text()) if thing is not None)
        for thing in things:
            for container in _containers(thing):
                chosen = image if image and container["image"] == IMAGE else images.get(container["image"])
                container["image"] = chosen or container["image"]
            yield thing


def _containers(thing: Object) -> list[dict[str, Any]]:
    pod = (thing.get("spec") or {}).get("template") or {}
    return list((pod.get("spec") or {}).get("containers") or ())
