"""`raven-vpn install`: put ravenvpn into a cluster, or bring what is there up to this version."""

from __future__ import annotations

import asyncio

import click
import yaml

from ravenvpn.k8s import bundle
from ravenvpn.k8s.client import Client
from ravenvpn.k8s.resource import CRDS, ApiError, Object


@click.command()
@click.option("--print", "print_only", is_flag=True, help="Print the manifests, and touch nothing.")
@click.option("--image", default="", help="Image of agent and controller.  [default: ravenvpn, of this version]")
@click.option(
    "--gateway-definition/--no-gateway-definition",
    default=None,
    help="With or without the definition of Gateway.  [default: with, unless the cluster has OpenYurt's]",
)
@click.option("--kubeconfig", default="", help="Cluster to install into.  [default: kubectl's]")
@click.option("--context", default="", help="Context of the kubeconfig.  [default: its current one]")
def install(print_only: bool, image: str, gateway_definition: bool | None, kubeconfig: str, context: str) -> None:
    """Apply the manifests of this version to a cluster: definitions, agents, controllers. Again is an upgrade.

    Gateway is not defined anew where OpenYurt has done so. To change more than the image, print the manifests or take
    deploy/ as a base of kustomize.
    """
    if print_only:
        things = bundle.objects(image, gateway_definition=gateway_definition is not False)
        click.echo(yaml.safe_dump_all(things, sort_keys=False, width=120), nl=False)
        return
    asyncio.run(_apply(image, gateway_definition, kubeconfig, context))


async def _apply(image: str, gateway_definition: bool | None, kubeconfig: str, context: str) -> None:
    """ApiError at the first object that is refused; those before it are applied."""
    async with Client.connect(kubeconfig or None, context or None) as client:
        version = await client.version()
        click.echo(f"Kubernetes {version} at {client.server}")
        if gateway_definition is None:
            gateway_definition = await _may_define_gateway(client)
        for thing in bundle.objects(image, gateway_definition=gateway_definition):
            resource, name = bundle.collection(thing), bundle.name_of(thing)
            before = await _get(client, thing)
            after = await client.apply(resource, thing, field_manager=bundle.FIELD_MANAGER)
            outcome = "created" if before is None else "unchanged" if _same(before, after) else "changed"
            click.echo(f"{thing['kind']} {name}: {outcome}")


async def _may_define_gateway(client: Client) -> bool:
    try:
        there = await client.get(CRDS, bundle.GATEWAY_DEFINITION)
    except ApiError as error:
        if error.status != 404:
            raise
        return True
    if bundle.is_ours(there):
        return True
    click.echo(f"CustomResourceDefinition {bundle.GATEWAY_DEFINITION}: left alone, it is another's (OpenYurt's?)")
    return False


async def _get(client: Client, thing: Object) -> Object | None:
    try:
        return await client.get(bundle.collection(thing), bundle.name_of(thing))
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def _same(before: Object, after: Object) -> bool:
    """Whether they differ in nothing but who wrote it when."""
    return _meant(before) == _meant(after)


def _meant(thing: Object) -> Object:
    bookkeeping = ("managedFields", "resourceVersion", "generation")
    metadata = {key: value for key, value in thing["metadata"].items() if key not in bookkeeping}
    return {**thing, "metadata": metadata, "status": None}
