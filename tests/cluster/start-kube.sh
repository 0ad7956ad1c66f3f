#!/bin/bash
# Starts one etcd and one kube-apiserver (and, on demand, kube-controller-manager
# and kube-scheduler) on free loopback ports, and waits until it is ready.
#
#   start-kube.sh BINDIR STATEDIR [controller-manager] [scheduler]
#
# BINDIR    contains kube-apiserver and the other programs asked for (see build-kube.sh)
# STATEDIR  is created if absent: certificates, kubeconfigs, pid files, logs, etcd data.
#           A second start on the same folder only prints what is running; a program that
#           has ended (a test killed it) is started again with its old port and data.
#
# Prints lines that a shell can source, and writes them to STATEDIR/env:
#   KUBECONFIG, KUBE_URL, KUBE_CA, KUBE_DIR
# Stop with stop-kube.sh STATEDIR. Get more identities with kubeconfig.sh.
#
# Settings by environment:
#   ETCD=etcd                     the etcd binary; 3.5.13 or newer (build-etcd.sh)
#   KUBE_ADDR=127.0.0.1           address to listen on; in a network namespace its own address
#   KUBE_ADVERTISE=192.0.2.10     address behind the service "kubernetes"; a loopback address is refused
#   KUBE_PORT= ETCD_PORT=         a free port is picked if unset
#   KUBE_SERVICE_CIDR=10.96.0.0/16,fd00:96::/112
#   KUBE_POD_CIDR=                e.g. 10.244.0.0/16,fd00:244::/56: controller-manager hands pod CIDRs to Nodes
#   KUBE_SANS=                    more names for the serving certificate, e.g. IP:10.1.0.1,DNS:api
#   KUBE_ARGS=                    more flags for kube-apiserver (last one wins)
#   KUBE_CM_ARGS=                 more flags for kube-controller-manager
#   KUBE_CM_CONTROLLERS=*         which controllers it runs
#   KUBE_WAIT=120                 seconds until giving up
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 2 ] || { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
bin=$(cd "$1" && pwd); mkdir -p "$2"; dir=$(cd "$2" && pwd); shift 2
with=" $* "

etcd=${ETCD:-etcd}
addr=${KUBE_ADDR:-127.0.0.1}
advertise=${KUBE_ADVERTISE:-192.0.2.10}
cidr=${KUBE_SERVICE_CIDR:-10.96.0.0/16,fd00:96::/112}
die() { echo "start-kube: $*" >&2; exit 1; }
[ -x "$bin/kube-apiserver" ] || die "no $bin/kube-apiserver; run build-kube.sh first"
etcd=$(readlink -f "$(command -v "$etcd")") || die "no etcd; build it (build-etcd.sh) and set ETCD"
for program in $with; do [ -x "$bin/kube-$program" ] || die "no $bin/kube-$program; run build-kube.sh first"; done

# true if the process of a pid file is still the one that was started
alive() {
  local pid; pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
  [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$(cat "$dir/$1.exe" 2>/dev/null)" ]
}
launch() { # NAME BINARY ARGS...: detached, so that it outlives this script
  local name=$1 file; file=$(readlink -f "$2"); shift 2
  echo "$file" >"$dir/$name.exe"
  setsid "$file" "$@" >"$dir/$name.log" 2>&1 </dev/null &
  echo $! >"$dir/$name.pid"; disown
  for _ in $(seq 50); do alive "$name" && return; sleep 0.02; done # until setsid has executed it
  tail -n 25 "$dir/$name.log" >&2; die "$name did not start"
}
free_ports() { python3 - "$@" <<'PY'
import socket, sys
addr, wanted = sys.argv[1], sys.argv[2:]
held = []
for port in wanted:
    if port == "0":
        s = socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET)
        s.bind((addr, 0)); held.append(s); port = s.getsockname()[1]
    print(port)
PY
}
before() { cat "$dir/$1.port" 2>/dev/null || echo 0; } # a restart keeps the port, so clients reconnect
url_host() { case $1 in *:*) echo "[$1]";; *) echo "$1";; esac; }

# Certificates are created once per folder.
mkdir -p "$dir/pki"; cd "$dir/pki"
if [ ! -s ca.crt ]; then
  printf '[req]\ndistinguished_name=dn\nprompt=no\n[dn]\n' >req.cnf
  openssl req -config req.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -subj /CN=test-ca -days 3650 -keyout ca.key -out ca.tmp \
    -addext basicConstraints=critical,CA:TRUE -addext subjectKeyIdentifier=hash \
    -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
  mv ca.tmp ca.crt
fi
if [ ! -s sa.pub ]; then
  openssl genrsa -out sa.key 2048 2>/dev/null
  openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
