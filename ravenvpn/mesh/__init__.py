"""From objects to decisions: who is active, who meets whom, what each node has to do. Pure values and functions.

No packets, no sockets, no clock, no Kubernetes dictionary belongs here; what a plan says about a host is carried out
by `ravenvpn.node`, what it says about sessions by `ravenvpn.tunnel`, and `ravenvpn.agent` hands it to both.
"""
