"""A raw netlink socket that sends by the batch and reads the acknowledgements behind.

pyroute2 takes about 280 µs to encode a route and 130 µs to decode one; a world of 20,000 prefixes is 40,000 of them.
So what comes by the thousand (routes and rules in `rtnetlink`, flows in `conntrack`) is packed with struct and goes
through here, and everything that comes by the dozen goes through `netlink`, the door to pyroute2.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ravenvpn.errors import HostError
from ravenvpn.node.errors import host_error

# linux/netlink.h
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 1, 4, 0x300, 0x10, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
SO_RCVBUFFORCE = 33

HEADER = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")

# Acknowledgements wait in our receive buffer until the batch is sent; about 1 KiB of it each, so this many fit the
# default of 208 KiB even where it may not be raised.
WINDOW = 128


class Reply(NamedTuple):
    """What the kernel said to one request: 0 and "", or an errno and, if it gave one, a sentence."""

    errno: int
    detail: str


class NetlinkSocket:
    """One netlink socket that sends requests in batches. Not for use by two threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise host_error("netlink socket", error.errno or 0) from error
        self._socket.bind((0, 0))
        self._socket.settimeout(10.0)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        with contextlib.suppress(PermissionError):  # WINDOW fits the default
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        self.port: int = self._socket.getsockname()[0]  # notifications about our own changes carry it
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def request(self, messages: Sequence[bytes]) -> list[Reply]:
        """Send each message (built by `message`) and return what became of it, in order."""
        replies: list[Reply] = []
        for start in range(0, len(messages), WINDOW):
            replies += self._request_window(messages[start : start + WINDOW])
        return replies

    def _request_window(self, messages: Sequence[bytes]) -> list[Reply]:
        first = self._sequence + 1
        self._sequence = (self._sequence + len(messages)) & 0x7FFFFFFF
        if self._sequence < first:  # wrapped: no window may straddle the end
            first, self._sequence = 1, len(messages)
        batch = bytearray()
        for offset, message in enumerate(messages):
            at = len(batch)
            batch += message
            _U32.pack_into(batch, at + 8, first + offset)
        self._send(bytes(batch))
        replies: list[Reply | None] = [None] * len(messages)
        missing = len(messages)
        while missing:
            for kind, flags, sequence, body in _messages(self._receive()):
                place = sequence - first
                if kind == NLMSG_ERROR and 0 <= place < len(replies) and replies[place] is None:
                    replies[place] = _reply(flags, body)
                    missing -= 1
        return [reply for reply in replies if reply is not None]

    def ask(self, kind: int, body: bytes) -> bytes | Reply:
        """The one message that answers a question, or the refusal."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._send(message(kind, 0, body, sequence=self._sequence))
        while True:
            for type_, flags, sequence, content in _messages(self._receive()):
                if sequence == self._sequence:
                    return _reply(flags, content) if type_ == NLMSG_ERROR else content

    def dump(self, kind: int, body: bytes, keep: Callable[[bytes], bool] = lambda _: True) -> list[tuple[int, bytes]]:
        """What the kernel answers to a dump, as far as `keep` wants it: (message type, body).

        A dump that a change cut in two is retried.
        """
        for _ in range(16):
            found = self._dump_once(kind, body, keep)
            if found is not None:
                return found
        raise HostError(
            "the kernel's tables change faster than they can be read",
            subject="netlink dump",
            remedy="look with `ip monitor` who keeps changing routes",
        )

    def _dump_once(self, kind: int, body: bytes, keep: Callable[[bytes], bool]) -> list[tuple[int, bytes]] | None:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        wanted = self._sequence
        self._send(message(kind, NLM_F_DUMP, body, sequence=wanted))
        found: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for type_, flags, sequence, content in _messages(self._receive()):
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if type_ in (NLMSG_ERROR, NLMSG_DONE):
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    # An empty or absent table, and a kernel without IPv6, answer so: nothing of ours is there.
                    if code not in (0, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                        raise host_error("netlink dump", code)
                    return None if interrupted else found
                if keep(content):
                    found.append((type_, content))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise host_error("netlink socket", error.errno or 0) from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 20)
        except OSError as error:  # ENOBUFS or no answer within the time-out: what was done is unknown
            raise host_error("netlink socket", error.errno or errno.ETIMEDOUT) from error


def message(kind: int, flags: int, body: bytes, *, sequence: int = 0) -> bytes:
    length = HEADER.size + len(body)
    return HEADER.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + body + bytes(-length & 3)


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in host order."""
    return _ATTRIBUTE.pack(8, kind) + _U32.pack(value)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Type → value. Of a repeated type the last one counts."""
    found: dict[int, bytes] = {}
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at, end = 0, len(data)
    while at + HEADER.size <= end:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _reply(flags: int, body: bytes) -> Reply:
    code: int = -struct.unpack_from("=i", body)[0]
    detail = ""
    if code and flags & NLM_F_ACK_TLVS:
        # With CAP_ACK the echoed request is its header alone; then NLMSGERR_ATTR_MSG (1).
        text = attributes(body, 4 + HEADER.size).get(1, b"")
        detail = text.rstrip(b"\0").decode(errors="replace")
    return Reply(code, detail)
