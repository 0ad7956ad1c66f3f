"""The tunnel: who is where, which keys are in force, when to speak. Packets are the data plane's.

`device` is the whole of it without I/O; `driver` and `linux` are the thin shell around it. Nothing here knows
what a region, a gateway or a cluster is.
"""
