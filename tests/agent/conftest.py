"""One mesh for all tests of this folder. Each test starts with a healthy mesh and reverts its changes."""

from __future__ import annotations

import base64
import dataclasses
import secrets
from collections.abc import Iterator

import pytest
from agent_hosts import dump
from agent_mesh import REGIONS, Mesh

from ravenvpn.lab import Lab


@pytest.fixture(scope="session")
def standing_mesh() -> Iterator[Mesh]:
    with Lab(*REGIONS) as lab:
        mesh = Mesh.prepared(lab, dump)
        mesh.preshared_key = base64.b64encode(secrets.token_bytes(32)).decode()
        for node in lab.nodes:
            node.write("/etc/ravenvpn/preshared.key", f"{mesh.preshared_key}\n", mode=0o600)
            node.write("/etc/ravenvpn/config.yaml", "preshared_key_file: /etc/ravenvpn/preshared.key\n")
        mesh.agents.start_all()
        yield mesh


@pytest.fixture
def mesh(standing_mesh: Mesh) -> Mesh:
    standing_mesh.wait_until_healthy()
    return dataclasses.replace(standing_mesh)
