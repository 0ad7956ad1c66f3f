"""Kubeconfig and service account: finds a cluster and its credentials. The only door to kubernetes-asyncio.

The library supplies the ways to authenticate (tokens, certificates, exec plugins, OIDC) and the connection. Its
generated classes are not used: they take several times the memory of the JSON they hold, and `ravenvpn.k8s.crd` reads
the few fields that matter here.

Credentials are read again when their files change, so tokens, certificates and CAs may rotate at run time. Requests
under way keep the connection pool they began with.

Parts of the library that its documentation does not promise, which is why its version has an upper bound:
* the layout of its packages: `client.configuration`, `client.rest`, `config.kube_config` and
  `config.incluster_config` can be imported without running the `__init__` of `client` and `config`;
* `config.kube_config._cleanup_temp_files()`, and that keys within a kubeconfig pass through temporary files;
* `KubeConfigMerger(paths)` with `.config` and `.paths`; its nodes with `get_with_name`, `.value` and `.path`;
* `KubeConfigLoader(config, active_context=, config_base_path=)` with `load_and_set`, `.current_context` and
  `.exec_plugin_expiry`;
* `InClusterConfigLoader(token, ca, try_refresh_token=).load_and_set`;
* `Configuration` with `.host`, `.verify_ssl`, `.ssl_ca_cert`, `.cert_file`, `.key_file`, `.tls_server_name`, `.proxy`
  and `.api_key["BearerToken"]`;
* `RESTClientObject(configuration)` with `.request(..., _preload_content=, _request_timeout=)` and `.close()`.
"""

from __future__ import annotations

import abc
import asyncio
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.resource import ApiError

EXPIRY_MARGIN = 60.0  # seconds before the expiry of an exec plugin's credentials at which they are renewed


@cache
def _library() -> types.SimpleNamespace:
    """Import the parts of kubernetes-asyncio that are used here, without the rest of its packages.

    `kubernetes_asyncio/client/__init__.py` imports a class for each type and call of Kubernetes: 40 MB and a second.
    Empty packages replace it while our modules are imported, and are removed again for other importers."""
    packages = ("kubernetes_asyncio", "kubernetes_asyncio.client", "kubernetes_asyncio.config")
    bare = {name: types.ModuleType(name) for name in packages if name not in sys.modules}
    spec = importlib.util.find_spec("kubernetes_asyncio")
    root = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
    for name, module in bare.items():
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    try:
        from kubernetes_asyncio.client.configuration import Configuration  # noqa: PLC0415
        from kubernetes_asyncio.client.rest import RESTClientObject  # noqa: PLC0415

        if client := bare.get("kubernetes_asyncio.client"):
            # kube_config imports both names from here; ApiClient only for functions that are not called.
            vars(client).update(Configuration=Configuration, ApiClient=object)
        from kubernetes_asyncio.config import kube_config  # noqa: PLC0415
        from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415
    finally:
        for name in bare:
            del sys.modules[name]
    return types.SimpleNamespace(
        Configuration=Configuration,
        Rest=RESTClientObject,
        InCluster=InClusterConfigLoader,
        Merger=kube_config.KubeConfigMerger,
        Loader=kube_config.KubeConfigLoader,
        remove_temporary_files=kube_config._cleanup_temp_files,
    )


@dataclass(slots=True)
class ApiCredentials:
    """A connection pool and the credentials it was made from."""

    rest: Any  # the library's RESTClientObject
    made_from: tuple[object, ...]  # compared with credentials read later; () forces a new pool
    users: int = 0  # requests under way; a pool that was replaced is closed at 0


