"""From an errno of the kernel to a `HostError` that names the object and a remedy."""

from __future__ import annotations

import errno
import os

from ravenvpn.errors import HostError

# Remedies for the errnos that netlink, /proc/sys and nft return for changes of ours.
_REMEDIES = {
    errno.EPERM: "run as root, or with CAP_NET_ADMIN",
    errno.EACCES: "run as root, or with CAP_NET_ADMIN",
    errno.EOPNOTSUPP: "the kernel lacks it: load or install its module (for VXLAN `modprobe vxlan`)",
    errno.EAFNOSUPPORT: "the kernel runs without IPv6; leave IPv6 out of the plan or boot without ipv6.disable=1",
    # EINVAL: usually a preferred source that is not on this host.
    errno.EINVAL: "the plan names an address or device that this host does not have now",
    errno.ENODEV: "the device is gone; it comes back when the agent opens it again",
    errno.EADDRNOTAVAIL: "the address is not on this host any more; the plan has to choose another",
    errno.ENETUNREACH: "the next hop's device is not up, or has no such neighbour",
    errno.ENETDOWN: "the device is down",
    # EADDRINUSE, EEXIST: of a VXLAN, whose VNI and port must be unique; of a route or address with a taken key.
    errno.EADDRINUSE: "another device of this host uses the same VNI and port; remove it or choose other ones",
    errno.EEXIST: "another program put something of the same key there; remove that",
    errno.ENOBUFS: "the kernel is short of socket memory; raise net.core.rmem_max",
    errno.ENOSPC: "a kernel table is full",
    errno.EMFILE: "raise the limit of open files",
    errno.EROFS: "read-only here (a container wants the host's /proc/sys/net at /host/proc/sys/net)",
    # ETIMEDOUT: of our own, after `netlink.ANSWER_TIMEOUT`.
    errno.ETIMEDOUT: "the kernel did not answer in time; it is retried",
}


def errno_name(code: int) -> str:
    """Return the symbolic name of an errno ("EPERM"), or its number if Python does not know it."""
    return errno.errorcode.get(code, str(code))


def host_error(subject: str, code: int, detail: str = "") -> HostError:
    """Build the HostError for a refused request.

    `subject` names the object ("route 10.0.0.0/8 table 9127"). `code` is a positive errno. `detail` is the kernel's
    own explanation (netlink extended acknowledgement); where there is one, it is more precise than strerror(3).
    """
    return HostError(
        detail.rstrip(".") or os.strerror(code),
        subject=subject,
        errno_name=errno_name(code),
        remedy=_REMEDIES.get(code, ""),
    )
