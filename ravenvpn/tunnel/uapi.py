"""Parser and formatter of WireGuard's userspace configuration protocol, the UAPI (wireguard.com/xplatform).

Sans-I/O: bytes that wg(8) wrote to the Unix socket go in, parsed requests come out. Nothing is applied here. A `set`
is parsed as a whole before it is returned, so that an error in its last line changes nothing; wireguard-go has
applied the lines before it by then. All other answers are those of wireguard-go.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ravenvpn.crypto.keys import KEY_BYTES, PresharedKey, PrivateKey, PublicKey
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.errors import ConfigError
from ravenvpn.prefixes import Prefix

PROTOCOL_VERSION = 1  # the only one there is

# Bounds of what a client can make us buffer.
MAX_LINE = 64 << 10  # bytes; as wireguard-go's scanner
MAX_SET = 8 << 20  # bytes; ours: a set of 65,536 peers with an address each fits


class UapiError(Exception):
    """A request is refused. `code` is the positive errno; the protocol writes it negated."""

    def __init__(self, code: int, reason: str) -> None:
        """`reason` goes to our log: the protocol has no field for it."""
        super().__init__(reason)
        self.code = code


@dataclass(slots=True)
class PeerChange:
    """The changes to one peer in a set. A field that is None leaves the setting as it is."""

    public_key: PublicKey
    update_only: bool = False  # change nothing if there is no such peer
    remove: bool = False
    preshared_key: PresharedKey | None = None  # all zero removes it
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None  # seconds, 0 for off
    replace_allowed_ips: bool = False  # remove all allowed IPs first
    allowed_ips: list[tuple[bool, Prefix]] = field(default_factory=list)  # added (True) or removed, in order


@dataclass(slots=True)
class DeviceChange:
    """A whole set. A field that is None leaves the setting as it is."""

    private_key: PrivateKey | None = None
    clear_private_key: bool = False  # sent as a key of zeros
    listen_port: int | None = None  # 0: a random one
    fwmark: int | None = None  # 0: none
    replace_peers: bool = False  # remove all peers first
    peers: list[PeerChange] = field(default_factory=list)


@dataclass(slots=True)
class UapiPeer:
    """One peer in the answer to a get."""

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    endpoint: Endpoint | None = None
    last_handshake_ns: int = 0  # Unix time in nanoseconds; 0 for never
    tx_bytes: int = 0
    rx_bytes: int = 0
    persistent_keepalive: int = 0  # seconds, 0 for off
    allowed_ips: Iterable[Prefix] = ()


@dataclass(slots=True)
class UapiDevice:
    """The device in the answer to a get."""

    private_key: PrivateKey | None = None
    listen_port: int = 0  # 0: left out
    fwmark: int = 0  # 0: left out
    peers: Iterable[UapiPeer] = ()


class Get:
    """A request for the state of the device."""


Request = Get | DeviceChange | UapiError


class Conversation:
    """Incremental parser of one client's connection: bytes in, complete requests out, in order.

    A malformed request is returned as the UapiError to answer with. Once `over` is True the client has violated the
    protocol: close the connection after the last answer.
    """

    def __init__(self, interface_index: Callable[[str], int]) -> None:
        """`interface_index` returns the index of the interface that the zone of a link-local endpoint names; it
        raises OSError if there is none."""
        self._interface_index = interface_index
        self._buffer = bytearray()
        self._set: _SetParser | None = None
        self._get = False
        self.over = False

    def receive(self, data: bytes) -> list[Request]:
        """Parse more bytes; return the requests that are complete now. Never raises for the content of `data`."""
        requests: list[Request] = []
        self._buffer += data
        start = 0
        while not self.over:
            if self._get and start < len(self._buffer):
                self._get = False
                requests.append(
                    Get() if self._buffer[start] == 0x0A else UapiError(errno.EINVAL, "a get ends with an empty line")
                )
                start += 1
                continue
            end = self._buffer.find(b"\n", start)
            if end < 0 or end - start > MAX_LINE:
                break
            line = bytes(self._buffer[start:end])
            start = end + 1
            if self._set is not None:
                if (request := self._set.line(line)) is not None:
                    self._set = None
                    requests.append(request)
            elif line == b"set=1":
                self._set = _SetParser(self._interface_index)
            elif line == b"get=1":
                self._get = True
            else:  # wireguard-go closes the connection without an answer
                self.over = True
        if self.over:
            self._buffer.clear()
            return requests
        del self._buffer[:start]
        if len(self._buffer) > MAX_LINE or (self._set is not None and self._set.size > MAX_SET):
            requests.append(UapiError(errno.EIO, "a line or a set is too long"))
            self.over = True
            self._buffer.clear()
        return requests


class _SetParser:
    """Parser of the lines after `set=1` up to the empty line. After the first error the rest is read and ignored."""

    def __init__(self, interface_index: Callable[[str], int]) -> None:
        self._interface_index = interface_index
        self._change = DeviceChange()
        self._peer: PeerChange | None = None
        self._error: UapiError | None = None
        self.size = 0

    def line(self, raw: bytes) -> DeviceChange | UapiError | None:
        """Parse one line; return the finished request, or its first error, at the empty line, else None."""
        self.size += len(raw) + 1
        raw = raw.removesuffix(b"\r")
        if not raw:
            return self._error or self._change
        if self._error is None:
            try:
                self._key_value(raw)
            except UapiError as error:
                self._error = error
                self._change = DeviceChange()
        return None

    def _key_value(self, raw: bytes) -> None:
        """Apply one line to the request. A `public_key` line starts the block of a peer; blocks never end but by
        it."""
        key, equals, value = raw.decode("utf-8", "replace").partition("=")
        if not equals:
            raise UapiError(errno.EPROTO, "a line is not key=value")
        if key == "public_key":
            self._peer = PeerChange(_key(PublicKey, value))
            self._change.peers.append(self._peer)
        elif self._peer is None:
            self._device_line(key, value)
        else:
            self._peer_line(self._peer, key, value)

    def _device_line(self, key: str, value: str) -> None:
        """Apply a line before the first peer."""
        match key:
            case "private_key":
                zero = value == "0" * 2 * KEY_BYTES
                self._change.private_key = None if zero else _key(PrivateKey, value)
                self._change.clear_private_key = zero
            case "listen_port":
                self._change.listen_port = _number(key, value, 16)
            case "fwmark":
                self._change.fwmark = _number(key, value, 32)
            case "replace_peers":
                _true(key, value)
                self._change.replace_peers = True
            case _:
                raise UapiError(errno.EINVAL, f"unknown key of a device: {key[:64]!r}")

    def _peer_line(self, peer: PeerChange, key: str, value: str) -> None:
        """Apply a line of a peer's block. Order matters: `replace_allowed_ips` discards allowed IPs before it."""
        match key:
            case "update_only":
                _true(key, value)
                peer.update_only = True
            case "remove":
                _true(key, value)
                peer.remove = True
            case "preshared_key":
                peer.preshared_key = _key(PresharedKey, value)
            case "endpoint":
                peer.endpoint = parse_endpoint(value, self._interface_index)
            case "persistent_keepalive_interval":
                peer.persistent_keepalive = _number(key, value, 16)
            case "replace_allowed_ips":
                _true(key, value)
                peer.replace_allowed_ips = True
                peer.allowed_ips.clear()
            case "allowed_ip":
                add = not value.startswith("-")
                peer.allowed_ips.append((add, _prefix(value if add else value[1:])))
            case "protocol_version":
                if value != str(PROTOCOL_VERSION):
                    raise UapiError(errno.EINVAL, f"protocol_version is not {PROTOCOL_VERSION}")
            case _:
                raise UapiError(errno.EINVAL, f"unknown key of a peer: {key[:64]!r}")


