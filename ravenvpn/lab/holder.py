"""The process that holds the namespaces of a machine in the lab: network, mount and UTS (host name).

A mount namespace cannot be bound to a name as a network namespace can, so a process stays in it, and /proc/PID/root
is its file system seen from outside. In it /run is empty at the start, and so are the folders of /etc and /var/lib
that agents and wg-quick write to. All other entries of /etc and /var/lib are links to those of the real machine. The
real machine's folders do not change.
"""

from __future__ import annotations

import os
import subprocess

from ravenvpn.errors import HostError
from ravenvpn.lab.ownership import MARK

# Runs as the first process of the new namespaces, with the host name as its argument. `private FOLDER NAME…` puts a
# tmpfs over FOLDER with links to the real entries, except the NAMEs, which become empty folders.
_SCRIPT = r"""
set -e
# Copies of other namespaces' mounts would keep those namespaces alive as long as this process lives.
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
    """Start the process that holds the namespaces of machine `name`, and return without waiting.

    Many may be started at once; each is usable when `wait_until_ready` has returned. `prefix` is the lab's, by which
    `ownership` finds the process.
    """
    # In a session of its own, so that Ctrl-C at the terminal does not end it before the lab is removed.
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
    """Wait until the namespaces are set up. HostError with the output of the program that failed if they are not."""
    assert holder.stdout is not None  # start() opened both pipes
    assert holder.stderr is not None
    if holder.stdout.readline() != "ready\n":
        raise HostError(f"the namespaces of a lab's machine could not be set up: {holder.stderr.read().strip()}")

    holder.stdout.close()
    holder.stderr.close()
