"""No output, file, argument or environment variable of an agent contains a secret key."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from agent_hosts import get
from agent_mesh import Mesh

from ravenvpn.lab.agents import LOG, STATE, wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("ip", "nft", "nsenter", "ss", "wg"), pytest.mark.timeout(180)]


def forms(secret: str) -> set[bytes]:
    """Return a key as base64, as hex in both cases, raw, and as the repr of its bytes."""
    raw = base64.b64decode(secret)
    return {secret.encode(), secret.rstrip("=").encode(), raw.hex().encode(), raw.hex().upper().encode(), raw,
            repr(raw)[2:-1].encode()}  # fmt: skip


def test_no_output_of_an_agent_contains_a_secret(mesh: Mesh) -> None:
    node = mesh.node("cloud-1")
    wait_until(node.path(f"{STATE}/endpoints").exists, "endpoints are saved", 10)
    private_key = node.read(f"{STATE}/private.key").strip()
    process = mesh.agents.process(node)
    said = {
        "log": node.path(LOG).read_bytes(),
        "command line": Path(f"/proc/{process.pid}/cmdline").read_bytes(),
        "environment": Path(f"/proc/{process.pid}/environ").read_bytes(),
        "endpoints": node.path(f"{STATE}/endpoints").read_bytes(),
        "metrics": get(node, "/metrics")[1].encode(),
        "readyz": get(node, "/readyz")[1].encode(),
        **{
            " ".join(words): mesh.agents.cli(node, *words).encode()
            for words in (
                ("status", "-o", "json"),
                ("peers", "-o", "json"),
                ("peers", "factory-1"),
                ("plan", "-o", "json"),
                ("plan", "--diff"),
                ("config", "show"),
            )
        },
    }
    assert all(said[where] for where in said if where != "plan --diff"), (
        "an empty text holds no secret, and proves nothing"
    )
    for secret in (private_key, mesh.preshared_key):
        for form in forms(secret):
            assert [where for where, text in said.items() if form in text] == []


def test_the_same_search_finds_the_public_key(mesh: Mesh) -> None:
    """Positive control of the search."""
    node = mesh.node("cloud-1")
    public_key = mesh.agents.public_keys["cloud-1"].encode()
    assert public_key in node.path(LOG).read_bytes()
    assert public_key in mesh.agents.cli(node, "status", "-o", "json").encode()


def test_the_preshared_key_is_in_force(mesh: Mesh) -> None:
    """Only `wg show`, run by root, prints it."""
    shown = mesh.node("cloud-1").run(["wg", "show", "ravenvpn0", "preshared-keys"]).stdout
    assert shown.count(mesh.preshared_key) == 3
