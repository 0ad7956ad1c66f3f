"""One mesh for the tests of this folder: what they do to it they undo, and each begins with it well."""

from __future__ import annotations

import base64
import dataclasses
import secrets
from collections.abc import Iterator

import pytest
from agent_hosts import dump
from agent_mesh import REGIONS, Mesh

from ravenvpn.lab import Lab
from ravenvpn.lab.agents import Agents


@pytest.fixture(scope="session")
def standing_mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        before = {node.name: dump(node) for node in lab.nodes}
        agents = Agents(lab)
        agents.prepare()
        preshared_key = base64.b64encode(secrets.token_bytes(32)).decode()
        for node in lab.nodes:
            node.write("/etc/ravenvpn/preshared.key", f"{preshared_key}\n", mode=0o600)
            node.write("/etc/ravenvpn/config.yaml", "preshared_key_file: /etc/ravenvpn/preshared.key\n")
        agents.start_all()
        yield Mesh(lab, agents, before, preshared_key)


@pytest.fixture
def mesh(standing_mesh: Mesh) -> Mesh:
    standing_mesh.well()
    return dataclasses.replace(standing_mesh)
