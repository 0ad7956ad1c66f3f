"""Kubeconfigs and credentials, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.client import Client

SCRIPT = """
import sys
from ravenvpn.k8s.access import _library
_library()
assert not any(name.startswith("kubernetes_asyncio.client.models") for name in sys.modules), "generated classes"
import kubernetes_asyncio.client
assert kubernetes_asyncio.client.CoreV1Api
from kubernetes_asyncio import config
assert config.load_kube_config
"""


def test_the_generated_classes_are_not_imported_but_remain_importable() -> None:
    """Importing the generated classes takes 40 MB in each agent."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)


def kubeconfig(**changes: str) -> str:
    parts = {
        "server": "https://192.0.2.10:6443",
        "user": "{token: secret}",
        "context": "{name: c, context: {cluster: c, user: u}}",
        "current": "c",
        **changes,
    }
    return (
        "apiVersion: v1\nkind: Config\n"
        f"clusters: [{{name: c, cluster: {{server: '{parts['server']}'}}}}]\n"
        f"users: [{{name: u, user: {parts['user']}}}]\n"
        f"contexts: [{parts['context']}]\ncurrent-context: {parts['current']}\n"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be used"),
        ("- a\n- b\n", "cannot be used"),
        ("{", "cannot be used"),
        (kubeconfig(current="other"), "other"),
        (kubeconfig(server="http://192.0.2.10"), "not reached by https"),
        (kubeconfig(user="{tokenFile: /nowhere}"), "cannot be used"),
        (kubeconfig(user="{client-certificate-data: '!', client-key-data: '!'}"), "cannot be used"),
    ],
)
async def test_an_unusable_kubeconfig_is_named_in_the_error(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as told:
        async with Client.connect(str(file)):
            pass
    assert str(file) in str(told.value)
    assert "secret" not in str(told.value)


async def test_a_missing_kubeconfig_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        async with Client.connect(str(tmp_path / "nothing")):
            pass


def test_without_any_configuration_the_error_has_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="no cluster is configured"):
        Client.connect()


async def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    file = tmp_path / "kubeconfig"
    file.write_text(kubeconfig(user="{tokenFile: token}"))
    async with Client.connect(str(file)) as client:
        assert client._access.authorization == "Bearer first"
        token.write_text("second, and longer\n")
        await client._access.entry()
        assert client._access.authorization == "Bearer second, and longer"
        assert client.host_port == ("192.0.2.10", 6443)

        file.write_text("half writ")
        await client._access.entry()
        assert client._access.authorization == "Bearer second, and longer", "the last usable credentials stay"
