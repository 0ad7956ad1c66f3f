"""The in-tunnel probe between two ravenvpn nodes: frame, prober and schedule (docs/protocol.md §2)."""
