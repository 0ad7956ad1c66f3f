"""Raw netlink socket that sends requests in batches and reads the acknowledgements afterwards.

Why two ways to the kernel: pyroute2 0.9 takes about 280 µs to encode a route and 130 µs to decode one, and a world of
20,000 prefixes is 40,000 routes. Objects that come by the thousand (routes and rules in `rtnetlink`, neighbours in
`neighbours`, flows in `conntrack`) are therefore packed with struct and sent through `NetlinkSocket`. Objects that
come by the dozen (devices and addresses), whose messages nest deeply and differ by device type, go through `links`,
the door to pyroute2.

Layouts and numbers: linux/netlink.h. Byte order is the host's, unless a protocol says otherwise.
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

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12  # protocols: rtnetlink(7), nfnetlink
NLMSG_ERROR, NLMSG_DONE = 2, 3
# Flags of a request, and of an answer (DUMP_INTR, ACK_TLVS).
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 1, 4, 0x300, 0x10, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
# Socket options. CAP_ACK: an acknowledgement echoes the header of its request only. EXT_ACK: it carries a sentence.
# GET_STRICT_CHK: the kernel filters dumps by table and protocol instead of ignoring the filter (Linux 4.20).
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
SO_RCVBUFFORCE = 33  # like SO_RCVBUF, but beyond net.core.rmem_max; needs CAP_NET_ADMIN

NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE_HEADER = struct.Struct("=HH")  # nlattr: length with this header, type
_U32 = struct.Struct("=I")
_SEQUENCE_OFFSET = 8  # in nlmsghdr
_ATTR_MSG = 1  # NLMSGERR_ATTR_MSG: the sentence of an extended acknowledgement

# Requests in one send. Their acknowledgements wait in the receive buffer until the send returns and take about 1 KiB
# of it each, so this many fit the default of 208 KiB (net.core.rmem_default) even where it may not be raised.
WINDOW = 128
ANSWER_TIMEOUT = 10.0  # seconds; the kernel answers within milliseconds unless its lock is held
DUMP_ATTEMPTS = 16  # of a dump that changes keep interrupting
_RECEIVE_BYTES = 1 << 20  # more than the kernel puts into one datagram (32 KiB)
_BUFFER_BYTES = 4 << 20  # of the receive buffer, where it may be raised: far more than the replies to one window


class Reply(NamedTuple):
    """The kernel's acknowledgement of one request."""

    errno: int  # 0 for success, else positive
    detail: str  # the sentence of the extended acknowledgement, "" without one