def format_state(device: UapiDevice) -> bytes:
    """Return the answer to a get, its `errno=0` included."""
    lines: list[str] = []
    if device.private_key is not None:
        lines.append(f"private_key={device.private_key.to_hex()}")
    if device.listen_port:
        lines.append(f"listen_port={device.listen_port}")
    if device.fwmark:
        lines.append(f"fwmark={device.fwmark}")
    for peer in device.peers:
        seconds, nanoseconds = divmod(peer.last_handshake_ns, 1_000_000_000)
        lines.append(f"public_key={peer.public_key.raw.hex()}")
        lines.append(f"preshared_key={(peer.preshared_key or PresharedKey.none()).to_hex()}")
        lines.append(f"protocol_version={PROTOCOL_VERSION}")
        if peer.endpoint is not None:
            lines.append(f"endpoint={peer.endpoint}")
        lines.append(f"last_handshake_time_sec={seconds}")
        lines.append(f"last_handshake_time_nsec={nanoseconds}")
        lines.append(f"tx_bytes={peer.tx_bytes}")
        lines.append(f"rx_bytes={peer.rx_bytes}")
        lines.append(f"persistent_keepalive_interval={peer.persistent_keepalive}")
        lines += [f"allowed_ip={prefix}" for prefix in peer.allowed_ips]
    return "".join(line + "\n" for line in lines).encode() + format_errno(0)


