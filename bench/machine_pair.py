"""Two machines in their own namespaces, joined by a veth pair that nothing else uses."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from ravenvpn.lab import holder
from ravenvpn.lab.command import ip_batch
from ravenvpn.lab.devices import veth
from ravenvpn.lab.host import Machine
from ravenvpn.lab.ownership import OwnershipRecord, remove, sweep
from ravenvpn.overhead import ETHERNET_MTU

NEAR, FAR = "192.0.2.1", "192.0.2.2"  # addresses on the veth pair, from a range for documentation (RFC 5737)


class MachinePair:
    """The two machines: clients run on `near`, servers on `far`. Built on entering `with`, removed on leaving it."""

    def __init__(self, mtu: int = ETHERNET_MTU) -> None:
        """Describe a pair of machines whose veth pair has this MTU."""
        self.mtu = mtu

    def __enter__(self) -> Self:
        sweep()
        self._record = OwnershipRecord.new()
        self.near = Machine("near", self._record)
        self.far = Machine("far", self._record)
        self._holders = [holder.start(machine.name, self._record.prefix) for machine in self.both]
        try:
            for machine, process in zip(self.both, self._holders, strict=True):
                holder.wait_until_ready(process)
                machine.pid = process.pid
            ip_batch([f"netns attach {machine.namespace} {machine.pid}" for machine in self.both])
            near, far = self.near.namespace, self.far.namespace
            ip_batch([veth("eth0", "eth0", far, self.mtu)], near)
            for namespace, address in ((near, NEAR), (far, FAR)):
                ip_batch(["link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up"], namespace)
        except BaseException:
            self._remove()
            raise
        return self

    @property
    def folder(self) -> Path:
        """Folder for files that are removed with the machines."""
        return self._record.folder

    @property
    def both(self) -> tuple[Machine, Machine]:
        """Both machines, `near` first."""
        return self.near, self.far

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        remove(self._record)
        for child in (*self._holders, *self.near.children, *self.far.children):
            child.wait()
            for stream in (child.stdout, child.stderr):
                if stream:
                    stream.close()
