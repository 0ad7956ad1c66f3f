"""Listening on a wire of the lab: tcpdump into a file, its packets back as bytes."""

from __future__ import annotations

import selectors
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ravenvpn.errors import HostError

START = 10.0  # seconds tcpdump may take to listen
# pcap's file header, https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html §4; tcpdump writes host order.
_FILE_HEADER = struct.Struct("=IHHiIII")
_PACKET_HEADER = struct.Struct("=IIII")
_MAGIC = 0xA1B2C3D4


class Capture:
    """Everything that passed between entering and leaving the `with` block, as link-layer frames."""

    def __init__(
        self, popen: Callable[..., subprocess.Popen[Any]], folder: Path, device: str, expression: str
    ) -> None:
        self._popen = popen
        self._folder = folder  # where the file goes, and stays until the lab is removed
        self._argv = ["tcpdump", "-n", "-i", device, "-s", "0", "-U", "--immediate-mode", "-w", "-", expression]
        self._file: Path
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        if not shutil.which("tcpdump"):
            raise HostError("tcpdump is not installed; Debian: apt-get install tcpdump")
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=".pcap")
        self._file = Path(name)
        # Written through a descriptor of ours: tcpdump drops root before it would open a file of its own.
        with open(descriptor, "wb") as file:
            self._process = self._popen(self._argv, stdout=file, stderr=subprocess.PIPE)
        try:
            self._wait_until_listening()
        except BaseException:
            self._stop()
            raise
        return self

    def _wait_until_listening(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None  # asked for
        said = b""
        deadline = time.monotonic() + START
        with selectors.DefaultSelector() as selector:
            selector.register(stderr, selectors.EVENT_READ)
            while b"listening on" not in said:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                chunk = stderr.read1(4096) if ready else b""  # type: ignore[attr-defined]
                if not chunk:
                    raise HostError(f"tcpdump does not listen: {said.decode(errors='replace').strip()}")
                said += chunk

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # writes out what it holds
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def frames(self) -> Iterator[bytes]:
        """Each frame whole. Device "any" shows a packet once for every device it passes."""
        with self._file.open("rb") as file:
            header = file.read(_FILE_HEADER.size)
            if len(header) < _FILE_HEADER.size:
                raise HostError("the capture is empty; tcpdump wrote no header")
            magic, *_ = _FILE_HEADER.unpack(header)
            if magic != _MAGIC:
                raise HostError(f"the capture starts with {magic:#x}, which is no pcap")
            while len(packet_header := file.read(_PACKET_HEADER.size)) == _PACKET_HEADER.size:
                _, _, length, _ = _PACKET_HEADER.unpack(packet_header)
                yield file.read(length)

    def count(self, marker: bytes = b"") -> int:
        """How many frames hold `marker`; all of them, if it is empty."""
        return sum(marker in frame for frame in self.frames())
