"""Keys, handshake, cookies and ciphers as values and functions; every primitive comes from a kept library.

What does not belong here: who may talk to us and when (`tunnel`), and what is done per packet (`dataplane`). Nothing
here reads a clock or draws random numbers; only `keyfile` touches the disk.
"""
