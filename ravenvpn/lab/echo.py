"""What pods of a lab run: an HTTP server that tells its caller who it seems to be, and a client that asks many.

    python -m ravenvpn.lab.echo serve                 # 0.0.0.0 and [::], port 8080
    python -m ravenvpn.lab.echo ask MARKER HOST …     # one JSON line per host

The server's answer is the source address it saw, then the request's body: so a client proves both that packets
arrive and that nobody on the way put another address on them.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

PORT = 8080
PATIENCE = 5.0  # seconds a client waits for one answer
MARKER_HEADER = "X-Marker"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        address = ip_address(self.client_address[0])
        mapped = getattr(address, "ipv4_mapped", None)
        body = f"{mapped or address} {self.headers.get(MARKER_HEADER, '')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A demo's pods keep no access log."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int = PORT) -> None:
    with _Server(("::", port), _Handler) as server:
        server.serve_forever()


def ask(host: str, marker: str = "") -> dict[str, object]:
    """`{"host", "ok", "source", "marker", "error"}`: what the server on `host` answered, or why it did not."""
    connection = http.client.HTTPConnection(host, PORT, timeout=PATIENCE)
    try:
        connection.request("GET", "/", headers={MARKER_HEADER: marker})
        source, _, echoed = connection.getresponse().read(4096).decode().partition(" ")
    except (OSError, http.client.HTTPException) as error:
        return {"host": host, "ok": False, "source": "", "marker": "", "error": str(error) or type(error).__name__}
    finally:
        connection.close()
    return {"host": host, "ok": True, "source": source, "marker": echoed, "error": ""}


def ask_all(hosts: list[str], marker: str) -> list[dict[str, object]]:
    """All at once, in the order asked."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(lambda host: ask(host, marker), hosts))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        for answer in ask_all(sys.argv[3:], sys.argv[2]):
            sys.stdout.write(json.dumps(answer) + "\n")
