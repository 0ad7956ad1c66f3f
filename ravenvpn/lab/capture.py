"""Packet capture in the lab: tcpdump writes a file, `Capture` reads its frames.

The file is read here, in a dozen lines, and not by a library: dpkt has had no release since 2022, python-pcapng reads
the other format, and scapy, which is maintained, takes longer to import than a test takes to capture. tcpdump writes
one known format (microseconds, host byte order), so no other variant has to be read.
"""

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

START_TIMEOUT = 10.0  # seconds until tcpdump listens; milliseconds on an idle machine
STOP_TIMEOUT = 10.0  # seconds until tcpdump has written its buffer and ended
# draft-ietf-opsawg-pcap-04, section 4: magic number, version (2), reserved (2), snapshot length, link type.
_FILE_HEADER = struct.Struct("=IHHiIII")
# Section 5: seconds, microseconds, captured length, original length.
_PACKET_HEADER = struct.Struct("=IIII")
_MAGIC = 0xA1B2C3D4  # timestamps in microseconds, byte order of this host


class Capture:
    """Capture of the link-layer frames that pass a device while the `with` block runs.

    Frames may be read after the block. HostError on entering if tcpdump is not installed or cannot listen.
    """

    def __init__(
        self, popen: Callable[..., subprocess.Popen[Any]], folder: Path, device: str, expression: str
    ) -> None:
        """Prepare a capture on `device`, "any" for all, of packets that match `expression` (pcap-filter(7)).

        `popen` starts a program in the namespace of the device; the file is written to `folder` and stays until the
        lab is removed.
        """
        self._popen = popen
        self._folder = folder
        self._argv = ["tcpdump", "-n", "-i", device, "-s", "0", "-U", "--immediate-mode", "-w", "-", expression]
        self._file: Path
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        if not shutil.which("tcpdump"):
            raise HostError("tcpdump is not installed; Debian: apt-get install tcpdump")
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=".pcap")
        self._file = Path(name)
        # tcpdump writes to our descriptor: it drops root before it opens a file of its own.
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
        assert stderr is not None  # a pipe, see __enter__
        output = b""
        deadline = time.monotonic() + START_TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(stderr, selectors.EVENT_READ)
            while b"listening on" not in output:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                chunk = stderr.read1(4096) if ready else b""  # type: ignore[attr-defined]
                if not chunk:
                    raise HostError(f"tcpdump does not listen: {output.decode(errors='replace').strip()}")
                output += chunk

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # tcpdump then writes its buffer
        try:
            self._process.communicate(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def frames(self) -> Iterator[bytes]:
        """Yield the frames in order, each complete. Device "any" has a packet once for every device it passes.

        HostError if the file is empty or in another format. A last packet that is cut off is left out.
        """
        with self._file.open("rb") as file:
            header = file.read(_FILE_HEADER.size)
            if len(header) < _FILE_HEADER.size:
                raise HostError("the capture file is empty; tcpdump ended before it wrote a header")
            magic, *_ = _FILE_HEADER.unpack(header)
            if magic != _MAGIC:
                raise HostError(f"the capture file starts with {magic:#x}; expected {_MAGIC:#x} (pcap)")
            while len(packet_header := file.read(_PACKET_HEADER.size)) == _PACKET_HEADER.size:
                _, _, length, _ = _PACKET_HEADER.unpack(packet_header)
                yield file.read(length)

    def count(self, marker: bytes = b"") -> int:
        """Return the number of frames that contain `marker`; with an empty marker, of all frames."""

        return sum(marker in frame for frame in self.frames())
