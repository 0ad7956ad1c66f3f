"""A minimal kubelet for tests: it registers a Node, renews its Lease, and reports its pods as running.

It serves logs and exec, so that "kubectl logs" crosses the network to the node's own address.

    fake_kubelet.py --kubeconfig NODE.kubeconfig --node NAME --ip ADDRESS --cert CRT --key KEY [--port 10250]

The kubeconfig is one of a node (kubeconfig.sh DIR NAME /O=system:nodes/CN=system:node:NAME), so the Node
authorizer and NodeRestriction treat it like a real kubelet. It is started inside the node's network
namespace, and exec runs there too. exec speaks WebSocket v4, as kubernetes-asyncio does. SPDY, which
kubectl's own exec uses, is not implemented (kwok implements it).
Needs kubernetes-asyncio (with aiohttp).
"""

import argparse
import asyncio
import datetime
import json
import signal
import ssl

from aiohttp import web
from kubernetes_asyncio import client, config, watch


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def register(core: client.CoreV1Api, args: argparse.Namespace) -> None:
    labels = {"kubernetes.io/hostname": args.node, "kubernetes.io/os": "linux"}
    try:
        await core.create_node({"metadata": {"name": args.node, "labels": labels}})
    except client.ApiException as error:
        if error.status != 409:  # exists already: created by the test or by an earlier process
            raise
    await say_ready(core, args)


async def say_ready(core: client.CoreV1Api, args: argparse.Namespace) -> None:
    room = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    await core.patch_node_status(
        args.node,
        {
            "status": {
                "addresses": [{"type": "InternalIP", "address": args.ip}, {"type": "Hostname", "address": args.node}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": args.port}},
                "capacity": room,
                "allocatable": room,
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True",
                        "reason": "KubeletReady",
                        "message": "fake",
                        "lastHeartbeatTime": now(),
                        "lastTransitionTime": now(),
                    }
                ],
            }
        },
    )


async def keep_lease(api: client.ApiClient, args: argparse.Namespace) -> None:
    leases = client.CoordinationV1Api(api)
    spec = {"holderIdentity": args.node, "leaseDurationSeconds": 40}
    while True:
        try:
            try:
                await leases.patch_namespaced_lease(
                    args.node, "kube-node-lease", {"spec": spec | {"renewTime": now()}}
                )
            except client.ApiException as error:
                if error.status != 404:
                    raise
                await leases.create_namespaced_lease(
                    "kube-node-lease", {"metadata": {"name": args.node}, "spec": spec | {"renewTime": now()}}
                )
        except (TimeoutError, client.ApiException, OSError) as error:
            print("lease:", error, flush=True)  # tests cut this path on purpose
        await asyncio.sleep(args.lease_every)


async def run_pods(core: client.CoreV1Api, args: argparse.Namespace) -> None:
    while True:
        try:
            async with watch.Watch() as pods:
                async for event in pods.stream(
                    core.list_pod_for_all_namespaces, timeout_seconds=300, field_selector=f"spec.nodeName={args.node}"
                ):
                    await settle(core, args, event["object"], event["type"])
        except (TimeoutError, client.ApiException, OSError) as error:
            print("pods:", error, flush=True)
            await asyncio.sleep(1)


async def settle(core: client.CoreV1Api, args: argparse.Namespace, pod: client.V1Pod, change: str) -> None:
    meta = pod.metadata
    if change == "DELETED":
        return
    if meta.deletion_timestamp:
        await core.delete_namespaced_pod(meta.name, meta.namespace, grace_period_seconds=0)
    elif pod.status.phase == "Pending":
        await core.patch_namespaced_pod_status(
            meta.name,
            meta.namespace,
            {
                "status": {
                    "phase": "Running",
                    "hostIP": args.ip,
                    "podIP": args.ip,
                    "podIPs": [{"ip": args.ip}],
                    "conditions": [
                        {"type": kind, "status": "True"} for kind in ("Initialized", "Ready", "ContainersReady")
                    ],
                    "containerStatuses": [
                        {
                            "name": c.name,
                            "image": c.image,
                            "imageID": "",
                            "ready": True,
                            "restartCount": 0,
                            "started": True,
                            "state": {"running": {"startedAt": now()}},
                        }
                        for c in pod.spec.containers
                    ],
                }
            },
        )


async def logs(request: web.Request) -> web.Response:
    where = request.match_info
    return web.Response(text=f"{where['namespace']}/{where['pod']}/{where['container']} on {request.app['node']}\n")


async def execute(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
    await socket.prepare(request)
    process = await asyncio.create_subprocess_exec(
        *request.query.getall("command"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    for channel, data in ((1, out), (2, err)):
        if data:
            await socket.send_bytes(bytes([channel]) + data)
    end = (
        {"status": "Success"}
        if process.returncode == 0
        else {
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": "command ended badly",
            "details": {"causes": [{"reason": "ExitCode", "message": str(process.returncode)}]},
        }
    )
    await socket.send_bytes(b"\x03" + json.dumps({"metadata": {}, **end}).encode())
    await socket.close()
    return socket


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("kubeconfig", "node", "ip", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, default=10250)
    parser.add_argument("--lease-every", type=float, default=10.0)
    args = parser.parse_args()

    app = web.Application()
    app["node"] = args.node
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    app.router.add_get("/exec/{namespace}/{pod}/{container}", execute)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(args.cert, args.key)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, args.ip, args.port, ssl_context=tls).start()

    await config.load_kube_config(config_file=args.kubeconfig)
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        await register(core, args)
        print("ready", flush=True)
        tasks = [asyncio.create_task(keep_lease(api, args)), asyncio.create_task(run_pods(core, args))]
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await asyncio.wait([asyncio.create_task(stop.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
