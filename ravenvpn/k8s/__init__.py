"""Where the world comes from: Kubernetes objects and manifests, turned into values of `ravenvpn.mesh.model`.

Dictionaries end in `crd`; nothing that decides about the mesh belongs here.
"""