class Access(abc.ABC):
    """Reads credentials and keeps a connection pool made from them. All methods run on one loop."""

    def __init__(self, name: str) -> None:
        """`name` is the file or folder of the credentials, for messages."""
        self.name = name
        self.server = ""  # URL of the API server; "" before the first request
        self.authorization = ""  # value of the HTTP header; "" with a client certificate. Secret.
        self._entry: ApiCredentials | None = None
        self._replaced: list[ApiCredentials] = []  # that requests still use
        self._stamps: dict[str, tuple[int, int, int] | None] = {}  # file → `_stamp` when it was read
        self._expires: float | None = None  # Unix seconds; None: does not expire
        self._lock = asyncio.Lock()

    @abc.abstractmethod
    async def _read(self, configuration: Any) -> tuple[Iterable[str], float | None]:
        """Fill in the library's `configuration`; return the files it came from, and its expiry in Unix seconds."""

    async def entry(self) -> ApiCredentials:
        """Return the pool to use now; reads the credentials again if a file changed or they expire.

        Raises ConfigError if they cannot be read and there are none from before."""
        async with self._lock:
            if self._entry is not None and not self._stale():
                return self._entry
            try:
                return await self._renew()
            except ConfigError:
                if self._entry is None:
                    raise
                return self._entry  # the file may be half-written; the old credentials serve until refused

    async def entry_or_error(self) -> ApiCredentials:
        """Return `entry()`; raises ApiError "Unreachable" instead of ConfigError, for requests that are retried."""
        try:
            return await self.entry()
        except ConfigError as error:
            raise ApiError(str(error), reason="Unreachable") from error

    def invalidate(self) -> None:
        """Read everything again before the next request, because the server refused us or its certificate is bad."""
        self._stamps = {"": (0, 0, 0)}
        if self._entry is not None:
            self._entry.made_from = ()

    async def close_replaced(self) -> None:
        """Close pools that were replaced and that no request uses any more."""
        for entry in [entry for entry in self._replaced if not entry.users]:
            self._replaced.remove(entry)
            await entry.rest.close()

    async def close(self) -> None:
        """Close all pools."""
        for entry in [*self._replaced, *([self._entry] if self._entry else [])]:
            await entry.rest.close()
        self._replaced, self._entry = [], None

    def _stale(self) -> bool:
        """Whether a file changed since it was read, or the credentials are about to expire."""
        if self._expires is not None and time.time() > self._expires - EXPIRY_MARGIN:
            return True
        return any(_stamp(file) != stamp for file, stamp in self._stamps.items())

    async def _renew(self) -> ApiCredentials:
        """Read the credentials; make a new pool only if something that its TLS connections depend on changed.

        A token is not part of the pool: it is sent with each request, so a rotation keeps the connections."""
        library = _library()
        configuration = library.Configuration()
        try:
            files, self._expires = await self._read(configuration)
            stamps = {file: _stamp(file) for file in files}
            parts = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
            made_from = (
                *map(_content, parts),
                configuration.host,
                configuration.verify_ssl,
                configuration.tls_server_name,
                configuration.proxy,
            )
            if not str(configuration.host).startswith("https://"):
                raise ConfigError(f"the server {configuration.host!r} is not reached by https", where=self.name)
            if self._entry is None or self._entry.made_from != made_from:
                if self._entry is not None:
                    self._replaced.append(self._entry)  # closed once its last request has ended
                self._entry = ApiCredentials(library.Rest(configuration), made_from)
        except ConfigError:
            raise
        except Exception as error:  # the library raises many types for a malformed file
            raise ConfigError(f"cannot be used: {error or type(error).__name__}", where=self.name) from error
        finally:
            library.remove_temporary_files()  # private keys that are within a kubeconfig
        self._stamps, self.server = stamps, str(configuration.host)
        self.authorization = str(configuration.api_key.get("BearerToken", "")).strip()
        return self._entry


class ServiceAccount(Access):
    """Credentials of the pod that this process runs in: token and CA as the kubelet mounts them."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where the kubelet mounts `token` and `ca.crt`."""
        super().__init__(str(folder))
        self._token, self._ca = str(folder / "token"), str(folder / "ca.crt")

    async def _read(self, configuration: Any) -> tuple[Iterable[str], float | None]:
        _library().InCluster(self._token, self._ca, try_refresh_token=False).load_and_set(configuration)
        return (self._token, self._ca), None


class Kubeconfig(Access):
    """Credentials of a kubeconfig, or of several that are merged as kubectl does."""

    def __init__(self, paths: str, context: str | None) -> None:
        """`paths` as in $KUBECONFIG, separated by colons; `context` None or "": the current one."""
        super().__init__(paths)
        self._paths, self._context = paths, context or None

    async def _read(self, configuration: Any) -> tuple[Iterable[str], float | None]:
        library = _library()
        if not _any_exists(self._paths):
            raise ConfigError("no such file", where=self._paths, field="kubeconfig")
        merged = library.Merger(self._paths)
        loader = library.Loader(merged.config, active_context=self._context, config_base_path=None)
        await loader.load_and_set(configuration)
        files = [*merged.paths, *self._referenced(merged, loader)]
        expiry = getattr(loader, "exec_plugin_expiry", None)
        return files, expiry.timestamp() if expiry else None

    @staticmethod
    def _referenced(merged: Any, loader: Any) -> list[str]:
        """Files that the kubeconfig refers to, relative ones resolved against its own folder."""
        context = loader.current_context["context"]
        found = []
        for kind, inner, fields in (
            ("clusters", "cluster", ("certificate-authority",)),
            ("users", "user", ("client-certificate", "client-key", "tokenFile")),
        ):
            node = merged.config[kind].get_with_name(context.get(inner), safe=True)
            # A round trip through JSON makes plain dictionaries of the library's own mapping type.
            values = json.loads(json.dumps(node.value.get(inner) or {}, default=str)) if node is not None else {}
            folder = os.path.dirname(os.path.abspath(node.path)) if node is not None and node.path else ""
            found += [os.path.join(folder, values[field]) for field in fields if field in values]
        return found


def _stamp(file: str) -> tuple[int, int, int] | None:
    """Modification time in nanoseconds, inode and size: differs if the file changed. None if it cannot be read."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _any_exists(paths: str) -> bool:
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path)


def _content(file: str | None) -> bytes | None:
    return Path(file).read_bytes() if file else None
