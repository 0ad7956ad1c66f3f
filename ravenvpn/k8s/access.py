"""How a cluster is found and entered: the only door to kubernetes-asyncio.

What is taken from the library is the ways in (kubeconfig with all its ways to authenticate, the service account of a
pod) and its connection. Its generated classes are left alone: they hold an object in several times the memory, and
`ravenvpn.k8s.crd` reads the few fields that matter here.

Credentials are read again when their files change, so tokens, certificates and CAs may rotate; what is under way goes
on with those it began with.
"""

from __future__ import annotations

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

EXPIRY_MARGIN = 60.0  # seconds before the end of what a plugin gave us


@cache
def _library() -> types.SimpleNamespace:
    """The parts of kubernetes-asyncio that are used here, without what its packages load besides.

    `kubernetes_asyncio/client/__init__.py` imports a class for each of Kubernetes' types and calls: 40 MB and a
    second that an agent on a small machine has better use for. While our modules are imported, bare packages stand
    in."""
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
            vars(client).update(Configuration=Configuration, ApiClient=object)  # the next one only names it
        from kubernetes_asyncio.config import kube_config  # noqa: PLC0415
        from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415
    finally:
        for name in bare:  # whoever wants the whole library gets it
            del sys.modules[name]
    return types.SimpleNamespace(
        Configuration=Configuration,
        Rest=RESTClientObject,
        InCluster=InClusterConfigLoader,
        Merger=kube_config.KubeConfigMerger,
        Loader=kube_config.KubeConfigLoader,
        forget_files=kube_config._cleanup_temp_files,
    )


@dataclass(slots=True)
class ApiCredentials:
    """A connection pool, and what it was made from. `users` are requests under way on it."""

    rest: Any
    made_from: tuple[object, ...]
    users: int = 0


class Access:
    """Reads credentials and keeps a connection pool made from them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.server = ""
        self.authorization = ""
        self._entry: ApiCredentials | None = None
        self._old: list[ApiCredentials] = []  # replaced while in use
        self._stamps: dict[str, tuple[int, int, int] | None] = {}
        self._expires: float | None = None  # Unix seconds
        self._lock = asyncio.Lock()

    async def _read(self, configuration: Any) -> tuple[Iterable[str], float | None]:
        """Fill in kubernetes-asyncio's `configuration`; returns the files it came from, and when it expires."""
        raise NotImplementedError

    async def entry(self) -> ApiCredentials:
        """The pool to use now. ConfigError where the credentials cannot be read and there are none from before."""
        async with self._lock:
            if self._entry is not None and not self._stale():
                return self._entry
            try:
                return await self._renew()
            except ConfigError:
                if self._entry is None:
                    raise
                return self._entry  # half-written perhaps; what was good goes on until the server says no

    async def entry_or_error(self) -> ApiCredentials:
        try:
            return await self.entry()
        except ConfigError as error:
            raise ApiError(str(error), reason="Unreachable") from error

    def doubt(self) -> None:
        """The server did not accept us, or we it: read everything again before the next request."""
        self._stamps = {"": (0, 0, 0)}
        if self._entry is not None:
            self._entry.made_from = ()

    async def tidy(self) -> None:
        for entry in [entry for entry in self._old if not entry.users]:
            self._old.remove(entry)
            await entry.rest.close()

    async def close(self) -> None:
        for entry in [*self._old, *([self._entry] if self._entry else [])]:
            await entry.rest.close()
        self._old, self._entry = [], None

    def _stale(self) -> bool:
        if self._expires is not None and time.time() > self._expires - EXPIRY_MARGIN:
            return True
        return any(_stamp(file) != stamp for file, stamp in self._stamps.items())

    async def _renew(self) -> ApiCredentials:
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
                    self._old.append(self._entry)
                self._entry = ApiCredentials(library.Rest(configuration), made_from)
        except ConfigError:
            raise
        except Exception as error:  # the library raises whatever a malformed file leads to
            raise ConfigError(f"cannot be used: {error or type(error).__name__}", where=self.name) from error
        finally:
            library.forget_files()  # keys that stand in a kubeconfig itself went through files
        self._stamps, self.server = stamps, str(configuration.host)
        self.authorization = str(configuration.api_key.get("BearerToken", "")).strip()
        return self._entry


class ServiceAccount(Access):
    """Of the pod we are in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._token, self._ca = str(folder / "token"), str(folder / "ca.crt")

    async def _read(self, configuration: Any) -> tuple[Iterable[str], float | None]:
        _library().InCluster(self._token, self._ca, try_refresh_token=False).load_and_set(configuration)
        return (self._token, self._ca), None


class Kubeconfig(Access):
    """Of a file, or several as $KUBECONFIG names them."""

    def __init__(self, paths: str, context: str | None) -> None:
        super().__init__(paths)
        self._paths, self._context = paths, context or None

    async def _read(self, configuration: Any) -> tuple[Iterable[str], float | None]:
        library = _library()
        if not _any_exists(self._paths):
            raise ConfigError("no such file", where=self._paths, field="kubeconfig")
        merged = library.Merger(self._paths)
        loader = library.Loader(merged.config, active_context=self._context, config_base_path=None)
        await loader.load_and_set(configuration)
        files = [*merged.paths, *self._named(merged, loader)]
        expiry = getattr(loader, "exec_plugin_expiry", None)
        return files, expiry.timestamp() if expiry else None

    @staticmethod
    def _named(merged: Any, loader: Any) -> list[str]:
        """Files that the kubeconfig names."""
        context = loader.current_context["context"]
        found = []
        for kind, inner, fields in (
            ("clusters", "cluster", ("certificate-authority",)),
            ("users", "user", ("client-certificate", "client-key", "tokenFile")),
        ):
            node = merged.config[kind].get_with_name(context.get(inner), safe=True)
            values = json.loads(json.dumps(node.value.get(inner) or {}, default=str)) if node is not None else {}
            folder = os.path.dirname(os.path.abspath(node.path)) if node is not None and node.path else ""
            found += [os.path.join(folder, values[field]) for field in fields if field in values]
        return found


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _any_exists(paths: str) -> bool:
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path)


def _content(file: str | None) -> bytes | None:
    return Path(file).read_bytes() if file else None