fi
cert() { # NAME SUBJECT [SAN]
  [ -s "$1.crt" ] && return
  openssl req -config req.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -CA ca.crt -CAkey ca.key -subj "$2" -days 3650 -keyout "$1.key" -out "$1.tmp" \
    -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=serverAuth,clientAuth \
    -addext keyUsage=critical,digitalSignature -addext authorityKeyIdentifier=keyid \
    ${3:+-addext "subjectAltName=$3"} 2>/dev/null
  mv "$1.tmp" "$1.crt"
}
first_service_ips=$(python3 -c 'import ipaddress,sys
print(",".join("IP:%s" % ipaddress.ip_network(c)[1] for c in sys.argv[1].split(",")))' "$cidr")
cert apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:::1,IP:$addr,IP:$advertise,$first_service_ips${KUBE_SANS:+,$KUBE_SANS}"
cert apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
cd "$dir"

if ! alive etcd; then
  read -r etcd_port peer_port < <(free_ports 127.0.0.1 "${ETCD_PORT:-$(before etcd)}" 0 | xargs)
  echo "$etcd_port" >etcd.port
  args=(--name test --data-dir "$dir/etcd" --unsafe-no-fsync --auto-compaction-mode=revision --auto-compaction-retention=10000
    --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port"
    --listen-peer-urls "http://127.0.0.1:$peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$peer_port"
    --initial-cluster "test=http://127.0.0.1:$peer_port"
    --heartbeat-interval=20 --election-timeout=200) # ms; a single member elects itself after this time
  launch etcd "$etcd" "${args[@]}"
fi
etcd_port=$(cat etcd.port)
# kube-apiserver retries an unreachable etcd only after a second, so wait for etcd first
for _ in $(seq 100); do curl -sf --max-time 1 "http://127.0.0.1:$etcd_port/health" >/dev/null && break; sleep 0.05; done

if ! alive kube-apiserver; then
  read -r port < <(free_ports "$addr" "${KUBE_PORT:-$(before kube-apiserver)}")
  echo "$port" >kube-apiserver.port
  # shellcheck disable=SC2086
  launch kube-apiserver "$bin/kube-apiserver" \
    --etcd-servers="http://127.0.0.1:$etcd_port" \
    --bind-address="$addr" --secure-port="$port" --advertise-address="$advertise" \
    --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key \
    --client-ca-file=pki/ca.crt \
    --kubelet-client-certificate=pki/apiserver-kubelet.crt --kubelet-client-key=pki/apiserver-kubelet.key \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
    --service-cluster-ip-range="$cidr" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname \
    --allow-privileged=true --profiling=false ${KUBE_ARGS:-}
fi
port=$(cat kube-apiserver.port)
url=https://$(url_host "$addr"):$port
echo "$url" >url

"$here/kubeconfig.sh" "$dir" admin /O=system:masters/CN=admin >/dev/null

ready() { curl -sf --max-time 5 --cacert pki/ca.crt --cert pki/admin.crt --key pki/admin.key "$url/readyz" >/dev/null; }
end=$((SECONDS + ${KUBE_WAIT:-120}))
until ready; do
  for p in etcd kube-apiserver; do
    alive $p || { tail -n 25 $p.log >&2; die "$p ended while starting; its log is $dir/$p.log"; }
  done
  [ $SECONDS -lt $end ] || { tail -n 25 kube-apiserver.log >&2; die "not ready in ${KUBE_WAIT:-120} s"; }
  sleep 0.1
done

# Additional programs
case $with in *" controller-manager "*)
  if ! alive kube-controller-manager; then
    "$here/kubeconfig.sh" "$dir" kube-controller-manager /CN=system:kube-controller-manager >/dev/null
    read -r p < <(free_ports 127.0.0.1 0)
    # shellcheck disable=SC2086
    launch kube-controller-manager "$bin/kube-controller-manager" \
      --kubeconfig=kube-controller-manager.kubeconfig --bind-address=127.0.0.1 --secure-port="$p" \
      --authentication-skip-lookup=true --leader-elect=false --use-service-account-credentials=true \
      --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt \
      --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key \
      --controllers="${KUBE_CM_CONTROLLERS:-*}" \
      ${KUBE_POD_CIDR:+--allocate-node-cidrs=true --cluster-cidr="$KUBE_POD_CIDR"} ${KUBE_CM_ARGS:-}
  fi;;
esac
case $with in *" scheduler "*)
  if ! alive kube-scheduler; then
    "$here/kubeconfig.sh" "$dir" kube-scheduler /CN=system:kube-scheduler >/dev/null
    read -r p < <(free_ports 127.0.0.1 0)
    launch kube-scheduler "$bin/kube-scheduler" --kubeconfig=kube-scheduler.kubeconfig \
      --bind-address=127.0.0.1 --secure-port="$p" --authentication-skip-lookup=true --leader-elect=false
  fi;;
esac

printf 'export %s=%q\n' KUBECONFIG "$dir/admin.kubeconfig" KUBE_URL "$url" \
  KUBE_CA "$dir/pki/ca.crt" KUBE_DIR "$dir" | tee "$dir/env"
