"""Prometheus metrics, made from the reports of the control API at each scrape. No counter is kept here.

Names and labels are an interface: they are added, never renamed. Labels have few values (peers, regions, causes); no
address, key or free text is one, because each value makes a time series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ravenvpn.agent.reports import ApiReport, PeerCondition, PeerReport, StatusReport

__all__ = ["CONTENT_TYPE", "MeshCollector", "exposition"]


class MeshCollector(Collector):
    """Metric families of one agent."""

    def __init__(self, read: Callable[[], tuple[StatusReport, Sequence[PeerReport]]]) -> None:
        """`read` returns status and peers. It is called once a scrape, so that all families are of one moment."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Yield every family; called by prometheus-client."""
        status, peers = self._read()
        yield InfoMetricFamily(
            "ravenvpn_agent",
            "Version and role of this agent.",
            {
                "version": status.version,
                "node": status.node,
                "region": status.region,
                "role": status.role,
                "data_plane": status.data_plane.body,
            },
        )
        yield GaugeMetricFamily("ravenvpn_healthy", "1 if no fault is known on this node.", float(status.healthy))
        yield GaugeMetricFamily(
            "ravenvpn_sessions_wanted", "Peers with which a session is kept up.", float(status.sessions_wanted)
        )
        yield GaugeMetricFamily(
            "ravenvpn_sessions_up", "Sessions of these peers that are up.", float(status.sessions_up)
        )
        yield GaugeMetricFamily(
            "ravenvpn_problems", "Problems that an operator should fix.", float(len(status.problems))
        )
        yield GaugeMetricFamily(
            "ravenvpn_host_missing",
            "Planned routes, rules and devices that the host does not have.",
            float(status.host_missing),
        )
        yield GaugeMetricFamily(
            "ravenvpn_loop_lag_seconds", "Largest delay of the event loop in the last seconds.", status.loop_lag
        )
        # Families with a label have a series for each value that occurs now, so a removed region leaves no stale one.
        regions = GaugeMetricFamily(
            "ravenvpn_region_up", "1 if no fault is known on the path to the region.", labels=["region"]
        )
        for region in status.regions:
            regions.add_metric([region.name], float(region.ok))
        yield regions
        drops = CounterMetricFamily("ravenvpn_drops", "Packets dropped, by cause.", labels=["cause"])
        for cause, count in status.data_plane.drops.items():
            drops.add_metric([cause], count)
        yield drops
        fallbacks = CounterMetricFamily(
            "ravenvpn_offload_fallbacks", "Offloads given up, by offload.", labels=["offload"]
        )
        for offload, count in status.data_plane.fallbacks.items():
            fallbacks.add_metric([offload], count)
        yield fallbacks
        offloads = GaugeMetricFamily("ravenvpn_offload", "1 for each offload in force.", labels=["offload"])
        for offload in status.data_plane.offloads:
            offloads.add_metric([offload], 1.0)
        yield offloads
        if status.api is not None:
            yield from _api_metrics(status.api)
        yield from _peer_metrics(peers)


def _api_metrics(api: ApiReport) -> Iterable[Metric]:
    """Yield the families about the API server; absent where the world comes from a directory."""
    yield GaugeMetricFamily(
        "ravenvpn_api_connected", "1 while all watches of the API server run.", float(api.connected_since is not None)
    )
    if api.heard_at is not None:
        yield GaugeMetricFamily(
            "ravenvpn_api_last_heard_seconds", "Unix time of the API server's last answer or event.", api.heard_at
        )
    yield GaugeMetricFamily(
        "ravenvpn_api_saved_world", "1 while the world in force is the saved one.", float(api.saved_at is not None)
    )
    yield GaugeMetricFamily(
        "ravenvpn_api_announced", "1 if our Peer object has the content we want.", float(api.announced)
    )
    yield CounterMetricFamily("ravenvpn_api_lists", "List requests.", float(api.lists))
    yield CounterMetricFamily("ravenvpn_api_watches", "Watch requests that the server accepted.", float(api.watches))
    yield CounterMetricFamily("ravenvpn_api_events", "Watch events without bookmarks.", float(api.events))
    yield CounterMetricFamily("ravenvpn_api_writes", "Writes of our Peer object.", float(api.writes))


def _peer_metrics(peers: Sequence[PeerReport]) -> Iterable[Metric]:
    """Yield the families that have a series a peer; values that are not known have none."""
    labels = ["peer", "region"]  # node name of the peer, and the region it stands for
    # Counters get the suffix _total from prometheus-client.
    up = GaugeMetricFamily("ravenvpn_peer_up", "1 if the session with the peer is up.", labels=labels)
    received = CounterMetricFamily("ravenvpn_peer_receive_bytes", "Bytes received, as wg(8) counts.", labels=labels)
    sent = CounterMetricFamily("ravenvpn_peer_transmit_bytes", "Bytes sent, as wg(8) counts.", labels=labels)
    handshake = GaugeMetricFamily(
        "ravenvpn_peer_last_handshake_seconds", "Unix time of the last handshake.", labels=labels
    )
    rtt = GaugeMetricFamily("ravenvpn_peer_rtt_seconds", "Round-trip time through the tunnel.", labels=labels)
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


def exposition(read: Callable[[], tuple[StatusReport, Sequence[PeerReport]]]) -> bytes:
    """Return all metrics in the Prometheus text format, version 0.0.4.

    The registry is made for each call and holds our families only: the default one adds metrics of the Python
    process, which cost time at each scrape and belong to another namespace."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MeshCollector(read))
    return generate_latest(registry)
