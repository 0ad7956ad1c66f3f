"""Traffic between hosts of a lab, sent and received by this process through sockets in the hosts' namespaces.

A `Station` answers on one host: a datagram of any size with its source address, a TCP stream with its source address
and SHA-256. `datagrams`, `streams` and `echoes` send to many stations at the same time and return an answer for each
pair of hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from ravenvpn.lab.host import LabHost, LabNode, Pod

Address = IPv4Address | IPv6Address
PORT = 7777  # UDP and TCP
TRIES, TIMEOUT = 3, 1.0  # number, seconds each; a datagram may be lost on a loaded machine
AT_ONCE = 16  # datagrams without an answer

# linux/in.h, linux/in6.h, linux/errqueue.h; Python's socket module does not have them.
IP_MTU_DISCOVER, IP_RECVERR, IP_PMTUDISC_PROBE = 10, 11, 3  # PROBE: set DF, ignore the cached path MTU
IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_DONTFRAG = 23, 25, 62
MSG_ERRQUEUE = 0x2000
_ERROR = struct.Struct("=IBBBBII")  # sock_extended_err; the sockaddr of the offender follows
_HEADERS = {4: 28, 6: 48}  # bytes of IP and UDP header


def version(address: object) -> int:
    return 6 if ":" in str(address) else 4


def family(address: object) -> socket.AddressFamily:
    return socket.AF_INET6 if version(address) == 6 else socket.AF_INET


class Pair(NamedTuple):
    """A sender, a receiver, and the receiver's address that is used."""

    sender: Pod | LabNode
    receiver: Pod | LabNode
    target: Address

    def __str__(self) -> str:
        return f"{self.sender.name} → {self.receiver.name} ({self.target})"

    @property
    def crosses(self) -> bool:
        """Whether the hosts are in different regions."""
        return region_of(self.sender) != region_of(self.receiver)


def region_of(host: Pod | LabNode) -> str:
    return (host.node if isinstance(host, Pod) else host).region.name


def pairs(senders: Iterable[Pod | LabNode], receivers: Sequence[Pod | LabNode]) -> list[Pair]:
    """Return every sender with every other receiver, at both addresses of the receiver."""
    return [
        Pair(one, other, address)
        for one, other in itertools.product(senders, receivers)
        if one is not other
        for address in (other.v4, other.v6)
    ]


