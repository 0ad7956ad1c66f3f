"""Prometheus text from the reports: read when scraped, nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ravenvpn.agent.reports import ApiReport, PeerCondition, PeerReport, StatusReport

__all__ = ["CONTENT_TYPE", "MeshCollector", "exposition"]


class MeshCollector(Collector):
    """One scrape is one look at the agent: status and peers as they are at that moment."""

    def __init__(self, look: Callable[[], tuple[StatusReport, Sequence[PeerReport]]]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        status, peers = self._look()
        yield InfoMetricFamily(
            "ravenvpn_agent",
            "What runs here.",
            {
                "version": status.version,
                "node": status.node,
                "region": status.region,
                "role": status.role,
                "data_plane": status.data_plane.body,
            },
        )
        yield GaugeMetricFamily("ravenvpn_healthy", "1 when nothing is wrong on this node.", float(status.healthy))
        yield GaugeMetricFamily(
            "ravenvpn_sessions_wanted", "Peers a session is wanted with.", float(status.sessions_wanted)
        )
        yield GaugeMetricFamily("ravenvpn_sessions_up", "Of those, how many are up.", float(status.sessions_up))
        yield GaugeMetricFamily("ravenvpn_problems", "Things a person should mend.", float(len(status.problems)))
        yield GaugeMetricFamily(
            "ravenvpn_host_missing", "Objects of ours the host should have and does not.", float(status.host_missing)
        )
        yield GaugeMetricFamily(
            "ravenvpn_loop_lag_seconds", "How late the event loop ran its last heartbeat.", status.loop_lag
        )
        regions = GaugeMetricFamily("ravenvpn_region_up", "1 when the region can be reached.", labels=["region"])
        for region in status.regions:
            regions.add_metric([region.name], float(region.ok))
        yield regions
        drops = CounterMetricFamily("ravenvpn_drops", "Packets dropped, by cause.", labels=["cause"])
        for cause, count in status.data_plane.drops.items():
            drops.add_metric([cause], count)
        yield drops
        fallbacks = CounterMetricFamily("ravenvpn_offload_fallbacks", "Offloads given up.", labels=["offload"])
        for offload, count in status.data_plane.fallbacks.items():
            fallbacks.add_metric([offload], count)
        yield fallbacks
        offloads = GaugeMetricFamily("ravenvpn_offload", "1 for an offload in force.", labels=["offload"])
        for offload in status.data_plane.offloads:
            offloads.add_metric([offload], 1.0)
        yield offloads
        if status.api is not None:
            yield from _api_metrics(status.api)
        yield from _peer_metrics(peers)


def _api_metrics(api: ApiReport) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "ravenvpn_api_connected", "1 while everything wanted is watched.", float(api.connected_since is not None)
    )
    if api.heard_at is not None:
        yield GaugeMetricFamily(
            "ravenvpn_api_last_heard_seconds", "Unix time at which the API server last said anything.", api.heard_at
        )
    yield GaugeMetricFamily(
        "ravenvpn_api_saved_world", "1 while the world in force is one from disk.", float(api.saved_at is not None)
    )
    yield GaugeMetricFamily("ravenvpn_api_announced", "1 when our Peer stands as we want it.", float(api.announced))
    yield CounterMetricFamily("ravenvpn_api_lists", "Lists begun.", float(api.lists))
    yield CounterMetricFamily("ravenvpn_api_watches", "Watches accepted.", float(api.watches))
    yield CounterMetricFamily("ravenvpn_api_events", "Events of watches, bookmarks not counted.", float(api.events))
    yield CounterMetricFamily("ravenvpn_api_writes", "Writes of our Peer.", float(api.writes))


def _peer_metrics(peers: Sequence[PeerReport]) -> Iterable[Metric]:
    labels = ["peer", "region"]
    up = GaugeMetricFamily("ravenvpn_peer_up", "1 when a session with the peer is up.", labels=labels)
    received = CounterMetricFamily("ravenvpn_peer_receive_bytes", "As wg(8) counts.", labels=labels)
    sent = CounterMetricFamily("ravenvpn_peer_transmit_bytes", "As wg(8) counts.", labels=labels)
    handshake = GaugeMetricFamily(
        "ravenvpn_peer_last_handshake_seconds", "Unix time of the last handshake.", labels=labels
    )
    rtt = GaugeMetricFamily("ravenvpn_peer_rtt_seconds", "Round trip through the tunnel.", labels=labels)
    loss = GaugeMetricFamily("ravenvpn_peer_loss_ratio", "Share of recent probes lost.", labels=labels)
    for peer in peers:
        names = [peer.name, peer.region]
        up.add_metric(names, float(peer.state is PeerCondition.UP))
        received.add_metric(names, peer.rx_bytes)
        sent.add_metric(names, peer.tx_bytes)
        if peer.last_handshake is not None:
            handshake.add_metric(names, peer.last_handshake)
        if peer.rtt is not None:
            rtt.add_metric(names, peer.rtt)
        if peer.loss is not None:
            loss.add_metric(names, peer.loss)
    yield from (up, received, sent, handshake, rtt, loss)


def exposition(look: Callable[[], tuple[StatusReport, Sequence[PeerReport]]]) -> bytes:
    """The text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MeshCollector(look))
    return generate_latest(registry)
