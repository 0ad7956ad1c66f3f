"""One side of a TCP transfer: `receive ADDRESS`, which prints its port first, or `send ADDRESS PORT SIZE`.

Both print size and SHA-256 of what passed.
"""

import hashlib
import random
import socket
import sys


def receive(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    print(listener.getsockname()[1], flush=True)
    listener.settimeout(60)
    connection, _ = listener.accept()
    connection.settimeout(60)
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(1 << 20)
    while got := connection.recv_into(buffer):
        digest.update(memoryview(buffer)[:got])
        size += got
    print(size, digest.hexdigest())


def send(address: str, port: int, size: int) -> None:
    block = random.randbytes(1 << 20)
    digest, left = hashlib.sha256(), size
    with socket.create_connection((address, port), timeout=60) as connection:
        while left:
            # A different start each time, so that a repeated or swapped block shows.
            part = memoryview(block)[left % 4093 :][: min(left, len(block) - 4093)]
            connection.sendall(part)
            digest.update(part)
            left -= len(part)
    print(size, digest.hexdigest())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive", address]:
            receive(address)
        case ["send", address, port, size]:
            send(address, int(port), int(size))
