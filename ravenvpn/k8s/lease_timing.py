"""The three periods of a leader election by a Lease, their defaults, and which combinations are safe.

Apart from `lease` because the command line shows the defaults: this module imports no client.
"""

from __future__ import annotations

from dataclasses import dataclass

from ravenvpn.errors import ConfigError

# Seconds between the last moment of a leader's write and the first at which another replica may take the Lease: room
# for clocks of different speed and for a timer that fires late.
MARGIN = 1.0
# A candidate waits up to this fraction longer than the retry period. client-go demands the same room in its
# validation (renew deadline > JitterFactor 1.2 times retry period).
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Seconds. The defaults are those of kube-controller-manager and kube-scheduler.

    Raises ConfigError if a leader could still write when another replica may take the Lease, or if the renew deadline
    leaves no time for a second attempt.
    """

    duration: float = 15.0  # another replica may take a Lease that was not renewed for this long
    renew: float = 10.0  # a leader that could not renew for this long stops leading
    retry: float = 2.0  # between two attempts to renew or to take the Lease, plus jitter

    def __post_init__(self) -> None:
        if not self.duration > self.renew + MARGIN or not self.renew > (1 + JITTER) * self.retry > 0:
            raise ConfigError(
                f"{self.duration:g} s, {self.renew:g} s and {self.retry:g} s do not fit together",
                field="leader election",
                remedy="make the lease duration more than a second longer than the renew deadline, "
                "and the renew deadline longer than several retry periods",
            )


DEFAULT_TIMING = LeaseTiming()
