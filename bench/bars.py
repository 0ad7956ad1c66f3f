"""What ravenvpn has to reach: ratios to another candidate in the same turn, by their median."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bench.results import REFERENCE, Outcome

CPU = "core-s/GB"


@dataclass(frozen=True, slots=True)
class Bar:
    workload: str
    candidate: str
    figure: str
    relation: Literal["≥", "≤"]
    ratio: float
    to: str = REFERENCE

    def __str__(self) -> str:
        return f"{self.candidate}, {self.workload}: {self.figure} {self.relation} {self.ratio}× {self.to}"


BARS = (
    Bar("tcp1", "ravenvpn pure ChaCha", "Gbit/s", "≥", 0.33),
    Bar("tcp1", "ravenvpn pure ChaCha", CPU, "≤", 3.2),
    Bar("tcp1", "ravenvpn native ChaCha", "Gbit/s", "≥", 2.0),
    Bar("tcp1", "ravenvpn native AES", "Gbit/s", "≥", 3.0),
    Bar("tcp1", "ravenvpn native ChaCha", CPU, "≤", 0.42),
    Bar("tcp1", "ravenvpn native AES", CPU, "≤", 0.25),
    Bar("tcp1", "ravenvpn native AES", "Gbit/s", "≥", 0.6, to="plain veth"),
    Bar("tcp16", "ravenvpn native ChaCha", "Gbit/s", "≥", 1.5),
    Bar("tcp16", "ravenvpn native AES", "Gbit/s", "≥", 2.5),
    Bar("tcp1-both", "ravenvpn native ChaCha", "Gbit/s", "≥", 1.5),
    Bar("tcp1-both", "ravenvpn native AES", "Gbit/s", "≥", 2.5),
    Bar("udp64-flood", "ravenvpn native ChaCha", "kpps", "≥", 2.5),
    *(Bar(f"udp64-{rate}k", "ravenvpn native ChaCha", "core-s/Mpkt", "≤", 0.25) for rate in (10, 20, 40)),
    Bar("ping-bulk", "ravenvpn native ChaCha", "p99 µs", "≤", 0.5),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    bar: Bar
    reached: float  # the median ratio

    @property
    def met(self) -> bool:
        return self.reached >= self.bar.ratio if self.bar.relation == "≥" else self.reached <= self.bar.ratio


def judge(outcomes: Iterable[Outcome]) -> list[Verdict]:
    """Of those bars for which both sides were measured."""
    verdicts = []
    by_name = {outcome.workload.name: outcome for outcome in outcomes}
    for bar in BARS:
        outcome = by_name.get(bar.workload)
        ratio = outcome.ratio(bar.candidate, bar.figure, bar.to) if outcome else None
        if ratio:
            verdicts.append(Verdict(bar, ratio.median))
    return verdicts
