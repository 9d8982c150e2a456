"""The policy service: how much of each model's traffic goes to its fallback first, before a request meets a full fleet.

    python -m inference_plane.policy --config FILE

It reads the engines' queues, the routers' statistics, EndpointSlices and waiting pods once a second, decides a share
for each model that has a fallback, and serves the shares to the routers as Envoy runtime. The share concerns only
requests that may leave: which ones may is in Envoy's routes, never here. Without this service, and for whatever it does
not foresee, the rules of each request (a full or empty fleet, an error, a late first token) hold as before.

Environment: POD_NAME and POD_IP (the downward API), from which the Lease's holder identity is made (`NAME_IP:PORT`, with
TLS `NAME_https://IP:PORT`), so that the other replica finds the leader. In a pod the API server is found by the usual variables and the mounted token.

Config, a closed JSON object (an unknown or missing key is an error that names it), read again when the file changes;
`listen`, `tls`, `namespace` and `lease` need a restart:

    {"listen": {"address": "0.0.0.0", "port": 8090, "statusPort": 8091},
     "tls": {"certificate": "certificate/tls.crt", "key": "certificate/tls.key", "ca": "ca/ca.crt",
             "name": "router-policy.inference.svc.cluster.local"},
     "namespace": "inference",
     "lease": {"name": "router-policy", "durationSeconds": 15, "renewSeconds": 5},
     "tickSeconds": 1,
     "routers": {"namespace": "inference", "service": "router", "port": 8081},
     "tuning": {},
     "models": {"summary": {
        "namespace": "inference",
        "fleets": ["summary", "summary-canary"],
        "deployments": ["summary", "summary-canary"],
        "metricsPort": 8001,
        "fallback": true,
        "minReplicas": 1,
        "maxReplicas": 4,
        "requestsPerReplica": 72,
        "firstTokenBudgetMs": 2000}}}

`namespace` is the service's own, where the Lease is. `routers.service` is the Service whose ready endpoints are the
routers, `port` their status port. `tuning` takes fields of `config.Tuning`. Of a model, `namespace`, `fleets`,
`fallback` and `requestsPerReplica` are required: `fleets` are its Services and the values of app.kubernetes.io/name of
its pods; `requestsPerReplica` is what one replica admits, running and waiting; without `fallback` it never gets a
share and has demand alone. `deployments[0]`, by default `fleets[0]`, is what Events are about. `metricsPort` is 8001 by
default, `minReplicas` and `maxReplicas` are 1, `firstTokenBudgetMs` is null. `listen`, `lease`, `tickSeconds`,
`tuning`, `routers.service` and `routers.port` have the defaults that stand above; `tls` is null by default.

With `tls`, `port` speaks TLS 1.3 alone, by the certificate in those PEM files, which are read again when they change;
and a replica copies only from one that proves `name` by an authority in `ca`.

HTTP, or HTTPS, on `port`:

    POST /v3/discovery:runtime   Envoy's runtime discovery (RTDS, api_type REST): one resource `policy`, whose layer is
                                 {"fallback.<model>": 0..100} for each model with a fallback; 304 where the request's
                                 version_info is current; 503 before there is a state
    GET /v1/state                what the follower copies; 503 where there is none

HTTP on `statusPort`, with nothing in it that a router takes:

    GET /demand/<model>          {"model": "summary", "demand": 12.0}; 404 unknown model, 503 where it is not known now
    GET /metrics                 Prometheus
    GET /ready, /live            200 or 503, with the reason as text

What it needs of the Kubernetes API: `list` on pods and endpointslices (discovery.k8s.io) in the models' namespaces,
`list` on endpointslices in the routers'; `get`, `create`, `update` on leases (coordination.k8s.io) in its own, of which
`create` may be left out where the Lease exists; `create` on events (events.k8s.io) in the models' namespaces.
"""
