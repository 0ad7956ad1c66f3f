"""Minimal synchronous Kubernetes API client for scenes: it runs inside a lab namespace, one request at a time.

The client of the product is asynchronous and lives in the agents. A scene only needs to write an object and continue.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ravenvpn.lab.host import LabHost

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
Object = dict[str, Any]


class Refused(Exception):
    """The API server answered with an error status."""

    def __init__(self, method: str, path: str, status: int, text: str) -> None:
        super().__init__(f"{method} {path}: {status}: {text[:500]}")
        self.status = status


class Api:
    """A client in the namespace of `host`, with a certificate of the cluster's CA.

    `retries` covers the start of the server.
    """

    def __init__(self, host: LabHost, address: str, port: int, pki: Path, identity: str = "admin") -> None:
        self._host, self.address, self.port = host, address, port
        self._context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._context.load_cert_chain(pki / f"{identity}.crt", pki / f"{identity}.key")
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def create(self, path: str, thing: Object) -> Any:
        return self.request("POST", path, thing)

    def merge(self, path: str, patch: Mapping[str, Any]) -> Any:
        return self.request("PATCH", path, patch, MERGE)

    def apply(self, path: str, thing: Object) -> Any:
        """Apply an object by server-side apply, as `kubectl apply --server-side` does."""
        return self.request("PATCH", f"{path}?fieldManager=scene&force=true", thing, APPLY)

    def delete(self, path: str) -> Any:
        return self.request("DELETE", path)

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Return the answer as JSON. Raises Refused on an error status and OSError if the server does not answer."""
        text = None if body is None else json.dumps(body)
        for fresh in (self._connection is None, True):
            if self._connection is None:
                self._connection = self._connect()
            try:
                self._connection.request(method, path, text, {"Content-Type": kind, "Accept": "application/json"})
                answer = self._connection.getresponse()
                said = answer.read().decode()
                break
            except (OSError, http.client.HTTPException):
                self.close()
                if fresh:
                    raise  # a kept connection may have been closed by the server: only a fresh one is an error
        if answer.status >= 400:
            raise Refused(method, path, answer.status, said)
        return json.loads(said or "null") if said[:1] in "{[" else said

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        raw = self._host.socket(socket.AF_INET, socket.SOCK_STREAM)
        raw.settimeout(10)
        try:
            raw.connect((self.address, self.port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = http.client.HTTPConnection(self.address, self.port)
            connection.sock = self._context.wrap_socket(raw, server_hostname=self.address)
        except OSError:
            raw.close()
            raise
        return connection


def until_answered(ask: Any, patience: float = 30.0) -> Any:
    """Call `ask()` until the server answers and is ready.

    429, 404 (a kind that has just been created) and 5xx are retried for `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return ask()
        except (OSError, http.client.HTTPException, Refused) as error:
            passing = not isinstance(error, Refused) or error.status in (404, 429) or error.status >= 500
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