class NetlinkSocket:
    """One netlink socket. Blocking; for one thread at a time.

    Every method raises HostError if the socket fails or the kernel does not answer in time. The outcome of the
    requests under way is then unknown, and the state has to be read again.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise host_error("netlink socket", error.errno or 0) from error
        self._socket.bind((0, 0))
        self._socket.settimeout(ANSWER_TIMEOUT)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        with contextlib.suppress(PermissionError):  # without it WINDOW still fits
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
        self.port: int = self._socket.getsockname()[0]  # notifications about changes made through it carry this
        self._sequence = 0  # of the last request; answers carry that of their request

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()

    def request(self, messages: Sequence[bytes]) -> list[Reply]:
        """Send requests (built by `pack_message` with NLM_F_ACK) and return one reply for each, in order.

        The kernel executes them in order and goes on after a refused one. Sequence numbers are written here.
        """
        replies: list[Reply] = []
        for start in range(0, len(messages), WINDOW):
            replies += self._request_window(messages[start : start + WINDOW])
        return replies

    def _request_window(self, messages: Sequence[bytes]) -> list[Reply]:
        """Send at most WINDOW requests as one datagram and collect their replies by sequence number."""
        first = self._sequence + 1
        self._sequence = (self._sequence + len(messages)) & 0x7FFFFFFF
        if self._sequence < first:  # wrapped: the numbers of one window have to be consecutive
            first, self._sequence = 1, len(messages)
        batch = bytearray()
        for offset, message in enumerate(messages):
            at = len(batch)
            batch += message
            _U32.pack_into(batch, at + _SEQUENCE_OFFSET, first + offset)
        self._send(bytes(batch))
        replies: list[Reply | None] = [None] * len(messages)
        missing = len(messages)
        while missing:
            for kind, flags, sequence, body in _messages(self._receive()):
                place = sequence - first
                # Anything else is a late answer to an earlier request that timed out.
                if kind == NLMSG_ERROR and 0 <= place < len(replies) and replies[place] is None:
                    replies[place] = _parse_reply(flags, body)
                    missing -= 1
        return [reply for reply in replies if reply is not None]

    def query(self, kind: int, body: bytes) -> bytes | Reply:
        """Send a request with a single answer (RTM_GETROUTE of one address); return its body, or the refusal."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._send(pack_message(kind, 0, body, sequence=self._sequence))
        while True:
            for type_, flags, sequence, content in _messages(self._receive()):
                if sequence == self._sequence:
                    return _parse_reply(flags, content) if type_ == NLMSG_ERROR else content

    def dump(self, kind: int, body: bytes, keep: Callable[[bytes], bool] = lambda _: True) -> list[tuple[int, bytes]]:
        """Dump a table: (message type, body) of every entry for which `keep` returns True.

        `keep` sees each body once per attempt and may collect from it. A dump that a concurrent change interrupted
        (NLM_F_DUMP_INTR) may miss entries and is repeated, up to DUMP_ATTEMPTS times; then HostError.
        """
        for _ in range(DUMP_ATTEMPTS):
            found = self._dump_once(kind, body, keep)
            if found is not None:
                return found
        raise HostError(
            "the kernel's tables change faster than they can be read",
            subject="netlink dump",
            remedy="find the program that keeps changing routes with `ip monitor`",
        )

    def _dump_once(self, kind: int, body: bytes, keep: Callable[[bytes], bool]) -> list[tuple[int, bytes]] | None:
        """Return the entries of one dump, None if it was interrupted."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        expected = self._sequence
        self._send(pack_message(kind, NLM_F_DUMP, body, sequence=expected))
        found: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for type_, flags, sequence, content in _messages(self._receive()):
                if sequence != expected:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if type_ in (NLMSG_ERROR, NLMSG_DONE):
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    # The kernel's answers for an absent table, and for a family it was built without: no entries.
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
        """Return one datagram. ENOBUFS means that answers were dropped."""
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:  # TimeoutError has no errno
            raise host_error("netlink socket", error.errno or errno.ETIMEDOUT) from error


def pack_message(kind: int, flags: int, body: bytes, *, sequence: int = 0) -> bytes:
    """Return one request: nlmsghdr, `body` (family header and attributes), padding to 4 bytes."""
    length = NLMSGHDR.size + len(body)
    return NLMSGHDR.pack(length, kind, NLM_F_REQUEST | flags, sequence, 0) + body + bytes(-length & 3)


def pack_attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to 4 bytes. Or NLA_F_NESTED into `kind` for a nest."""
    return _ATTRIBUTE_HEADER.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def pack_u32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits in host byte order."""
    return _ATTRIBUTE_HEADER.pack(8, kind) + _U32.pack(value)


def parse_attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Return attribute type → value from offset `at` on, flags removed from the type.

    The last of a repeated type counts. A malformed length ends the parsing.
    """
    found: dict[int, bytes] = {}
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE_HEADER.unpack_from(data, at)
        if length < 4 or at + length > end:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence, body) of each message in a datagram."""
    at, end = 0, len(data)
    while at + NLMSGHDR.size <= end:
        length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(data, at)
        if length < NLMSGHDR.size:
            return
        yield kind, flags, sequence, data[at + NLMSGHDR.size : at + length]
        at += (length + 3) & ~3


def _parse_reply(flags: int, body: bytes) -> Reply:
    """Return the Reply of an NLMSG_ERROR: a negative errno, the request's header (CAP_ACK), attributes."""
    code: int = -struct.unpack_from("=i", body)[0]
    detail = ""
    if code and flags & NLM_F_ACK_TLVS:
        sentence = parse_attributes(body, 4 + NLMSGHDR.size).get(_ATTR_MSG, b"")
        detail = sentence.rstrip(b"\0").decode(errors="replace")
    return Reply(code, detail)
