"""The TUN device: a descriptor and the ioctls on it. The only module that imports python-pytun.

Opened for whole superpackets: every frame starts with a 10-byte virtio-net header (IFF_VNET_HDR), and the kernel
hands over what TUNSETOFFLOAD allows (Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h). pytun opens
the device. Everything after that is done with the descriptor alone, so that one that was kept over a restart can be
used in the same way. Everything acts on the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

import pytun

from ravenvpn.errors import HostError

# include/uapi/linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_USO4 = 0x20  # Linux ≥ 6.2
TUN_F_USO6 = 0x40
# include/uapi/linux/sockios.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCGIFMTU = 0x8921
SIOCSIFMTU = 0x8922
IFF_UP = 0x1  # include/uapi/linux/if.h

VNET_HEADER_SIZE = 10  # bytes; struct virtio_net_hdr
MAX_NAME = 15  # bytes; IFNAMSIZ less its terminator

_IFREQ_FLAGS = struct.Struct("16sH22x")  # struct ifreq with ifr_flags
_IFREQ_MTU = struct.Struct("16si20x")  # struct ifreq with ifr_mtu


class Tun:
    """An open TUN device. It lives as long as the descriptor, unless it was made persistent.

    `fd` is non-blocking and close-on-exec. `tso` and `uso` are the read offloads that the kernel granted.
    """

    def __init__(self, fd: int, *, tso: bool, uso: bool) -> None:
        """Take over a descriptor that is set up; use `open` or `adopt`."""
        self.fd = fd
        self.tso = tso
        self.uso = uso
        # Any socket can ask about a device; this one stays in the namespace it was made in.
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def open(cls, name: str, *, tso: bool = True, uso: bool = True) -> Tun:
        """Create the device `name` (or attach to a persistent one), down and without addresses.

        `tso` and `uso` ask for superpackets; without them the kernel hands over plain packets. Raises HostError.
        """
        if not 0 < len(os.fsencode(name)) <= MAX_NAME or name in {".", ".."} or set(name) & set("/: \t\n"):
            raise HostError(f"{name!r} cannot name a network device: 1 to {MAX_NAME} bytes, no '/', ':' or blanks")
        try:
            device = pytun.TunTapDevice(name=name, flags=pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR)
        except (OSError, pytun.Error) as error:
            raise _explain(name, error) from error
        # pytun cannot wrap a kept descriptor, so it only opens: keep a duplicate, and drop its object.
        try:
            fd = fcntl.fcntl(device.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            device.close()
        return cls._set_up(fd, name, tso=tso, uso=uso)

    @classmethod
    def adopt(cls, fd: int, *, tso: bool = True, uso: bool = True) -> Tun:
        """Take over the descriptor of a TUN device that another process opened; packets that wait in it are kept.

        Raises HostError, and leaves the descriptor open, if it is not a TUN device with IFF_NO_PI and IFF_VNET_HDR.
        For session hand-over on restart and for systemd's descriptor store; no caller in the agent yet.
        """
        try:
            name, flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(fd, TUNGETIFF, _IFREQ_FLAGS.pack(b"", 0)))
        except OSError as error:
            raise HostError(f"descriptor {fd} is not that of a TUN device: {error.strerror}") from error
        wanted = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        if flags & wanted != wanted:
            raise HostError(f"descriptor {fd} is that of a TUN device with other flags: {flags:#06x}")
        return cls._set_up(fd, os.fsdecode(name.rstrip(b"\0")), tso=tso, uso=uso, close_on_error=False)

    @classmethod
    def _set_up(cls, fd: int, name: str, *, tso: bool, uso: bool, close_on_error: bool = True) -> Tun:
        """Set descriptor flags, header size and offloads, which a new device and an adopted one need alike."""
        try:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
            # A persistent device may have been left with another header size.
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_SIZE))
            tso, uso = _set_offloads(fd, tso=tso, uso=uso)
        except OSError as error:
            if close_on_error:
                os.close(fd)
            raise HostError(
                f"TUN device {name}: {error.strerror}: this kernel's TUN is too old for ravenvpn"
            ) from error
        return cls(fd, tso=tso, uso=uso)

    def set_offloads(self, *, tso: bool, uso: bool) -> None:
        """Ask the kernel for superpackets of TCP and UDP, or for none; `tso` and `uso` are then what it granted.

        Superpackets that wait in the device keep their form. Raises HostError.
        """
        try:
            self.tso, self.uso = _set_offloads(self.fd, tso=tso, uso=uso)
        except OSError as error:
            raise HostError(f"the offloads of the TUN device cannot be set: {error.strerror}") from error

    @property
    def name(self) -> str:
        """The device's name right now: devices can be renamed. Raises HostError if the device was deleted."""
        try:
            request = fcntl.ioctl(self.fd, TUNGETIFF, _IFREQ_FLAGS.pack(b"", 0))
        except OSError as error:
            raise HostError("the TUN device has been deleted") from error
        return os.fsdecode(_IFREQ_FLAGS.unpack(request)[0].split(b"\0", 1)[0])

    @property
    def exists(self) -> bool:
        """Whether the device still exists: `ip link delete` leaves a descriptor without a device."""
        try:
            fcntl.ioctl(self.fd, TUNGETIFF, _IFREQ_FLAGS.pack(b"", 0))
        except OSError:
            return False
        return True

    @property
    def mtu(self) -> int:
        """Size of the largest inner packet in bytes. Raises HostError if the device was deleted."""
        try:
            request = fcntl.ioctl(self._control, SIOCGIFMTU, _IFREQ_MTU.pack(os.fsencode(self.name), 0))
        except OSError as error:
            raise HostError(f"the MTU of the TUN device cannot be read: {error.strerror}") from error
        return int(_IFREQ_MTU.unpack(request)[1])

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        """Set the MTU in bytes. Raises HostError, also for a size that the kernel refuses."""
        try:
            fcntl.ioctl(self._control, SIOCSIFMTU, _IFREQ_MTU.pack(os.fsencode(self.name), mtu))
        except OSError as error:
            raise HostError(f"the MTU of the TUN device cannot be set to {mtu}: {error.strerror}") from error

    @property
    def is_up(self) -> bool:
        """Whether the device is administratively up; False if it was deleted."""
        try:
            return bool(self._flags() & IFF_UP)
        except (HostError, OSError):
            return False

    def set_up(self) -> None:
        """Set the device up, for tests; wg-quick and the agent's host state do this themselves. Raises HostError."""
        try:
            request = _IFREQ_FLAGS.pack(os.fsencode(self.name), self._flags() | IFF_UP)
            fcntl.ioctl(self._control, SIOCSIFFLAGS, request)
        except OSError as error:
            raise HostError(f"the TUN device cannot be set up: {error.strerror}") from error

    def close(self) -> None:
        """Close the descriptor, which deletes a device that is not persistent. Safe to call twice."""
        self._control.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _flags(self) -> int:
        """Return the interface flags (netdevice(7)). Raises OSError or HostError."""
        request = fcntl.ioctl(self._control, SIOCGIFFLAGS, _IFREQ_FLAGS.pack(os.fsencode(self.name), 0))
        return int(_IFREQ_FLAGS.unpack(request)[1])


