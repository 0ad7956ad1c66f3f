"""Outputs for programs (metrics, probes, log lines, sd_notify), and the endpoint file."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agent_ends import end
from agent_reports import FakeAgent, peer, status
from prometheus_client.parser import text_string_to_metric_families

from ravenvpn import logs, metrics
from ravenvpn.agent.endpoints import LastSeen
from ravenvpn.agent.reports import PeerCondition
from ravenvpn.agent.resolve import Resolver
from ravenvpn.dataplane.contract import Endpoint
from ravenvpn.errors import HostError
from ravenvpn.httpd import HealthServer
from ravenvpn.notify import Notifier

# Metrics.


def samples(*args: object) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    peers = tuple(one for one in args if one is not None)
    text = metrics.exposition(lambda: (status(), peers)).decode()  # type: ignore[arg-type,return-value]
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_have_the_values_of_the_reports() -> None:
    found = samples(
        peer(rtt=0.02, loss=0.25, rx_bytes=7, last_handshake=9.0), peer("ship-1", state=PeerCondition.DOWN)
    )
    cloud = (("peer", "cloud-1"), ("region", "cloud"))
    assert found["ravenvpn_peer_up", cloud] == 1.0
    assert found["ravenvpn_peer_up", (("peer", "ship-1"), ("region", "cloud"))] == 0.0
    assert found["ravenvpn_peer_rtt_seconds", cloud] == 0.02
    assert found["ravenvpn_peer_loss_ratio", cloud] == 0.25
    assert found["ravenvpn_peer_receive_bytes_total", cloud] == 7.0
    assert found["ravenvpn_drops_total", (("cause", "no_route"),)] == 3.0
    assert found["ravenvpn_offload_fallbacks_total", (("offload", "tun_tso"),)] == 2.0
    assert found["ravenvpn_region_up", (("region", "cloud"),)] == 1.0
    assert found["ravenvpn_healthy", ()] == 1.0


def test_labels_have_a_bounded_number_of_values() -> None:
    """No address, key or free text is a label: each value would create a time series."""
    names = {label for _, labels in samples(peer()) for label, _ in labels}
    agent = {"version", "node", "region", "role", "data_plane"}
    assert names <= agent | {"peer", "cause", "offload"}


def test_names_with_quotes_stay_parsable() -> None:
    found = samples(peer('we"ird\\name\n', region="r"))
    assert ("ravenvpn_peer_up", (("peer", 'we"ird\\name\n'), ("region", "r"))) in found


# Probes over HTTP.


@pytest.fixture
async def port() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = int(free.getsockname()[1])
    server = HealthServer(FakeAgent(peers=(peer(),), device_up=False), "127.0.0.1", number)
    await server.start()
    yield number
    await server.stop()


async def get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body.decode()


async def test_an_unready_node_is_live_and_readyz_lists_the_reasons(port: int) -> None:
    assert await get(port, "/livez") == (200, "ok\n")
    assert await get(port, "/readyz") == (503, "the tunnel device is missing or down\n")
    code, text = await get(port, "/metrics")
    assert code == 200
    assert "ravenvpn_peer_up" in text
    assert (await get(port, "/"))[0] == 404


async def test_a_taken_port_is_reported_in_one_line(port: int) -> None:
    with pytest.raises(HostError, match=rf"cannot listen on 127.0.0.1, TCP port {port}: .*http-address"):
        await HealthServer(FakeAgent(), "127.0.0.1", port).start()


# Logs.


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
def test_each_log_line_is_one_json_object() -> None:
    stream = io.StringIO()
    logs.set_up("info", "auto", stream)
    log = logging.getLogger("ravenvpn.test")
    log.info("first\nand second line of %s", "one message", extra={"peer": "cloud-1", "where": Path("/x")})
    log.debug("not asked for")
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"]) == ("info", "ravenvpn.test")
    assert first["message"] == "first\nand second line of one message"
    assert (first["peer"], first["where"]) == ("cloud-1", "/x")
    assert second["message"] == "failed"
    assert "ValueError: inner" in second["exception"]


@pytest.mark.usefixtures("root_logger")
def test_the_human_format_has_time_level_and_message() -> None:
    stream = io.StringIO()
    logs.set_up("warning", "human", stream)
    logging.getLogger("x").warning("look here")
    assert stream.getvalue()[8:] == " warning  look here\n"


# systemd.


def test_the_watchdog_is_fed_twice_in_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    assert Notifier().watchdog_interval == 5.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog_interval is None, "it is meant for another process"
    monkeypatch.setenv("WATCHDOG_PID", "")
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert Notifier().watchdog_interval is None


def test_a_status_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = Notifier()
        for text in ("well", "well", "ill"):
            notifier.status(text)
        systemd.settimeout(1)
        assert [systemd.recv(100), systemd.recv(100)] == [b"STATUS=well", b"STATUS=ill"]
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        notifier.close()


# The endpoint file.


def test_endpoints_are_read_back_from_the_file(tmp_path: Path) -> None:
    edge = end("edge", "hub")
    seen = LastSeen(tmp_path / "endpoints")
    seen.observe([edge.status("hub")])
    assert seen.unsaved
    seen.save()
    assert not seen.unsaved
    assert stat.S_IMODE((tmp_path / "endpoints").stat().st_mode) == 0o600
    assert LastSeen(tmp_path / "endpoints") == {"hub": Endpoint("192.0.2.1", 4500)}


def test_peers_without_session_are_not_recorded_and_unplanned_peers_are_dropped(tmp_path: Path) -> None:
    edge = end("edge", "hub")
    seen = LastSeen(tmp_path / "endpoints")
    seen.observe([edge.status("hub", session=False)])
    assert seen == {}
    seen.observe([edge.status("hub")])
    seen.retain({"ship"})
    assert seen == {}


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        '{"version": 2, "peers": {}}',
        '{"version": 1, "peers": {"a": {"host": "example.org", "port": 1}}}',
        '{"version": 1, "peers": {"a": {"host": "192.0.2.1", "port": 0}}}',
        '{"version": 1, "peers": {"a": {"host": "192.0.2.1", "port": 1, "key": "x"}}}',
    ],
)
def test_a_malformed_file_is_renamed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "endpoints"
    path.write_text(content)
    assert LastSeen(path) == {}
    assert not path.exists()
    assert (tmp_path / "endpoints.broken").read_text() == content


def test_a_failed_write_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = LastSeen(tmp_path / "absent" / "endpoints")
    seen["hub"] = Endpoint("192.0.2.1", 4500)
    seen.save()
    seen.save()
    assert len(caplog.records) == 1
    assert seen.unsaved


# Names.


async def test_a_literal_address_needs_no_resolver_and_a_bad_name_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resolved = asyncio.Event()
    resolver = Resolver(resolved.set, retry=60)
    resolver.set_names(["192.0.2.1", "localhost", "no-such-name.invalid"])
    assert resolver.lookup("192.0.2.1") == ("192.0.2.1",)
    assert resolver.lookup("localhost") == ()
    async with asyncio.timeout(20):
        await resolved.wait()
        while not resolver.failing():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert set(resolver.lookup("localhost")) <= {"127.0.0.1", "::1"}
    assert resolver.failing() == ["no-such-name.invalid"]
    assert "endpoint no-such-name.invalid cannot be resolved" in caplog.text
    resolver.close()
    assert resolver.failing() == []
