"""What somebody who reaches a port tries there, as a program: `python stranger.py HOST:PORT … [--token TOKEN]`.

Prints one JSON object: for each address what each gRPC method answers to an empty request (its status code; OK would be an
answered call) and the HTTP status of each path. An empty request is a valid one of what is asked with the token.
"""

from __future__ import annotations

import argparse
import http.client
import json

import grpc

METHODS = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.serve.ASGIService/HandleRequest",
)
NOT_WITH_TOKEN = ("/ray.rpc.ObjectManagerService/Pull",)  # an empty request is no valid one of this
PATHS = (
    ("GET", "/", ""),
    ("GET", "/metrics", ""),
    ("GET", "/api/version", ""),
    ("POST", "/api/jobs/", '{"entrypoint": "touch /tmp/posted"}'),
    ("POST", "/api/job_agent/jobs/", '{"entrypoint": "touch /tmp/posted"}'),
    ("POST", "/get_or_create_runtime_env", ""),
)


def said_by_rpc(address: str, token: str) -> dict[str, str]:
    """The status code of each method."""
    said = {}
    shown = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address) as channel:
        for method in METHODS if token else METHODS + NOT_WITH_TOKEN:
            try:
                channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)(
                    b"", timeout=5, metadata=shown
                )
                said[method] = "OK"
            except grpc.RpcError as error:
                said[method] = error.code().name
                if said[method] == "UNAVAILABLE":  # no gRPC at all
                    break
    return said


def said_by_http(address: str, token: str) -> dict[str, int | str]:
    """The status of each path, or the kind of error where it is no HTTP."""
    said: dict[str, int | str] = {}
    host, _, port = address.rpartition(":")
    shown = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    for verb, path, body in PATHS:
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request(verb, path, body=body or None, headers=shown)
            said[f"{verb} {path}"] = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            said[f"{verb} {path}"] = type(error).__name__
            break
        finally:
            connection.close()
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--token", default="")
    given = parser.parse_args()
    print(
        json.dumps(
            {each: {**said_by_rpc(each, given.token), **said_by_http(each, given.token)} for each in given.addresses}
        )
    )
