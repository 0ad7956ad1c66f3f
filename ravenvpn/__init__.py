"""ravenvpn: a userspace WireGuard mesh that joins the regions of one Kubernetes cluster."""

__version__ = "0.1.0"
