"""Client of the control API for the CLI: http.client over a Unix socket, as one request needs no event loop.

The API is that of `ravenvpn.control`; answers are decoded strictly into the values of `agent.reports`, but fields
that a newer agent adds are ignored, so that CLI and agent may differ in version.
"""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from ravenvpn.config import RUN_DIRECTORY
from ravenvpn.errors import AgentUnreachableError, RavenError

T = TypeVar("T")  # type of the answer

# Option of every verb that asks an agent. Its default follows RAVENVPN_RUN_DIR, as the agent's own socket does.
socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    default=Path(os.environ.get("RAVENVPN_RUN_DIR", RUN_DIRECTORY)) / "agent.sock",
    show_default=True,
    help="The agent's control socket.",
)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at `path`; `timeout` in seconds holds for each socket operation."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; called by `request`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, resource: str, kind: type[T] | Any, *, method: str = "GET", timeout: float = 5.0) -> T | Any:
    """Request `resource` ("/v1/status") from the agent at this socket and return the answer, decoded as `kind`.

    `timeout` in seconds. Raises AgentUnreachableError where no agent answers, RavenError with the agent's message
    where it refuses.
    """
    connection = _UnixConnection(path, timeout)
    # PermissionError has its own remedy; every other failure to get an answer means that no agent serves the socket.
    try:
        connection.request(method, resource)
        answer = connection.getresponse()
        body = answer.read()
    except PermissionError as error:
        raise AgentUnreachableError(
            f"{path}: permission denied; run this as root or in the group ravenvpn"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        remedy = "is the agent running? systemctl status ravenvpn"
        raise AgentUnreachableError(f"no agent answers on {path}: {cause} ({remedy})") from error
    finally:
        connection.close()
    # Errors are {"error": "…"}; anything else comes from another program on that socket.
    if answer.status != http.client.OK:
        try:
            message = msgspec.json.decode(body, type=dict[str, str])["error"]
        except (msgspec.DecodeError, KeyError):
            message = f"the agent answered {answer.status}"
        raise RavenError(message)
    return msgspec.json.decode(body, type=kind)
