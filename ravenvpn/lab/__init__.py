"""Lab: regions of a cluster as network namespaces on one machine, for the demo, tests and benchmarks.

    lab = Lab(Region("cloud", nodes=2), Region("factory", pods=2, nat=Nat.PORT_RESTRICTED))
    with lab:
        lab.pod("cloud-1-pod-1").run(["ping", "-c", "1", str(lab.node("cloud-2").v4)])

Only root can build a lab. It changes nothing of the machine but files under /run: every device is made in a namespace
of the lab, and everything is removed when the `with` block ends. If the process is killed, the next lab removes the
rest (`lab.ownership`).

A lab knows nothing about tunnels. `lab.agents` starts real agents on its nodes, and `lab.demo` is the demonstration
that `raven-vpn demo` runs.
"""

from ravenvpn.lab.build import Lab
from ravenvpn.lab.capture import Capture
from ravenvpn.lab.host import LabHost, LabNode, Pod, Router
from ravenvpn.lab.ownership import kept_labs, sweep
from ravenvpn.lab.topology import Nat, Region

__all__ = ["Capture", "Lab", "LabHost", "LabNode", "Nat", "Pod", "Region", "Router", "kept_labs", "sweep"]
