"""The offloads of the data plane by name: the one list that configuration, command line, metrics and both bodies use.

Imports nothing of the package, so that the command line can show the names in a help text without loading a cipher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Offloads:
    """Which offloads are allowed, or are in force. The kernel can refuse each of them at run time; the data plane
    then gives it up, counts that in `Counters.fallbacks`, and goes on without.

    The direction is that of the packets: "tun" offloads read (TSO, USO) or write (GRO) the TUN device, "udp" offloads
    send (GSO) or receive (GRO) on the outer sockets.
    """

    tun_tso: bool = (
        True  # superpackets of TCP read from the TUN, segmented by the data plane (TUN_F_TSO4, TUN_F_TSO6)
    )
    tun_uso: bool = True  # superpackets of UDP read from the TUN (TUN_F_USO4, TUN_F_USO6; Linux ≥ 6.2)
    tun_gro: bool = True  # packets of one TCP flow coalesced into superpackets for the TUN
    tun_gro_udp: bool = True  # the same for UDP
    tun_batch: bool = True  # several frames written to the TUN by one call (io_uring, Linux ≥ 6.4; native body only)
    udp_gso: bool = True  # several datagrams sent by one call (UDP_SEGMENT, Linux ≥ 4.18)
    udp_gro: bool = True  # several datagrams received by one call (UDP_GRO, Linux ≥ 5.0)

    @classmethod
    def without(cls, names: Iterable[str]) -> Offloads:
        """Return all offloads but the named ones. Raises ValueError for a name that is not in OFFLOAD_NAMES."""
        names = tuple(names)
        for name in names:
            if name not in OFFLOAD_NAMES:
                raise ValueError(f"no such offload: {name!r}")
        return cls(**dict.fromkeys(names, False))


OFFLOAD_NAMES: Final = tuple(field.name for field in dataclasses.fields(Offloads))
