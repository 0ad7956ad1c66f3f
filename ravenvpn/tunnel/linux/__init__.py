"""The tunnel's I/O on Linux: TUN device, UDP sockets, link notifications, the configuration socket of wg(8)."""
