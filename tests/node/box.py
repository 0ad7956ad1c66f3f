"""A host in a network namespace, with commands and functions run inside it on a thread of its own."""

from __future__ import annotations

import ctypes
import difflib
import fcntl
import io
import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Box:
    """A network namespace. `call` runs a function inside, `sh` a shell command; both raise its errors."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=enter, initargs=(name,))
        # Addresses are usable at once: without duplicate address detection no test waits.
        self.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")

    def close(self) -> None:
        self._thread.shutdown()

    def call(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        return self._thread.submit(function, *args, **kwargs).result(timeout=60)

    def sh(self, command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, "sh", "-ec", command],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tun(self) -> io.FileIO:
        """Open ravenvpn0 inside, as the daemon does. The device is removed when the file is closed."""
        return self.call(open_tun)

    def dump(self) -> str:
        """Return the network state of this host, without indices, counters, timers and random addresses."""
        text = self.sh(DUMP)
        text = re.sub(r"^\d+: ", "", text, flags=re.MULTILINE)
        text = re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]|\w+_timer +[0-9.]+", "", text)
        return re.sub(r"fe80::[0-9a-f:]+", "fe80::…", text)


# `bridge fdb` shows multicast groups that the kernel joins at any time, so only entries with a destination count.
DUMP = """
printf '%s\n' 'link' 'addr' 'route show table all' 'rule' 'neigh show nud permanent' | ip -d -batch -
ip -6 rule; nft list ruleset; bridge fdb | grep dst || true
for v in '' 6; do
  if [ -s /proc/thread-self/net/ip${v}_tables_names ]; then ip${v}tables-legacy-save | grep -v '^#'; fi
done
cd /proc/sys/net; grep -r . ipv4/conf ipv6/conf 2>/dev/null | grep -v stable_secret
"""


def enter(name: str) -> None:
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def open_tun(name: str = "ravenvpn0") -> io.FileIO:
    tun = io.FileIO(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), "r+")
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def read_packet(tun: io.FileIO, wanted: Callable[[bytes], bool], timeout: float = 5.0) -> bytes | None:
    """Return the next packet from a TUN that `wanted` accepts; None if none arrives in time."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        if select.select([tun], [], [], left)[0]:
            packet = tun.read(65535)
            if packet and wanted(packet):
                return packet
    return None


def changes(before: str, after: str) -> list[str]:
    """Return the lines of two dumps that differ, as diff(1) marks them; empty if the hosts have the same state.

    The order of lines is ignored, since it depends on the age of devices.
    """
    lines = difflib.unified_diff(sorted(before.splitlines()), sorted(after.splitlines()), n=0, lineterm="")
    return [line for line in lines if line[:3] not in ("---", "+++", "@@ ")]
