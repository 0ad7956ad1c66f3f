"""The WireGuard tunnel: peers, handshakes, timers and roaming. Packets are handled by the data plane, one floor
below.

`device` is the whole of it without I/O; `driver` and `linux` are the I/O around it. Nothing here knows regions,
gateways or the cluster.
"""
