"""The manifests of deploy/, which are part of the package, rendered as `kubectl kustomize deploy/` renders them.

Only the two fields of kustomize that deploy/ uses are supported, `resources` and `images`; a test compares the result
with that of kubectl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.resource import CRDS, Object, Resource

# A symbolic link to deploy/ in a checkout; a folder with files in an installed package.
DEPLOY = Path(__file__).parent / "deploy"
IMAGE = "ravenvpn"  # name of the image in the manifests, which `images` of a kustomization or --image replaces
GATEWAY_DEFINITION = "gateways.raven.openyurt.io"  # OpenYurt brings one of its own
OWNER_LABEL = ("app.kubernetes.io/part-of", "ravenvpn")  # on every object of deploy/
FIELD_MANAGER = "raven-vpn-install"  # owner of the applied fields in managedFields

_RBAC = "rbac.authorization.k8s.io"
# The collection of each kind that deploy/ has.
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
    """Return all objects in an order in which they can be applied: definitions first.

    `image` replaces the one in the manifests. Without `gateway_definition` the definition of Gateway is left out, as
    in deploy/beside-openyurt. Raises ConfigError if the package was built without its manifests.
    """
    if not (DEPLOY / "kustomization.yaml").exists():
        raise ConfigError("this installation has no manifests", where=str(DEPLOY), remedy="install the package again")
    found = list(_read(DEPLOY, image))
    return [obj for obj in found if gateway_definition or not is_gateway_definition(obj)]


def is_gateway_definition(obj: Object) -> bool:
    """Whether the object is the definition of Gateway."""
    return obj["kind"] == "CustomResourceDefinition" and name_of(obj) == GATEWAY_DEFINITION


def is_ours(obj: Object) -> bool:
    """Whether an object in a cluster comes from these manifests."""
    label, value = OWNER_LABEL
    return ((obj.get("metadata") or {}).get("labels") or {}).get(label) == value


def collection(obj: Object) -> Resource:
    """Return the collection of the API that the object belongs to."""
    resource = _COLLECTIONS[obj["kind"]]
    namespace = obj["metadata"].get("namespace")
    return resource.within(namespace) if namespace else resource


def name_of(obj: Object) -> str:
    """Return metadata.name."""
    return str(obj["metadata"]["name"])


def _read(folder: Path, image: str) -> Iterator[Object]:
    """Objects of a folder with a kustomization.yaml, images replaced; folders among its resources recursively."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    images = {
        entry["name"]: f"{entry.get('newName', entry['name'])}:{entry['newTag']}"
        for entry in kustomization.get("images", ())
    }
    for entry in kustomization["resources"]:
        path = folder / entry
        if path.is_dir():
            objs = _read(path, image)
        else:
            objs = (obj for obj in yaml.safe_load_all(path.read_text()) if obj is not None)
        for obj in objs:
            for container in _containers(obj):
                chosen = image if image and container["image"] == IMAGE else images.get(container["image"])
                container["image"] = chosen or container["image"]
            yield obj


def _containers(obj: Object) -> list[dict[str, Any]]:
    """Containers of the pod template of a workload; none for other kinds."""
    pod = (obj.get("spec") or {}).get("template") or {}
    return list((pod.get("spec") or {}).get("containers") or ())
