"""Planning: from Gateways, Peers and liveness to the plan of each node. Pure values and functions.

No packet, socket, clock or Kubernetes dictionary belongs here. `ravenvpn.agent` makes the `Situation` and hands the
plan on: `ravenvpn.node` applies the host's part, `ravenvpn.tunnel` the sessions.
"""
