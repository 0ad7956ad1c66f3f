"""Gateways as published in the Raven user manual of OpenYurt.

Only the node names and the public address are placeholders, because the manual masks them. Scenes insert their own.
"""

_HANGZHOU = """
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata:
  name: gw-hangzhou
spec:
  proxyConfig:
    Replicas: 1
  tunnelConfig:
    Replicas: 1
  endpoints:
    - nodeName: hangzhou-1
      underNAT: true
      port: 10262
      type: proxy
    - nodeName: hangzhou-1
      underNAT: true
      port: 4500
      type: tunnel
"""
_CLOUD = """
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata:
  name: gw-cloud
spec:
  exposeType: PublicIP
  proxyConfig:
    Replicas: 1
    proxyHTTPPort: 10255,9445
    proxyHTTPSPort: 10250,9100
  tunnelConfig:
    Replicas: 1
  endpoints:
    - nodeName: cloud-1
      underNAT: false
      port: 10262
      type: proxy
      publicIP: 203.0.113.10
    - nodeName: cloud-1
      underNAT: false
      port: 4500
      type: tunnel
      publicIP: 203.0.113.10
"""
_QINGDAO = """
apiVersion: raven.openyurt.io/v1beta1
kind: Gateway
metadata:
  name: gw-qingdao
spec:
  proxyConfig:
    Replicas: 1
  tunnelConfig:
    Replicas: 1
  endpoints:
    - nodeName: qingdao-1
      underNAT: true
      port: 10262
      type: proxy
    - nodeName: qingdao-2
      underNAT: true
      port: 4500
      type: tunnel
"""
GATEWAYS = f"{_HANGZHOU}---{_CLOUD}---{_QINGDAO}"
# With additional fields of older releases.
OLDER = f"""{_CLOUD.replace("gw-cloud", "gw-older").rstrip()}
      config:
        enable-l3-tunnel: "true"
        publicKey: tTESjuCIXUM0FX3wLxJ3PIhv88O50OfYO0rUIdS6Bww=
  nodeSelector:
    matchLabels:
      raven.openyurt.io/gateway: gw-older
"""
