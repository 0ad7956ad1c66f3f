"""Keys, handshake, cookies and ciphers as values and functions; every primitive comes from a kept library.

Admission and timers of handshakes belong to `tunnel`, the work done per packet to `dataplane`. Nothing
here reads a clock or draws random numbers; only `keyfile` touches the disk.
"""