class Station:
    """Answers on the addresses of a host while the `with` block runs."""

    def __init__(self, host: Pod | LabNode) -> None:
        self._sockets: list[socket.socket] = []
        self._datagrams: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        for address in (host.v4, host.v6):
            datagrams = host.socket(family(address), socket.SOCK_DGRAM)
            datagrams.bind((str(address), PORT))
            never_fragment(datagrams)
            stream = host.socket(family(address), socket.SOCK_STREAM)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stream.bind((str(address), PORT))
            for sock in (datagrams, stream):
                sock.setblocking(False)
                self._sockets.append(sock)
            self._datagrams.append(datagrams)

    async def __aenter__(self) -> Station:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            if sock in self._datagrams:
                loop.add_reader(sock, self._echo, sock)
            else:
                self._servers.append(await asyncio.start_server(self._digest, sock=sock, backlog=256))
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._datagrams:
            loop.remove_reader(sock)
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()

    @staticmethod
    def _echo(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # an ICMP error of an earlier answer; the sender retries
            data, source = sock.recvfrom(65535)
            sock.sendto(data[:8] + ip_address(source[0]).packed, source)

    @staticmethod
    async def _digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            (left,) = struct.unpack("!Q", await reader.readexactly(8))
            digest = hashlib.sha256()
            while left:
                data = await reader.read(min(left, 1 << 17))
                if not data:
                    return
                digest.update(data)
                left -= len(data)
            source = writer.get_extra_info("peername")[0]
            writer.write(json.dumps([source, digest.hexdigest()]).encode())
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def stations(hosts: Iterable[Pod | LabNode]):
    """Run a station on every host while the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(Station(host))
        yield


def never_fragment(sock: socket.socket) -> None:
    """Set DF on every packet, whatever path MTU the kernel has cached."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)


@dataclass(frozen=True)
class Refusal:
    """Answer to a datagram that is too large: the MTU in the ICMP error, and its sender.

    The sender is None if the kernel of the sending host has refused the datagram.
    """

    mtu: int
    offender: Address | None


Answer = Address | Refusal | str  # the source address at the receiver, or a refusal, or another error


class _Sender:
    """A UDP socket of one host and family. A number in each datagram matches it to its answer."""

    def __init__(self, host: LabHost, address: Address) -> None:
        self._sock = host.socket(family(address), socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        never_fragment(self._sock)
        level, option = (
            (socket.IPPROTO_IP, IP_RECVERR) if version(address) == 4 else (socket.IPPROTO_IPV6, IPV6_RECVERR)
        )
        self._sock.setsockopt(level, option, 1)
        self._waiting: dict[bytes, asyncio.Future[Answer]] = {}
        self._length = 4 if version(address) == 4 else 16

    async def ask(self, target: Address, size: int, number: int) -> Answer:
        """Send a datagram of `size` bytes, headers included, up to TRIES times, and return the answer."""
        name = struct.pack("!Q", number)
        payload = name + bytes(size - _HEADERS[version(target)] - len(name))
        loop = asyncio.get_running_loop()
        answer: Answer = "no answer"
        for _ in range(TRIES):
            future: asyncio.Future[Answer] = loop.create_future()
            self._waiting[name] = future
            self._send(name, payload, target)
            try:
                return await asyncio.wait_for(future, TIMEOUT)
            except TimeoutError:
                continue
        return answer

    def _send(self, name: bytes, payload: bytes, target: Address) -> None:
        # The error may be that of an earlier datagram, whose ICMP error has arrived meanwhile.
        for _ in range(AT_ONCE):
            try:
                self._sock.sendto(payload, (str(target), PORT))
                return
            except OSError:
                self._readable()
                if name not in self._waiting:
                    return

    def __enter__(self) -> _Sender:
        asyncio.get_running_loop().add_reader(self._sock, self._readable)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        self._read_errors()
        while True:
            try:
                data = self._sock.recv(65535)
            except BlockingIOError:
                return
            except OSError:
                self._read_errors()
                continue
            self._answer(data[:8], ip_address(data[8 : 8 + self._length]))

    def _read_errors(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(2048, 512, MSG_ERRQUEUE)
            except OSError:
                return
            for _, _, control in ancillary:
                code, origin, _, _, _, info, _ = _ERROR.unpack_from(control)
                offender = _offender(control[_ERROR.size :]) if origin != 1 else None  # 1: SO_EE_ORIGIN_LOCAL
                answer: Answer = Refusal(info, offender) if code == 90 else f"{os.strerror(code)} from {offender}"
                if data[:8] in self._waiting:
                    self._answer(data[:8], answer)
                elif origin == 1:  # a local error quotes no payload, so it may belong to any open request
                    for name in list(self._waiting):
                        self._answer(name, answer)

    def _answer(self, name: bytes, answer: Answer) -> None:
        future = self._waiting.pop(name, None)
        if future is not None and not future.done():
            future.set_result(answer)


def _offender(sockaddr: bytes) -> Address | None:
    kind = struct.unpack_from("=H", sockaddr)[0] if len(sockaddr) >= 8 else 0
    if kind == socket.AF_INET:
        return ip_address(sockaddr[4:8])
    return ip_address(sockaddr[8:24]) if kind == socket.AF_INET6 else None


async def datagrams(asked: Sequence[Pair], size: int = 100, at_once: int = AT_ONCE) -> dict[Pair, Answer]:
    """Send a datagram of `size` bytes, headers included, for each pair with DF set, and return the answers."""
    answers: dict[Pair, Answer] = {}
    numbers, gate = itertools.count(1), asyncio.Semaphore(at_once)
    with contextlib.ExitStack() as stack:
        senders: dict[tuple[str, int], _Sender] = {}
        for pair in asked:
            key = (pair.sender.name, version(pair.target))
            if key not in senders:
                senders[key] = stack.enter_context(_Sender(pair.sender, pair.target))

        async def one(pair: Pair) -> None:
            async with gate:
                sender = senders[pair.sender.name, version(pair.target)]
                answers[pair] = await sender.ask(pair.target, size, next(numbers))

        await asyncio.gather(*(one(pair) for pair in asked))
    return answers


async def streams(asked: Sequence[Pair], octets: int, at_once: int = 6, limit: float = 60.0) -> dict[Pair, Answer]:
    """Send `octets` bytes by TCP for each pair, and return the source address if the receiver's checksum is right."""
    block = os.urandom(octets + len(asked))
    answers: dict[Pair, Answer] = {}
    gate = asyncio.Semaphore(at_once)

    async def one(pair: Pair, offset: int) -> None:
        data = memoryview(block)[offset : offset + octets]  # different content for each pair
        async with gate:
            try:
                answers[pair] = await asyncio.wait_for(_send(pair, data), limit)
            except (OSError, TimeoutError, ValueError) as error:
                answers[pair] = f"{type(error).__name__}: {error}"

    await asyncio.gather(*(one(pair, offset) for offset, pair in enumerate(asked)))
    return answers


async def _send(pair: Pair, data: memoryview) -> Answer:
    sock = pair.sender.socket(family(pair.target), socket.SOCK_STREAM)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(sock, (str(pair.target), PORT))
    except BaseException:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(struct.pack("!Q", len(data)))
        for start in range(0, len(data), 1 << 17):
            writer.write(bytes(data[start : start + (1 << 17)]))
            await writer.drain()
        source, digest = json.loads(await reader.read(1000))
        return ip_address(source) if digest == hashlib.sha256(data).hexdigest() else "a wrong checksum"
    finally:
        writer.close()


async def echoes(asked: Sequence[Pair]) -> dict[Pair, Answer]:
    """Send an ICMP echo request for each pair, and return the source addresses of the replies."""
    answers: dict[Pair, Answer] = {}
    waiting: dict[tuple[str, int], asyncio.Future[Answer]] = {}
    loop = asyncio.get_running_loop()
    socks: dict[tuple[str, int], socket.socket] = {}

    def readable(host: str, ip: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, source = socks[host, ip].recvfrom(2048)
                message = data[(data[0] & 15) * 4 :] if ip == 4 else data
                if message[0] == (0 if ip == 4 else 129):
                    future = waiting.pop((host, struct.unpack_from("!I", message, 4)[0]), None)
                    if future is not None and not future.done():
                        future.set_result(ip_address(source[0].partition("%")[0]))

    async def one(pair: Pair, number: int) -> None:
        ip = version(pair.target)
        async with gate:
            for _ in range(TRIES):
                future: asyncio.Future[Answer] = loop.create_future()
                waiting[pair.sender.name, number] = future
                with contextlib.suppress(OSError):
                    socks[pair.sender.name, ip].sendto(_echo_request(ip, number), (str(pair.target), 0))
                with contextlib.suppress(TimeoutError):
                    answers[pair] = await asyncio.wait_for(future, TIMEOUT)
                    return
            answers[pair] = "no answer"

    gate = asyncio.Semaphore(AT_ONCE)
    with contextlib.ExitStack() as stack:
        for pair in asked:
            ip = version(pair.target)
            key = (pair.sender.name, ip)
            if key not in socks:
                protocol = socket.IPPROTO_ICMP if ip == 4 else socket.IPPROTO_ICMPV6
                socks[key] = stack.enter_context(pair.sender.socket(family(pair.target), socket.SOCK_RAW, protocol))
                socks[key].setblocking(False)
                loop.add_reader(socks[key], readable, *key)
                stack.callback(loop.remove_reader, socks[key])
        await asyncio.gather(*(one(pair, number) for number, pair in enumerate(asked, 1)))
    return answers


def _echo_request(ip: int, number: int) -> bytes:
    if ip == 6:
        return struct.pack("!BBHI", 128, 0, 0, number)  # the kernel computes the checksum of ICMPv6
    message = struct.pack("!BBHI", 8, 0, 0, number)
    total = sum(struct.unpack("!4H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHI", 8, 0, ~total & 0xFFFF, number)
