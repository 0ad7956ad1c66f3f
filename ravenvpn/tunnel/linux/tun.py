"""The TUN device: the only door to python-pytun.

Opened for whole superpackets: every frame starts with a 10-byte virtio-net header (IFF_VNET_HDR), and the kernel
hands over what TUNSETOFFLOAD allows (Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h).
pytun opens the device and knows its MTU; descriptor flags, offloads and header size are ours to set. It acts on the
network namespace of the calling thread.
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
SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
IFF_UP = 0x1  # include/uapi/linux/if.h
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_USO4 = 0x20  # Linux ≥ 6.2
TUN_F_USO6 = 0x40

VNET_HEADER_SIZE = 10  # struct virtio_net_hdr
MAX_NAME = 15  # IFNAMSIZ less its terminator

_IFREQ = struct.Struct("16sH22x")


class Tun:
    """An open TUN device. `fd` is non-blocking and close-on-exec; `tso` and `uso` say which offloads the kernel gave.

    The device lives as long as the descriptor.
    """

    def __init__(self, device: pytun.TunTapDevice, *, tso: bool, uso: bool) -> None:
        self._device = device
        self.fd: int = device.fileno()
        self.tso = tso
        self.uso = uso
        # Any socket will do to ask about a device; it stays in the namespace the device was made in.
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def open(cls, name: str, *, tso: bool = True, uso: bool = True) -> Tun:
        """Create the device `name` (or attach to a persistent one), down and without addresses.

        `tso` and `uso` ask for superpackets; without them the kernel hands over plain packets. Raises HostError.
        """
        if not 0 < len(os.fsencode(name)) <= MAX_NAME or name in {".", ".."} or set(name) & set("/: \t\n"):
            raise HostError(f"{name!r} can not name a network device: 1 to {MAX_NAME} bytes, no '/', ':' or blanks")
        try:
            flags = pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR
            device = pytun.TunTapDevice(name=name, flags=flags)
        except (OSError, pytun.Error) as error:
            raise _explain(name, error) from error
        fd = device.fileno()
        try:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
            # A persistent device may have been left with another header size.
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_SIZE))
            tso, uso = _set_offloads(fd, tso=tso, uso=uso)
        except OSError as error:
            device.close()
            raise HostError(
                f"TUN device {name}: {error.strerror}: this kernel's TUN is too old for ravenvpn"
            ) from error
        return cls(device, tso=tso, uso=uso)

    def offload(self, *, tso: bool, uso: bool) -> None:
        """Ask the kernel for superpackets of TCP and UDP, or for none; `tso` and `uso` say what came of it."""
        try:
            self.tso, self.uso = _set_offloads(self.fd, tso=tso, uso=uso)
        except OSError as error:
            raise HostError(f"the offloads of the TUN device can not be set: {error.strerror}") from error

    @property
    def name(self) -> str:
        """Its name right now: devices can be renamed. Raises HostError when the device is gone."""
        try:
            request = fcntl.ioctl(self.fd, TUNGETIFF, _IFREQ.pack(b"", 0))
        except OSError as error:
            raise HostError("the TUN device has been deleted") from error
        return os.fsdecode(_IFREQ.unpack(request)[0].split(b"\0", 1)[0])

    @property
    def exists(self) -> bool:
        """Whether the device is still there: `ip link delete` leaves a descriptor without a device."""
        try:
            fcntl.ioctl(self.fd, TUNGETIFF, _IFREQ.pack(b"", 0))
        except OSError:
            return False
        return True

    @property
    def mtu(self) -> int:
        """Bytes of the largest inner packet. Raises HostError when the device is gone."""
        try:
            return int(self._device.mtu)
        except (OSError, pytun.Error) as error:
            raise HostError(f"the MTU of the TUN device can not be read: {error}") from error

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        try:
            self._device.mtu = mtu
        except (OSError, pytun.Error) as error:
            raise HostError(f"the MTU of the TUN device can not be set to {mtu}: {error}") from error

    @property
    def is_up(self) -> bool:
        """Whether an administrator has set it up; False too when it is gone."""
        try:
            request = fcntl.ioctl(self._control, SIOCGIFFLAGS, _IFREQ.pack(os.fsencode(self.name), 0))
        except (HostError, OSError):
            return False
        return bool(_IFREQ.unpack(request)[1] & IFF_UP)

    def set_up(self) -> None:
        """Set the device up; wg-quick and `node` do this themselves."""
        try:
            self._device.up()
        except (OSError, pytun.Error) as error:
            raise HostError(f"the TUN device can not be set up: {error}") from error

    def close(self) -> None:
        """Close the descriptor, which deletes a device that is not persistent. Safe to call twice."""
        self._control.close()
        self._device.close()


def _set_offloads(fd: int, *, tso: bool, uso: bool) -> tuple[bool, bool]:
    """Ask for what is wanted, and step by step for less: what was obtained, as (tso, uso)."""
    plain = TUN_F_CSUM if tso or uso else 0
    with_tso = plain | TUN_F_TSO4 | TUN_F_TSO6
    steps = [(0, False, False)]
    if tso:
        steps.append((with_tso, True, False))
    if tso and uso:
        # The kernel wants both families of USO at once, and takes it only beside checksum offload.
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
    """What the operator can do about a device that could not be opened."""
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
    return HostError(f"the TUN device {name} can not be opened: {error}")