def format_errno(code: int) -> bytes:
    """Return the last lines of an answer; `code` is the positive errno, 0 for success."""
    return f"errno={-code}\n\n".encode()


def parse_endpoint(value: str, interface_index: Callable[[str], int]) -> Endpoint:
    """Parse `192.0.2.1:51820`, `[2001:db8::1]:51820` or `[fe80::1%eth0]:51820`. Raises UapiError.

    An IPv4-mapped IPv6 address becomes an IPv4 endpoint: the IPv6 socket is IPv6 only.
    """
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or bracketed != (":" in host):
        raise UapiError(errno.EINVAL, f"not an endpoint: {value[:64]!r}")
    number = _number("endpoint", port, 16)
    host, percent, zone = host.strip("[]").partition("%")
    try:
        address = ipaddress.ip_address(host)
        scope_id = 0
        if percent:
            if address.version == 4:
                raise UapiError(errno.EINVAL, f"not an endpoint: {value[:64]!r}")
            scope_id = int(zone) if zone.isascii() and zone.isdigit() else interface_index(zone)
        if not number or scope_id >= 1 << 32:
            raise ValueError("port or scope id out of range")
    except (ValueError, OSError) as error:
        raise UapiError(errno.EINVAL, f"not an endpoint: {value[:64]!r}") from error
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return Endpoint(str(address.ipv4_mapped), number)
    return Endpoint(str(address), number, scope_id)


Key = TypeVar("Key", PublicKey, PrivateKey, PresharedKey)


def _key(kind: type[Key], value: str) -> Key:
    """Parse a key of 64 hex digits. Raises UapiError with EINVAL."""
    try:
        return kind.from_hex(value)
    except ConfigError as error:  # its message never quotes the key
        raise UapiError(errno.EINVAL, error.message) from None


def _number(key: str, value: str, bits: int) -> int:
    """Parse a decimal number below 2^bits. Raises UapiError with EINVAL."""
    # int() alone would accept signs, blanks, underscores and the digits of other scripts.
    if not (value.isascii() and value.isdigit() and len(value) <= 20 and int(value) < 1 << bits):
        raise UapiError(errno.EINVAL, f"{key} is not a number below 2^{bits}")
    return int(value)


def _true(key: str, value: str) -> None:
    """Check the value of a flag, which is set by `true` and unset by leaving it out."""
    if value != "true":
        raise UapiError(errno.EINVAL, f"{key} can only be true")


def _prefix(value: str) -> Prefix:
    """Parse address/length; host bits are cleared. Raises UapiError with EINVAL."""
    _, slash, bits = value.partition("/")
    if slash and bits.isascii() and bits.isdigit() and "%" not in value:
        try:
            return ipaddress.ip_network(value, strict=False)
        except ValueError:
            pass
    raise UapiError(errno.EINVAL, f"not a prefix: {value[:64]!r}")
