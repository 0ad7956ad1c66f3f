"""UAPI server: the Unix socket in /var/run/wireguard by which wg(8) finds and configures a userspace device.

Only the I/O: `tunnel.uapi` parses. Only root can connect, but a client may still be slow, silent or defective; its
cost is bounded: one buffer for each client, and at most MAX_CLIENTS of them.
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

SOCKET_FOLDER = Path("/var/run/wireguard")  # where wg(8) looks

# A client beyond these replaces the one that has been silent longest, so that an operator can always connect.
MAX_CLIENTS = 16
READ_SIZE = 64 << 10  # bytes

# include/uapi/linux/inotify.h
IN_ATTRIB = 0x004  # the link count is an attribute: it falls when the file is unlinked
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800

Clients = dict[asyncio.Task[None], asyncio.StreamWriter]


def listen(name: str, folder: Path = SOCKET_FOLDER) -> UapiSocket:
    """Bind the socket of device `name` with mode 0600, in a folder of mode 0700 if it has to be created.

    A socket that a dead process left behind is replaced. Raises HostError if a running process answers on it.
    """
    path = folder / f"{name}.sock"
    mask = os.umask(0o177)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The umask applies to mkdir too, hence chmod.
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        return UapiSocket(_bind(path), path)
    except OSError as error:
        raise HostError(f"the configuration socket {path} cannot be created: {error.strerror}") from error
    finally:
        os.umask(mask)


class UapiSocket:
    """A bound socket and its file. `close` removes the file."""

    def __init__(self, bound: socket.socket, path: Path) -> None:
        self.socket, self.path = bound, path
        self._identity = _identity(path)

    @property
    def is_there(self) -> bool:
        """Whether the file at the path is still the one that was bound: same device and inode."""
        return _identity(self.path) == self._identity

    def close(self) -> None:
        """Close the socket, and remove its file unless another process has replaced it."""
        if self.is_there:
            self.path.unlink()
        self.socket.close()


class UapiServer:
    """Answers gets and sets on a UapiSocket. Owned by one event loop."""

    def __init__(
        self,
        uapi: UapiSocket,
        state: Callable[[], UapiDevice],
        apply: Callable[[DeviceChange], None] | None = None,
    ) -> None:
        """`state` returns the state for a get. `apply` applies a set or raises UapiError; without it (the agent's
        device) a set is answered with EPERM."""
        self._uapi = uapi
        self._state = state
        self._apply = apply
        self._server: asyncio.Server | None = None
        self._watch: int | None = None
        self._clients: Clients = {}  # the one silent for longest first

    async def start(self, on_removed: Callable[[], None] = lambda: None) -> None:
        """Start to serve. `on_removed` is called when the socket's file is deleted, by which wireguard-go is told to
        exit."""
        self._server = await asyncio.start_unix_server(self._serve, sock=self._uapi.socket, backlog=socket.SOMAXCONN)
        self._watch = _watch_removal(self._uapi.path)
        asyncio.get_running_loop().add_reader(self._watch, self._file_changed, on_removed)

    async def stop(self) -> None:
        """Close all connections and remove the file."""
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
        """Drain inotify, and report if the socket's file is gone. IN_ATTRIB comes for other changes too."""
        assert self._watch is not None
        os.read(self._watch, 4096)
        if not self._uapi.is_there:
            asyncio.get_running_loop().remove_reader(self._watch)
            on_removed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it closes the connection, violates the protocol or is replaced by another."""
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
                    # Back-pressure: a client that sends much and reads nothing waits here and fills no memory.
                    await writer.drain()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._clients.pop(task, None)
            writer.close()

    def _answer(self, request: Request) -> bytes:
        """Return the answer to one request; an error is logged, since wg(8) shows only its errno."""
        try:
            if isinstance(request, UapiError):
                raise request
            if isinstance(request, DeviceChange):
                if self._apply is None:
                    raise UapiError(errno.EPERM, "this device is configured by its agent; wg can only show it")
                self._apply(request)
                return format_errno(0)
            return format_state(self._state())
        except UapiError as error:
            log.warning("request of wg refused: %s", error)
            return format_errno(error.code)


def _bind(path: Path) -> socket.socket:
    """Return a listening socket at `path`; a stale socket file there is replaced."""
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
    """Remove a socket that no process listens on. Raises HostError if one does, or if the file is not a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if not path.is_socket():
                raise HostError(f"{path} exists and is not a socket: remove it") from None
            path.unlink()
            return
        except BlockingIOError:  # a process listens; its backlog is full
            pass
    raise HostError(f"another process answers on {path}: stop it, or choose another device name")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the file, None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _watch_removal(path: Path) -> int:
    """Return an inotify descriptor that becomes readable when `path` is unlinked or moved.

    The standard library has no inotify, and libraries for it poll or start threads; three calls of libc are less.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watch = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(path), IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF) < 0:
        code = ctypes.get_errno()
        if watch >= 0:
            os.close(watch)
        raise HostError(f"{path} cannot be watched: {os.strerror(code)}")
    return watch