def _set_offloads(fd: int, *, tso: bool, uso: bool) -> tuple[bool, bool]:
    """Set the read offloads asked for, or as many as the kernel grants; return those set, as (tso, uso)."""
    plain = TUN_F_CSUM if tso or uso else 0
    with_tso = plain | TUN_F_TSO4 | TUN_F_TSO6
    steps = [(0, False, False)]
    if tso:
        steps.append((with_tso, True, False))
    if tso and uso:
        # The kernel grants USO for both families at once, and only beside checksum offload.
        steps.append((with_tso | TUN_F_USO4 | TUN_F_USO6, True, True))
    for offloads, has_tso, has_uso in reversed(steps):
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
        except OSError:
            if offloads == 0:
                raise
        else:
            return has_tso, has_uso
    raise AssertionError("the last step returns or raises")


def _explain(name: str, error: Exception) -> HostError:
    """Return the error for a device that could not be opened, with the remedy."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if code in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return HostError(
            "/dev/net/tun is missing: load the module (modprobe tun), and in a container pass the device in"
        )
    if code == errno.EPERM and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return HostError(
            "no permission to open /dev/net/tun: run as root or with CAP_NET_ADMIN, and allow the device"
        )
    if code in {errno.EPERM, errno.EACCES}:
        return HostError(f"creating the TUN device {name} is not permitted: run as root or with CAP_NET_ADMIN")
    if code == errno.EBUSY:
        return HostError(f"a process already holds the TUN device {name}: stop it, or choose another name")
    if code == errno.EINVAL and os.path.exists(f"/sys/class/net/{name}"):
        return HostError(
            f"a network device named {name} exists and is no TUN device of the right kind:"
            f" remove it (ip link delete {name}), or choose another name"
        )
    return HostError(f"the TUN device {name} cannot be opened: {error}")
