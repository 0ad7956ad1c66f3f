"""`raven-vpn install`: install ravenvpn into a cluster, or upgrade it to this version, by server-side apply.

    Kubernetes v1.31.2 at https://192.0.2.10:6443
    CustomResourceDefinition peers.ravenvpn.io: unchanged
    ClusterRole ravenvpn-agent: changed

Fields that another program owns are left alone; a conflict over a field of ours is decided for us (force).
"""

from __future__ import annotations

import asyncio

import click
import yaml

from ravenvpn.k8s import bundle
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import CRDS, ApiError, Object


@click.command()
@click.option("--print", "print_only", is_flag=True, help="Print the manifests and change nothing.")
@click.option("--image", default="", help="Image of agent and controller.  [default: ravenvpn, of this version]")
@click.option(
    "--gateway-definition/--no-gateway-definition",
    default=None,
    help="Include the CustomResourceDefinition of Gateway or not.  [default: unless the cluster has OpenYurt's]",
)
@click.option("--kubeconfig", default="", help="Cluster to install into.  [default: kubectl's]")
@click.option("--context", default="", help="Context of the kubeconfig.  [default: its current one]")
def install(print_only: bool, image: str, gateway_definition: bool | None, kubeconfig: str, context: str) -> None:
    """Apply the manifests of this version to a cluster: definitions, agents, controllers.

    Run it again to upgrade. A definition of Gateway by OpenYurt is left alone. To change more than the image, print
    the manifests, or use deploy/ as a kustomize base.
    """
    if print_only:
        things = bundle.objects(image, gateway_definition=gateway_definition is not False)
        click.echo(yaml.safe_dump_all(things, sort_keys=False, width=120), nl=False)
        return
    asyncio.run(_apply(image, gateway_definition, kubeconfig, context))


async def _apply(image: str, gateway_definition: bool | None, kubeconfig: str, context: str) -> None:
    """Apply every object in order and print what became of it. ApiError at the first one that is refused."""
    async with Client.connect(kubeconfig or None, context or None) as client:
        version = await client.version()
        click.echo(f"Kubernetes {version} at {client.server}")
        if gateway_definition is None:
            gateway_definition = await _may_define_gateway(client)
        for thing in bundle.objects(image, gateway_definition=gateway_definition):
            resource, name = bundle.collection(thing), bundle.name_of(thing)
            # Apply is idempotent; the object before it only serves to print what became of it.
            before = await _get(client, thing)
            after = await client.apply(resource, thing, field_manager=bundle.FIELD_MANAGER)
            outcome = "created" if before is None else "unchanged" if _same(before, after) else "changed"
            click.echo(f"{thing['kind']} {name}: {outcome}")


async def _may_define_gateway(client: Client) -> bool:
    """Return whether the definition of Gateway is absent or ours; another's is left alone, with a line about it."""
    try:
        there = await client.get(CRDS, bundle.GATEWAY_DEFINITION)
    except ApiError as error:
        if error.status != 404:
            raise
        return True
    if bundle.is_ours(there):
        return True
    click.echo(
        f"CustomResourceDefinition {bundle.GATEWAY_DEFINITION}: left alone, it belongs to another program (OpenYurt?)"
    )
    return False


async def _get(client: Client, thing: Object) -> Object | None:
    """Return the object as the cluster has it, None where it is absent (404). ApiError for every other failure."""
    try:
        return await client.get(bundle.collection(thing), bundle.name_of(thing))
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def _same(before: Object, after: Object) -> bool:
    """Return whether two versions of an object differ in nothing but bookkeeping, so that apply changed nothing."""
    return _meant(before) == _meant(after)


def _meant(thing: Object) -> Object:
    """Return the object without status and without the metadata that the API server maintains."""
    # Server-side apply updates these even where the content is the same.
    bookkeeping = ("managedFields", "resourceVersion", "generation")
    metadata = {key: value for key, value in thing["metadata"].items() if key not in bookkeeping}
    return {**thing, "metadata": metadata, "status": None}
