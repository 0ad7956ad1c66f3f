"""Regions of a cluster on one machine: namespaces for demo, tests and bench.

    lab = Lab(Region("cloud", nodes=2), Region("factory", pods=2, nat=Nat.PORT_RESTRICTED))
    with lab:
        lab.pod("cloud-1-pod-1").run(["ping", "-c", "1", str(lab.node("cloud-2").v4)])

Only root can build one. It touches nothing of the machine but files under /run: every device is born in a namespace
of the lab, and all of it goes when the `with` block ends. If its owner was killed, the next lab finds what it left.

A lab knows nothing of tunnels; `lab.agents` starts real agents on its nodes, and `lab.demo` shows what they do.
"""

from ravenvpn.lab.build import Lab
from ravenvpn.lab.capture import Capture
from ravenvpn.lab.host import LabHost, LabNode, Pod, Router
from ravenvpn.lab.ownership import kept, sweep
from ravenvpn.lab.topology import LabRegion, Nat

__all__ = ["Capture", "Lab", "LabHost", "LabNode", "LabRegion", "Nat", "Pod", "Router", "kept", "sweep"]
