"""A stand-in for an OpenTelemetry collector: takes traces on loopback, by gRPC or by HTTP, and keeps their spans."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

PATH = "/v1/traces"


@dataclass(frozen=True)
class Span:
    """One span as it arrived. Ids are hexadecimal; `parent` is empty for the first of a trace."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


@dataclass
class Collector:
    """`spans` are those of all exports so far, `raw` the exports themselves as bytes."""

    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def take(self, export: service.ExportTraceServiceRequest) -> None:
        self.raw.append(export.SerializeToString())
        for group in export.resource_spans:
            resource = _plain(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [
                    Span(
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.name,
                        span.kind,
                        _plain(span.attributes),
                        resource,
                    )
                    for span in scope.spans
                ]

    def of(self, request_id: str) -> list[Span]:
        """The spans of the trace that has a request's id."""
        traces = {span.trace for span in self.spans if span.attributes.get("guid:x-request-id") == request_id}
        return [span for span in self.spans if span.trace in traces]


def _plain(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in attributes}


@contextlib.contextmanager
def serve(protocol: str, address: str, port: int = 0) -> Iterator[tuple[Collector, int]]:
    """A collector, and the port that it listens on. `protocol` is `grpc` or `http`. Raises RuntimeError or OSError where
    the port is taken."""
    collector = Collector()
    with (_grpc if protocol == "grpc" else _http)(collector, address, port) as found:
        yield collector, found


@contextlib.contextmanager
def _grpc(collector: Collector, address: str, port: int) -> Iterator[int]:
    class Service(rpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, as gRPC names it
            collector.take(request)
            return service.ExportTraceServiceResponse()

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        rpc.add_TraceServiceServicer_to_server(Service(), server)
        found = server.add_insecure_port(f"{address}:{port}")
        server.start()
        try:
            yield found
        finally:
            server.stop(grace=0).wait()


@contextlib.contextmanager
def _http(collector: Collector, address: str, port: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # noqa: N802, as http.server names it
            body = b"".join(self._chunks())
            known = self.path == PATH
            if known:
                collector.take(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if known else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def _chunks(self) -> Iterator[bytes]:
            """The body: Envoy sends it in chunks (RFC 9112 section 7.1), without trailers."""
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((address, port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
