"""A thousand pings a second over established paths, with the count of lost ones."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ravenvpn.lab.host import Pod


class Pings:
    """Use as `with Pings(pairs, folder) as pings:`. Afterwards `lost` has the number of missing replies by pair."""

    def __init__(self, pairs: Iterable[tuple[Pod, Pod]], folder: Path, interval: float = 0.001) -> None:
        self._pairs = list(pairs)
        self._folder, self._interval = folder, interval
        self._running: list[tuple[str, subprocess.Popen[Any], IO[bytes]]] = []
        self.sent: dict[str, int] = {}
        self.lost: dict[str, int] = {}

    def __enter__(self) -> Self:
        for sender, receiver in self._pairs:
            what = f"{sender.name} → {receiver.name}"
            said = (self._folder / f"{sender.name}-{receiver.name}.ping").open("w+b")
            argv = ["ping", "-n", "-i", str(self._interval), str(receiver.v4)]
            self._running.append((what, sender.popen(argv, stdout=said, stderr=subprocess.STDOUT), said))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for what, process, said in self._running:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
            with said:
                said.seek(0)
                answered = {int(number) for number in re.findall(rb"icmp_seq=(\d+) ", said.read())}
            # Sequence numbers have 16 bits and do not wrap, since no run lasts longer than a minute. The count ends
            # at the last reply, because later requests may still have been in flight.
            self.sent[what] = max(answered, default=0)
            self.lost[what] = self.sent[what] - len(answered)
