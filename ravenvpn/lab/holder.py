"""The process that holds a node's namespaces open: network, mounts, host name.

A mount namespace can't be named as a network namespace can, so a process stays in it; /proc/PID/root is its file
system for us outside. In it /run is fresh, and so are those folders of /etc and /var/lib that agents and wg-quick
write to; the others are links to the machine's own. Nothing of that shows outside.
"""

from __future__ import annotations

import os
import subprocess

from ravenvpn.errors import HostError
from ravenvpn.lab.ownership import MARK

_SCRIPT = r"""
set -e
# Copies of other namespaces' mounts would keep those alive for as long as we are.
umount --lazy --recursive /run/netns 2>/dev/null || :
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
private() {
    folder=$1; original=/run/machine$1; shift
    mkdir -p "$original"
    mount --rbind "$folder" "$original"
    mount -t tmpfs -o mode=755 tmpfs "$folder"
    ln -s "$original"/* "$folder"
    for name; do
        rm -f "$folder/$name"
        mkdir -m 700 "$folder/$name"
    done
}
private /etc ravenvpn wireguard
private /var/lib ravenvpn
hostname "$1"
rm -f /etc/hostname /etc/hosts
echo "$1" >/etc/hostname
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$1" >/etc/hosts
mkdir /run/lock
echo ready
exec sleep infinity
"""


def start(name: str, prefix: str) -> subprocess.Popen[str]:
    """Begin; many may begin at once. It is usable when `wait_until_ready` returned."""
    return subprocess.Popen(
        ["unshare", "--net", "--mount", "--uts", "--", "sh", "-c", _SCRIPT, "sh", name],
        cwd="/",
        env={**os.environ, MARK: prefix},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_ready(holder: subprocess.Popen[str]) -> None:
    """HostError, with what the kernel or a program said, if it could not be set up."""
    assert holder.stdout is not None  # start() asked for both
    assert holder.stderr is not None
    if holder.stdout.readline() != "ready\n":
        raise HostError(f"no namespaces for a lab's host: {holder.stderr.read().strip()}")
    holder.stdout.close()
    holder.stderr.close()
