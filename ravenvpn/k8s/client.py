"""Client of the API server: requests with plain JSON, and watches.

Errors of the network, of HTTP and of the answer's format all become ApiError; callers need to know no other. Objects
are plain dictionaries as in JSON: `crd` and the controller's `decode` check and convert the few fields that matter.

Nothing is cached and nothing is retried here. `watch.Reflector` and the writers decide when to try again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ravenvpn.errors import ConfigError
from ravenvpn.k8s.access import Access, Kubeconfig, ServiceAccount
from ravenvpn.k8s.resource import ApiError, Object, Page, Resource, WatchEvent

# Seconds.
CONNECT_TIMEOUT = 10.0  # TCP and TLS
REQUEST_TIMEOUT = 30.0  # a request with its answer, watches excepted
LIST_TIMEOUT = 2 * REQUEST_TIMEOUT  # a page of a list; the server may have to read it from etcd
WATCH_TIMEOUT = 1800.0  # after which the server is asked to end a watch; it is resumed then
# A server sends a bookmark once a minute. Without a byte for two of them the server hangs or the path is broken.
SILENCE = 150.0

PAGE_SIZE = 500  # objects of a list, as kubectl asks for
MAX_LINE = 8 << 20  # bytes of one event; etcd limits an object to 1.5 MiB
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where every kubelet mounts it
Events = list[WatchEvent]  # those that arrived together


class Client:
    """Client of one cluster, an async context manager. A request that fails raises ApiError and nothing else.

    Requests may run concurrently on one loop; the library's pool limits their connections. Their time limits are
    `REQUEST_TIMEOUT`, `LIST_TIMEOUT` for a page of a list, and for a watch the silence that it is called with.
    """

    def __init__(self, access: Access) -> None:
        """`access` supplies server, credentials and connections; the client closes it."""
        self._access = access

    @classmethod
    def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Client:
        """Return a client by a kubeconfig; without one by the service account of this pod, else as kubectl would.

        Sends nothing yet. Raises ConfigError if there is none of these."""
        if kubeconfig:
            return cls(Kubeconfig(kubeconfig, context))
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return cls(ServiceAccount(SERVICE_ACCOUNT))
        paths = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
        if not any(Path(path).exists() for path in paths.split(":")):
            raise ConfigError(
                f"no cluster is configured: this is not a pod, and {paths} does not exist",
                field="kubeconfig",
                remedy="set the path of a kubeconfig",
            )
        return cls(Kubeconfig(paths, context))

    async def __aenter__(self) -> Self:
        """Read the credentials. Raises ConfigError if that fails."""
        await self._access.entry()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections; requests under way fail."""
        await self._access.close()

    @property
    def server(self) -> str:
        """URL of the API server; "" before the first request."""
        return self._access.server

    @property
    def host_port(self) -> tuple[str, int]:
        """Host name or address, and port, that connections go to."""
        parts = urlsplit(self.server)
        return parts.hostname or "", parts.port or 443

    # Reading.

    async def list(
        self, resource: Resource, *, labels: str = "", fields: str = "", limit: int = PAGE_SIZE
    ) -> AsyncGenerator[Page, None]:
        """Yield the collection, or what the selectors match, in pages of `limit` objects.

        Raises ApiError 410 if the list expires between two pages; start again then."""
        query = {"limit": str(limit), **_selectors(labels, fields)}
        while True:
            answer = await self._call("GET", resource.path(), query, timeout=LIST_TIMEOUT)
            metadata, items = answer.get("metadata") or {}, answer.get("items") or []
            kind, version = str(answer.get("kind", "")).removesuffix("List"), answer.get("apiVersion")
            for item in items:  # items of typed lists leave out what the list itself has
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
        silence: float = SILENCE,
    ) -> AsyncGenerator[Events, None]:
        """Yield events after `resource_version`, bookmarks included, until the server ends the watch.

        `timeout`: seconds after which the server ends it.
        Events that arrive together are yielded together; first of all an empty list, once the server has accepted.
        Raises ApiError "Silent" after `silence` seconds without a byte."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, int(timeout))),
            **_selectors(labels, fields),
        }
        # No limit for the whole: the server ends a watch. sock_read limits the time without a byte.
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=silence)
        async with self._answer("GET", resource.path(), query, limits=limits) as response:
            yield []
            rest = b""  # the beginning of an event whose end has not arrived
            # Not aiohttp's line reader: its limit for a line is smaller than an event may be.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE:
                    raise ApiError(f"an event of {resource} is longer than {MAX_LINE} bytes", reason="Malformed")
                if lines:
                    yield [_event(line) for line in lines if line]

    async def get(self, resource: Resource, name: str) -> Object:
        """Return one object; ApiError 404 if it does not exist."""
        return await self._call("GET", resource.path(name))

    async def get_path(self, path: str) -> Object:
        """Return any JSON document of the API, such as an OpenAPI schema."""
        return await self._call("GET", path)

    async def version(self) -> str:
        """Return the version of the API server, as in `v1.34.4`."""
        return str((await self._call("GET", "/version")).get("gitVersion", ""))

    async def served(self, group: str) -> tuple[str, ...]:
        """Return the versions in which the API group is served, preferred one first; () if it is not served."""
        try:
            answer = await self._call("GET", f"/apis/{group}")
        except ApiError as error:
            if error.status == 404:
                return ()
            raise
        return tuple(str(version["version"]) for version in answer.get("versions") or ())

    # Writing. Each method returns the object as the server stored it.

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Create an object; ApiError 409 if there is one of that name."""
        return await self._call("POST", resource.path(), body=obj)

    async def replace(self, resource: Resource, obj: Object, *, subresource: str = "") -> Object:
        """Replace an object. ApiError 409 if `obj` has a resourceVersion and the object changed since."""
        return await self._call("PUT", resource.path(_name(obj), subresource), body=obj)

    async def apply(
        self, resource: Resource, obj: Object, *, field_manager: str, subresource: str = "", force: bool = True
    ) -> Object:
        """Server-side apply: `field_manager` owns the fields of `obj`; fields it owned and left out are removed.

        Without `force` ApiError 409 if another manager owns one of the fields."""
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
        """Patch an object with a JSON merge patch (RFC 7386): null removes a field."""
        query = {"fieldManager": field_manager} if field_manager else None
        path = resource.path(name, subresource)
        return await self._call("PATCH", path, query, body=dict(patch), content="application/merge-patch+json")

    async def delete(self, resource: Resource, name: str) -> None:
        """Delete an object; ApiError 404 if it does not exist."""
        await self._call("DELETE", resource.path(name))

    # HTTP.

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
        """Send a request and decode the answer, within `timeout` seconds."""
        limits = aiohttp.ClientTimeout(total=timeout, connect=CONNECT_TIMEOUT)
        async with self._answer(method, path, query, body=body, content=content, limits=limits) as response:
            answer = _decode(await response.read())
        if not isinstance(answer, dict):
            raise ApiError(f"{method} {path}: the answer is not a JSON object", reason="Malformed")
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
        """Send a request; yields the response once its status is 2xx, for the caller to read the body."""
        what = f"{method} {path}"
        entry = await self._access.entry_or_error()
        entry.users += 1  # keeps the pool open if the credentials are replaced meanwhile
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
                    if response.status == 401:  # a token that has expired or was revoked
                        self._access.invalidate()
                    raise _refusal(what, response, await response.read())
                yield response
        except aiohttp.ClientSSLError as error:
            self._access.invalidate()
            raise ApiError(f"{what}: {error}", reason="Unreachable") from error
        except TimeoutError as error:
            raise ApiError(f"{what}: no answer in time", reason="Silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(f"{what}: {error or type(error).__name__}", reason="Unreachable") from error
        except ValueError as error:  # aiohttp: a header or a line is longer than its limit
            raise ApiError(f"{what}: {error}", reason="Malformed") from error
        finally:
            entry.users -= 1
            await self._access.close_replaced()


def _selectors(labels: str, fields: str) -> dict[str, str]:
    """Query parameters of the selectors that are not empty."""
    return {key: text for key, text in (("labelSelector", labels), ("fieldSelector", fields)) if text}


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _decode(text: bytes) -> Any:
    """Decode JSON; ApiError "Malformed" if it is none or is nested too deeply."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(f"the answer is not JSON: {error}", reason="Malformed") from error


def _event(line: bytes) -> WatchEvent:
    """Decode one line of a watch. An ERROR event, such as 410 Expired, is raised as ApiError."""
    event = _decode(line)
    kind, thing = (event.get("type"), event.get("object")) if isinstance(event, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(thing, dict):
        raise ApiError("an event has no type or no object", reason="Malformed")
    if kind == "ERROR":
        raise _from_status("watch", thing, int(thing.get("code") or 500), None)
    return WatchEvent(kind, thing)


def _refusal(what: str, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    """The error of a response that is not 2xx: a Status object, or from a proxy any text."""
    try:
        status = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        status = None
    if not isinstance(status, dict):
        status = {"message": body[:200].decode(errors="replace").strip() or response.reason}
    return _from_status(what, status, response.status, response.headers.get("Retry-After"))


def _from_status(what: str, status: Object, code: int, header: str | None) -> ApiError:
    """The error of a `Status` object (k8s.io/apimachinery, meta/v1).

    "ResourceVersionTooLarge" is only among its causes, while the reason is the general "Timeout"."""
    details = status.get("details") or {}
    seconds = header if header and header.isdigit() else details.get("retryAfterSeconds")
    causes = [cause.get("reason") for cause in details.get("causes") or () if isinstance(cause, dict)]
    reason = "ResourceVersionTooLarge" if "ResourceVersionTooLarge" in causes else str(status.get("reason") or "")
    message = str(status.get("message") or reason or "refused")
    return ApiError(
        f"{what}: {message[:500]}", status=code, reason=reason, retry_after=float(seconds) if seconds else None
    )
