"""Where wg(8) finds a userspace device: a Unix socket in /var/run/wireguard, one client at a time or several.

Only the shell: the language is `tunnel.uapi`. A client may be slow, silent or hostile (the socket is root's, but
root runs all sorts); what it can cost is bounded: one buffer each, and at most MAX_CLIENTS of them.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ravenvpn.errors import HostError
from ravenvpn.tunnel.uapi import (
    Conversation,
    DeviceChange,
    Request,
    UapiDevice,
    UapiError,
    format_errno,
    format_state,
)

log = logging.getLogger(__name__)

SOCKET_FOLDER = Path("/var/run/wireguard")

# Beyond it the client that has been silent longest is hung up on, so that an operator always gets in.
MAX_CLIENTS = 16
READ_SIZE = 64 << 10

# include/uapi/linux/inotify.h
IN_ATTRIB = 0x004  # the link count is an attribute: it falls when the file is unlinked
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800

Clients = dict[asyncio.Task[None], asyncio.StreamWriter]


def listen(name: str, folder: Path = SOCKET_FOLDER) -> UapiSocket:
    """Take the socket of device `name`, mode 0600 in a folder of mode 0700 if we make it.

    One that a dead process left behind is replaced. Raises HostError when a live one answers.
    """
    path = folder / f"{name}.sock"
    mask = os.umask(0o177)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # mkdir is subject to the mask as well.
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        return UapiSocket(_bind(path), path)
    except OSError as error:
        raise HostError(f"the configuration socket {path} can not be made: {error.strerror}") from error
    finally:
        os.umask(mask)


class UapiSocket:
    """The socket's file, bound; it goes with `close`."""

    def __init__(self, bound: socket.socket, path: Path) -> None:
        self.socket, self.path = bound, path
        self._identity = _identity(path)

    @property
    def is_there(self) -> bool:
        """Whether the file at our path is still ours."""
        return _identity(self.path) == self._identity

    def close(self) -> None:
        if self.is_there:
            self.path.unlink()
        self.socket.close()


class UapiServer:
    """Answers on a UapiSocket: `state` is what a get shows, `apply` does what a set asks or raises UapiError.

    Without `apply` the device belongs to someone else, and a set is answered with EPERM.
    """

    def __init__(
        self,
        uapi: UapiSocket,
        state: Callable[[], UapiDevice],
        apply: Callable[[DeviceChange], None] | None = None,
    ) -> None:
        self._uapi = uapi
        self._state = state
        self._apply = apply
        self._server: asyncio.Server | None = None
        self._watch: int | None = None
        self._clients: Clients = {}  # the longest silent first

    async def start(self, on_removed: Callable[[], None] = lambda: None) -> None:
        """Serve; `on_removed` is called when someone deletes the socket's file, wireguard-go's sign to end."""
        self._server = await asyncio.start_unix_server(self._serve, sock=self._uapi.socket, backlog=socket.SOMAXCONN)
        self._watch = _watch_removal(self._uapi.path)
        asyncio.get_running_loop().add_reader(self._watch, self._file_changed, on_removed)

    async def stop(self) -> None:
        """Hang up on everyone and remove the file."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)
            os.close(self._watch)
            self._watch = None
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._clients)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._uapi.close()

    def _file_changed(self, on_removed: Callable[[], None]) -> None:
        assert self._watch is not None
        os.read(self._watch, 4096)
        if not self._uapi.is_there:
            asyncio.get_running_loop().remove_reader(self._watch)
            on_removed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            silent = next(iter(self._clients))
            del self._clients[silent]
            silent.cancel()
        conversation = Conversation(socket.if_nametoindex)
        try:
            while not conversation.over:
                self._clients.pop(task, None)
                self._clients[task] = writer
                if not (data := await reader.read(READ_SIZE)):
                    break
                for request in conversation.receive(data):
                    writer.write(self._answer(request))
                    # Who asks much and reads nothing waits here, not in our memory.
                    await writer.drain()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._clients.pop(task, None)
            writer.close()

    def _answer(self, request: Request) -> bytes:
        try:
            if isinstance(request, UapiError):
                raise request
            if isinstance(request, DeviceChange):
                if self._apply is None:
                    raise UapiError(errno.EPERM, "this device is run by its agent; wg may only look")
                self._apply(request)
                return format_errno(0)
            return format_state(self._state())
        except UapiError as error:
            log.warning("wg was refused: %s", error)
            return format_errno(error.code)


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_if_stale(path)
            listener.bind(str(path))
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_if_stale(path: Path) -> None:
    """Remove a socket nobody listens on. Raises HostError if somebody does, or if it is no socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)
        try:
            knock.connect(str(path))
        except ConnectionRefusedError:
            if not path.is_socket():
                raise HostError(f"{path} is in the way and is no socket: remove it") from None
            path.unlink()
            return
        except BlockingIOError:  # alive, with a full backlog
            pass
    raise HostError(f"another process answers on {path}: stop it, or choose another device name")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _watch_removal(path: Path) -> int:
    """An inotify descriptor that becomes readable when `path` is unlinked or moved. The standard library has no
    inotify, and libraries for it poll or bring threads; three calls of libc are less."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(path), IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF) < 0:
        code = ctypes.get_errno()
        if watch >= 0:
            os.close(watch)
        raise HostError(f"{path} can not be watched: {os.strerror(code)}")
    return watch
