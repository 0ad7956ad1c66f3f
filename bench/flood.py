"""`python -m bench.flood ADDRESS PORT KEY RATE SECONDS`: handshake initiations to a port, from spoofed sources.

Each initiation has a valid mac1, so that the responder has to process it. Its ephemeral key and its encrypted fields
are random, so that the DH and decryption of the responder fail. Prints the number of packets sent per second. Needs
CAP_NET_RAW.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.tunnel.handshake.messages import INITIATION_BODY_BYTES, Initiation

SPOOFED = 0xC6120000  # 198.18.0.0/15, the range for benchmarks (RFC 2544)
DIFFERENT = 4096  # packets, each with its own source address; they are sent again and again
BURST = 0.001  # seconds between two bursts


def packets(address: str, port: int, key: PublicKey) -> list[bytes]:
    """Return IPv4 packets with their header; the kernel fills in identification and checksum (raw(7))."""
    dice = random.Random(address)
    stamper = CookieStamper(key)
    made = []
    for number in range(DIFFERENT):
        body = dice.randbytes(INITIATION_BODY_BYTES)
        message = stamper.stamp(Initiation(number, Suite.CHACHA20POLY1305, body).pack(), 0.0)
        udp = struct.pack("!HHHH", dice.randrange(1024, 65536), port, 8 + len(message), 0)
        source = struct.pack("!I", SPOOFED + dice.randrange(1 << 17))
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(message), 0, 0, 64, socket.IPPROTO_UDP, 0)
        made.append(ip + source + socket.inet_aton(address) + udp + message)
    return made


def main() -> None:
    """Send packets at the rate of the command line."""
    address, port, key, rate, seconds = sys.argv[1:]
    waiting = packets(address, int(port), PublicKey.from_base64(key))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        began = time.monotonic()
        sent = 0
        while (passed := time.monotonic() - began) < float(seconds):
            due = int(passed * float(rate))
            while sent < due:
                raw.sendto(waiting[sent % DIFFERENT], (address, 0))
                sent += 1
            time.sleep(BURST)
    print(sent / passed)


if __name__ == "__main__":
    main()
