"""The socket that wg(8) connects to: permissions, refusals, and hostile clients."""

import asyncio
import contextlib
import errno
import os
import socket
import stat

import pytest

from ravenvpn.errors import HostError
from ravenvpn.tunnel.linux import uapi_socket
from ravenvpn.tunnel.linux.uapi_socket import UapiServer, listen
from ravenvpn.tunnel.uapi import DeviceChange, UapiDevice, UapiError


class Device:
    def __init__(self) -> None:
        self.changes: list[DeviceChange] = []

    def state(self) -> UapiDevice:
        return UapiDevice(listen_port=51820)

    def apply(self, change: DeviceChange) -> None:
        if change.listen_port == 1:
            raise UapiError(errno.EADDRINUSE, "port 1 is in use")
        self.changes.append(change)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "wireguard"


@contextlib.asynccontextmanager
async def serving(folder, *, writable=True, on_removed=lambda: None):
    device = Device()
    server = UapiServer(listen("wg0", folder), device.state, device.apply if writable else None)
    await server.start(on_removed)
    try:
        yield device
    finally:
        await server.stop()


async def ask(folder, text: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(folder / "wg0.sock")
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_client_can_get_and_set_and_receives_errors(folder):
    async with serving(folder) as device:
        assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"
        assert await ask(folder, b"set=1\nfwmark=7\n\nset=1\nlisten_port=1\n\n") == b"errno=0\n\nerrno=-98\n\n"
        assert device.changes == [DeviceChange(fwmark=7)]


async def test_a_set_on_an_agents_device_is_refused_with_eperm(folder):
    async with serving(folder, writable=False) as device:
        assert await ask(folder, b"set=1\nfwmark=7\n\n") == b"errno=-1\n\n"
        assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"
        assert device.changes == []


async def test_only_root_can_connect_to_the_socket(folder):
    async with serving(folder):
        assert stat.S_IMODE((folder / "wg0.sock").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_the_socket_file_is_removed_with_the_server(folder):
    async with serving(folder):
        pass
    assert list(folder.iterdir()) == []


async def test_a_socket_in_use_is_refused_and_stays(folder):
    async with serving(folder):
        with pytest.raises(HostError, match="another process answers"):
            listen("wg0", folder)
        assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"


async def test_the_socket_of_a_dead_process_is_replaced(folder):
    folder.mkdir()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(folder / "wg0.sock"))
    dead.close()
    async with serving(folder):
        assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"


def test_a_file_that_is_not_a_socket_is_kept(folder):
    folder.mkdir()
    (folder / "wg0.sock").write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        listen("wg0", folder)
    assert (folder / "wg0.sock").read_text() == "precious"


async def test_removing_the_file_is_noticed(folder):
    removed = asyncio.Event()
    async with serving(folder, on_removed=removed.set):
        (folder / "wg0.sock").chmod(0o660)  # a change of attributes alone is ignored
        await asyncio.sleep(0)
        assert not removed.is_set()
        (folder / "wg0.sock").unlink()
        await asyncio.wait_for(removed.wait(), 5)


async def test_the_socket_file_of_a_successor_is_not_removed(folder):
    async with serving(folder):
        (folder / "wg0.sock").unlink()
        (folder / "wg0.sock").touch()
    assert (folder / "wg0.sock").exists()


async def test_a_client_that_writes_byte_by_byte_does_not_delay_others(folder):
    async with serving(folder) as device:
        reader, writer = await asyncio.open_unix_connection(folder / "wg0.sock")
        for byte in b"set=1\nfwmark=9\n":
            writer.write(bytes([byte]))
            await writer.drain()
            assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"
        assert device.changes == []
        writer.write(b"\n")
        assert await reader.readline() == b"errno=0\n"
        assert device.changes == [DeviceChange(fwmark=9)]
        writer.close()


async def test_a_set_cut_off_by_the_client_changes_nothing(folder):
    async with serving(folder) as device:
        assert await ask(folder, b"set=1\nfwmark=9\n") == b""
        assert device.changes == []


async def test_binary_and_endless_lines_end_their_connection(folder):
    async with serving(folder):
        assert await ask(folder, b"\x00\xff\xfe\n") == b""
        assert await ask(folder, b"set=1\n" + b"a" * 100_000) == b"errno=-5\n\n"


async def test_many_silent_clients_do_not_lock_an_operator_out(folder):
    async with serving(folder):
        crowd = [await asyncio.open_unix_connection(folder / "wg0.sock") for _ in range(uapi_socket.MAX_CLIENTS + 20)]
        assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"
        # The first client was disconnected, the last still waits.
        assert await asyncio.wait_for(crowd[0][0].read(), 5) == b""
        crowd[-1][1].write(b"get=1\n\n")
        assert await crowd[-1][0].readline() == b"listen_port=51820\n"
        for _, writer in crowd:
            writer.close()


async def test_answers_to_a_client_that_reads_nothing_are_not_buffered(folder):
    """Answers fill the kernel's buffer and one transport buffer; then no further request is read."""
    async with serving(folder):
        greedy = socket.socket(socket.AF_UNIX)
        greedy.connect(str(folder / "wg0.sock"))
        greedy.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            for _ in range(2000):
                sent += greedy.send(b"get=1\n\n" * 1000)
                await asyncio.sleep(0)
        assert sent < 2000 * 7000
        greedy.close()
        assert await ask(folder, b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"


def test_no_descriptor_stays_behind(folder):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        listen("wg0", folder).close()
    assert len(os.listdir("/proc/self/fd")) == before
