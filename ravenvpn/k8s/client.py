"""The API server, spoken to in plain JSON."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.access import Access, Kubeconfig, ServiceAccount
from ravenvpn.k8s.resource import (
    BLOCK_AFFINITIES,
    CONFIG_MAPS,
    CRDS,
    EVENTS,
    GATEWAYS,
    LEASES,
    NAMESPACES,
    NODES,
    PEERS,
    PODS,
    SECRETS,
    SERVICES,
    ApiError,
    Object,
    Page,
    Resource,
    WatchEvent,
)

__all__ = [
    "BLOCK_AFFINITIES",
    "CONFIG_MAPS",
    "CRDS",
    "EVENTS",
    "GATEWAYS",
    "LEASES",
    "NAMESPACES",
    "NODES",
    "PEERS",
    "PODS",
    "SECRETS",
    "SERVICES",
    "ApiError",
    "Client",
    "Object",
    "Page",
    "Resource",
    "WatchEvent",
]

# Seconds.
CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 30.0
WATCH_TIMEOUT = 1800.0  # after which the server is asked to end a watch; it is resumed then
# Bookmarks come once a minute: a server that sent nothing for longer than two of them hangs, or the path is gone.
SILENCE = 150.0

MAX_LINE = 8 << 20  # bytes of one event; etcd takes 1.5 MiB for an object
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Events = list[WatchEvent]


class Client:
    """One cluster. An async context manager; every method may raise ApiError, and nothing else."""

    def __init__(self, access: Access) -> None:
        self._access = access

    @classmethod
    def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Client:
        """By a kubeconfig; without one by the service account of the pod we are in, else by what kubectl would take.
        Nothing is sent yet. ConfigError where there is none of these."""
        if kubeconfig:
            return cls(Kubeconfig(kubeconfig, context))
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return cls(ServiceAccount(SERVICE_ACCOUNT))
        paths = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
        if not any(Path(path).exists() for path in paths.split(":")):
            raise ConfigError(
                f"no cluster to talk to: this is no pod, and there is no {paths}",
                field="kubeconfig",
                remedy="name a kubeconfig",
            )
        return cls(Kubeconfig(paths, context))

    async def __aenter__(self) -> Self:
        """ConfigError where the credentials cannot be read."""
        await self._access.entry()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._access.close()

    @property
    def server(self) -> str:
        """Its URL; empty before the first request."""
        return self._access.server

    @property
    def host_port(self) -> tuple[str, int]:
        """What is dialed."""
        parts = urlsplit(self.server)
        return parts.hostname or "", parts.port or 443

    # Reading.

    async def list(
        self, resource: Resource, *, labels: str = "", fields: str = "", limit: int = 500
    ) -> AsyncGenerator[Page, None]:
        """All of it, or what selectors pick, in pages. 410 where the list became too old halfway: begin anew."""
        query = {"limit": str(limit), **_selectors(labels, fields)}
        while True:
            answer = await self._call("GET", resource.path(), query, timeout=2 * REQUEST_TIMEOUT)
            metadata, items = answer.get("metadata") or {}, answer.get("items") or []
            kind, version = str(answer.get("kind", "")).removesuffix("List"), answer.get("apiVersion")
            for item in items:  # in lists of the core group the items leave them out
                item.setdefault("kind", kind)
                item.setdefault("apiVersion", version)
            yield Page(items, str(metadata.get("resourceVersion", "")))
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        timeout: float = WATCH_TIMEOUT,  # noqa: ASYNC109 (the server's)
    ) -> AsyncGenerator[WatchEvent, None]:
        """What changes after that version, bookmarks included, until the server ends it after `timeout` seconds."""
        batches = self.watch_batches(
            resource, resource_version=resource_version, labels=labels, fields=fields, timeout=timeout
        )
        async with aclosing(batches):
            async for batch in batches:
                for event in batch:
                    yield event

    async def watch_batches(
        self,
        resource: Resource,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        timeout: float = WATCH_TIMEOUT,  # noqa: ASYNC109 (the server's)
        silence: float = SILENCE,
    ) -> AsyncGenerator[Events, None]:
        """The same, in the portions that arrive; an empty one first, when the server has accepted. ApiError "Silent"
        after `silence` seconds without a byte."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, int(timeout))),
            **_selectors(labels, fields),
        }
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=silence)
        async with self._answer("GET", resource.path(), query, limits=limits) as response:
            yield []
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE:
                    raise ApiError(f"an event of {resource} without end", reason="Malformed")
                if lines:
                    yield [_event(line) for line in lines if line]

    async def get(self, resource: Resource, name: str) -> Object:
        return await self._call("GET", resource.path(name))

    async def get_path(self, path: str) -> Object:
        """Any document of the API, such as an OpenAPI schema."""
        return await self._call("GET", path)

    async def version(self) -> str:
        """As in `v1.34.4`."""
        return str((await self._call("GET", "/version")).get("gitVersion", ""))

    async def served(self, group: str) -> tuple[str, ...]:
        """Versions in which a group is served, best first; none where the cluster does not know it."""
        try:
            answer = await self._call("GET", f"/apis/{group}")
        except ApiError as error:
            if error.status == 404:
                return ()
            raise
        return tuple(str(version["version"]) for version in answer.get("versions") or ())

    # Writing. Each returns the object as the server has it now.

    async def create(self, resource: Resource, obj: Object) -> Object:
        return await self._call("POST", resource.path(), body=obj)

    async def replace(self, resource: Resource, obj: Object, *, subresource: str = "") -> Object:
        """409 where it has changed since `obj` was read, if that carries its resourceVersion."""
        return await self._call("PUT", resource.path(_name(obj), subresource), body=obj)

    async def apply(
        self, resource: Resource, obj: Object, *, field_manager: str, subresource: str = "", force: bool = True
    ) -> Object:
        """Server-side apply: the fields of `obj` are `field_manager`'s, those it no longer names are removed."""
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        path = resource.path(_name(obj), subresource)
        return await self._call("PATCH", path, query, body=obj, content="application/apply-patch+yaml")

    async def merge(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str = "",
        field_manager: str = "",
    ) -> Object:
        """JSON merge patch (RFC 7386)."""
        query = {"fieldManager": field_manager} if field_manager else None
        path = resource.path(name, subresource)
        return await self._call("PATCH", path, query, body=dict(patch), content="application/merge-patch+json")

    async def delete(self, resource: Resource, name: str) -> None:
        await self._call("DELETE", resource.path(name))

    # The wire.

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Object | None = None,
        content: str = "application/json",
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 (aiohttp's)
    ) -> Object:
        limits = aiohttp.ClientTimeout(total=timeout, connect=CONNECT_TIMEOUT)
        async with self._answer(method, path, query, body=body, content=content, limits=limits) as response:
            answer = _decode(await response.read())
        if not isinstance(answer, dict):
            raise ApiError(f"{method} {path}: the answer is no object", reason="Malformed")
        return answer

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Object | None = None,
        content: str = "application/json",
        limits: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{method} {path}"
        entry = await self._access.entry_or_error()
        entry.users += 1
        try:
            headers = {"Content-Type": content, "Accept": "application/json", "User-Agent": "ravenvpn"}
            if self._access.authorization:
                headers["Authorization"] = self._access.authorization
            response = await entry.rest.request(
                method,
                self._access.server + path,
                query_params=dict(query) if query else None,
                headers=headers,
                body=body,
                _preload_content=False,
                _request_timeout=limits,
            )
            async with response:
                if not 200 <= response.status <= 299:
                    if response.status == 401:
                        self._access.doubt()
                    raise _refusal(what, response, await response.read())
                yield response
        except aiohttp.ClientSSLError as error:
            self._access.doubt()
            raise ApiError(f"{what}: {error}", reason="Unreachable") from error
        except TimeoutError as error:
            raise ApiError(f"{what}: no answer in time", reason="Silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(f"{what}: {error or type(error).__name__}", reason="Unreachable") from error
        except ValueError as error:  # of aiohttp: a header or line longer than it takes
            raise ApiError(f"{what}: {error}", reason="Malformed") from error
        finally:
            entry.users -= 1
            await self._access.tidy()


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {key: text for key, text in (("labelSelector", labels), ("fieldSelector", fields)) if text}


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _decode(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(f"the answer is not JSON: {error}", reason="Malformed") from error


def _event(line: bytes) -> WatchEvent:
    event = _decode(line)
    kind, thing = (event.get("type"), event.get("object")) if isinstance(event, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(thing, dict):
        raise ApiError("an event without type and object", reason="Malformed")
    if kind == "ERROR":
        raise _from_status("watch", thing, int(thing.get("code") or 500), None)
    return WatchEvent(kind, thing)


def _refusal(what: str, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    try:
        status = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        status = None
    if not isinstance(status, dict):
        status = {"message": body[:200].decode(errors="replace").strip() or response.reason}
    return _from_status(what, status, response.status, response.headers.get("Retry-After"))


def _from_status(what: str, status: Object, code: int, header: str | None) -> ApiError:
    """Of a `Status` object (k8s.io/apimachinery, meta/v1). Its causes name what its reason does not."""
    details = status.get("details") or {}
    seconds = header if header and header.isdigit() else details.get("retryAfterSeconds")
    causes = [cause.get("reason") for cause in details.get("causes") or () if isinstance(cause, dict)]
    reason = "ResourceVersionTooLarge" if "ResourceVersionTooLarge" in causes else str(status.get("reason") or "")
    message = str(status.get("message") or reason or "refused")
    return ApiError(
        f"{what}: {message[:500]}", status=code, reason=reason, retry_after=float(seconds) if seconds else None
    )
