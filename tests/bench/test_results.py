"""Reports: ratios within a turn, their medians, and the verdicts on bars."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import html_page, report
from bench.agent_workloads import HandshakeFlood
from bench.bars import judge
from bench.cpu import Usage
from bench.results import Outcome, Run, Spread, figures_of
from bench.workloads import PingRtt, TcpFlows

US = "ravenvpn pure ChaCha"


@pytest.fixture
def outcome() -> Outcome:
    """Three turns on a machine that gets slower; ravenvpn has half the speed and three times the cost in each."""
    speeds = (4.0, 2.0, 1.0)
    runs = [
        Run(name, turn, {"Gbit/s": share * speed, "core-s/GB": cost})
        for turn, speed in enumerate(speeds)
        for name, share, cost in (("wireguard-go", 1.0, 5.0), (US, 0.5, 15.0))
    ]
    return Outcome(TcpFlows("tcp1", "one TCP flow"), runs, {"ravenvpn native AES": "not built"})


def test_a_ratio_is_formed_within_a_turn(outcome: Outcome):
    assert outcome.spread(US, "Gbit/s") == Spread(median=1.0, low=0.5, high=2.0)
    assert outcome.ratio(US, "Gbit/s") == Spread(median=0.5, low=0.5, high=0.5)


def test_a_turn_without_the_reference_has_no_ratio(outcome: Outcome):
    outcome.runs.append(Run(US, 3, {"Gbit/s": 100.0}))
    assert outcome.ratio(US, "Gbit/s") == Spread(0.5, 0.5, 0.5)
    assert outcome.ratio(US, "Gbit/s", reference="plain veth") is None


def test_the_figure_of_the_plain_veth_is_subtracted_first():
    ping = PingRtt("ping-idle", "")
    times = {"plain veth": 20.0, "wireguard-go": 120.0, "ravenvpn native ChaCha": 70.0}
    outcome = Outcome(ping, [Run(name, 0, {"p50 µs": time}) for name, time in times.items()])

    assert outcome.ratio("ravenvpn native ChaCha", "p50 µs", beyond="plain veth") == Spread(0.5, 0.5, 0.5)
    (verdict,) = judge([outcome])
    assert (verdict.reached, verdict.met) == (0.5, True)


def test_many_peers_are_compared_with_the_same_candidate_and_one_peer():
    name = "ravenvpn native ChaCha"
    alone = Outcome(TcpFlows("tcp1", ""), [Run(name, 0, {"core-s/GB": 2.0})])
    many = Outcome(TcpFlows("tcp1-1000-peers", ""), [Run(name, 0, {"core-s/GB": 2.2})])

    (verdict,) = judge([alone, many])
    assert verdict.reached == pytest.approx(1.1)
    assert not verdict.met
    assert judge([many]) == []


def test_some_bars_are_absolute_figures():
    figures = {"Gbit/s, × closed port": 0.9, "lost %": 0.5, "health ms": 120.0}
    outcome = Outcome(HandshakeFlood(), [Run("ravenvpn agents", 0, figures)])

    verdicts = {verdict.bar.figure: (verdict.reached, verdict.met) for verdict in judge([outcome])}
    assert verdicts == {
        "Gbit/s, × closed port": (0.9, True),
        "lost %": (0.5, True),
        "health ms": (120.0, False),
    }


def test_costs_are_per_gigabyte_delivered():
    used = Usage(processes=6.0, machine=8.0, stolen=0.5, elapsed=5.0)
    figures = figures_of({"bytes": 2e9}, used, resident=30e6)
    assert figures["core-s/GB"] == 3.0
    assert figures["core-s/GB, whole machine"] == 4.0
    assert figures["MB, both ends"] == 30.0
    assert figures["cores, whole machine"] == 1.6
    assert "core-s/GB" not in figures_of({"bytes": 2e9}, used, resident=0)
    assert figures_of({"packets": 3e6}, used, resident=30e6)["core-s/Mpkt"] == 2.0


def test_bars_are_judged_where_both_sides_were_measured(outcome: Outcome):
    verdicts = {verdict.bar.figure: verdict.met for verdict in judge([outcome])}
    assert verdicts == {"Gbit/s": True, "core-s/GB": True}

    for run in outcome.runs:
        if run.candidate == US:
            run.figures["core-s/GB"] = 16.5  # 3.3×
    verdicts = {verdict.bar.figure: verdict.met for verdict in judge([outcome])}
    assert verdicts == {"Gbit/s": True, "core-s/GB": False}


def test_reports_have_every_run_and_are_self_contained(outcome: Outcome, tmp_path: Path):
    written = report.as_json(
        {"cpu": "a <CPU>", "cores": "2"}, {"runs": 3, "seconds": 5.0}, [outcome], judge([outcome])
    )
    again = json.loads(report.write_json(tmp_path, "run", written).read_text())
    workload = again["workloads"][0]
    assert [run["Gbit/s"] for run in workload["candidates"][US]["runs"]] == [2.0, 1.0, 0.5]
    assert workload["candidates"][US]["vs wireguard-go"]["Gbit/s"]["median"] == 0.5
    assert workload["not measured"] == {"ravenvpn native AES": "not built"}

    html = html_page.write(tmp_path, "run", written).read_text()
    assert "a &lt;CPU&gt;" in html
    assert not re.search(r"(src|href)=", html)
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html)]
    assert [plot.get("aria-label") for plot in plots] == ["Gbit/s", "core-s/GB"]
    assert len(plots[0].findall(".//circle")) == 6
