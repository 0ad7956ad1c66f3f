"""HTTP server and client for pods of a lab. The server returns the source address of the request.

    python -m ravenvpn.lab.echo serve                 # 0.0.0.0 and [::], port 8080
    python -m ravenvpn.lab.echo ask MARKER HOST …     # one JSON line per host

The response is the source address that the server saw and the marker from the request's header. It shows both that
packets arrive and that no router or NAT on the way has replaced the source address.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

PORT = 8080  # TCP
ANSWER_TIMEOUT = 5.0  # seconds a client waits for one response
MARKER_HEADER = "X-Marker"  # of a request: text that the server returns


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Respond with "SOURCE-ADDRESS MARKER". An IPv4-mapped address (::ffff:a.b.c.d) is written as IPv4."""
        address = ip_address(self.client_address[0])
        mapped = getattr(address, "ipv4_mapped", None)
        body = f"{mapped or address} {self.headers.get(MARKER_HEADER, '')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no access log: the server's output goes nowhere."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True  # a request under way does not keep the process alive
    request_queue_size = 128  # every pod connects at the same time; the default of 5 would refuse some

    def server_bind(self) -> None:
        """Bind for both families; the machine's net.ipv6.bindv6only may say otherwise."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int = PORT) -> None:
    """Serve on all addresses of both families until killed."""
    with _Server(("::", port), _Handler) as server:
        server.serve_forever()


def ask(host: str, marker: str = "") -> dict[str, object]:
    """Send one request and return `{"host", "ok", "source", "marker", "error"}`.

    `source` and `marker` are the server's response; without one `ok` is False and `error` is the reason.
    """
    connection = http.client.HTTPConnection(host, PORT, timeout=ANSWER_TIMEOUT)
    try:
        connection.request("GET", "/", headers={MARKER_HEADER: marker})
        source, _, echoed = connection.getresponse().read(4096).decode().partition(" ")
    except (OSError, http.client.HTTPException) as error:
        return {"host": host, "ok": False, "source": "", "marker": "", "error": str(error) or type(error).__name__}
    finally:
        connection.close()
    return {"host": host, "ok": True, "source": source, "marker": echoed, "error": ""}


def ask_all(hosts: list[str], marker: str) -> list[dict[str, object]]:
    """Send a request to every host, 32 at a time, and return the results in the order of `hosts`."""

    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(lambda host: ask(host, marker), hosts))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        for answer in ask_all(sys.argv[3:], sys.argv[2]):
            sys.stdout.write(json.dumps(answer) + "\n")
