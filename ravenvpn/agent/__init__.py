"""The agent of one node, on one event loop.

    agent            plans from one `Situation` and applies the plan
    underlay         decides when the host has to be discovered again
    host             async face of `node`: discovery, host network, repairs
    tunnel_owner     opens the tunnel and applies the plan to it
    translate        planned peer to WireGuard peer
    resolve          DNS names of endpoints
    endpoints        endpoints of the last sessions, on disk
    peer_liveness    probes peers inside the tunnel, verdicts on them
    subject_index    hash in a hub's verdict to node name
    own_peer         content and status of our Peer object
    reload_waiters   callers that wait until a reload is in force

    introspection    snapshots for the control API, probes and metrics, made with:
    reports          values of the v1 API
    peer_rows        rows of `raven-vpn peers`: session states, rates
    plan_rows        rows of `raven-vpn plan`
    reachability     paths to other regions, and whether they work
    lag              delay of the event loop

`ravenvpn.daemon` starts it; `ravenvpn.reconfigure` gives it the operator's settings.
"""
