"""Every field and every value that the router's Envoy configuration may have: what the charts can render of it.

An allow-list, so that a field of Envoy that nobody thought of is a violation and not a way out: mirrors, redirects,
weighted clusters, clusters by header, other spellings of the same field (proto JSON takes `clusterHeader` too), other
filters, other sources of configuration. What the allowed fields then do is judged by other rules.
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from inference_plane.kube import path_of

#: A type, a set of values, [the shape of each item], {field: shape} for a closed object, or one of the classes below.
Shape = Any
_URL = "type.googleapis.com/"


class Each:
    """A map with any keys, whose values have one shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape


class Anything:
    """What Envoy gives to nobody but the charts' own Lua, or prints."""


class Extension:
    """One of some extensions, each by its name, the type of its configuration and the shape of that."""

    def __init__(self, *known: tuple[str, str, Mapping[str, Shape]]) -> None:
        self.known = {(name, _URL + kind): shape for name, kind, shape in known}


class Message:
    """A message that says its own type in `@type`."""

    def __init__(self, *known: tuple[str, Mapping[str, Shape]]) -> None:
        self.known = {_URL + kind: shape for kind, shape in known}


def duration(value: Any) -> str:
    """Proto JSON's durations are seconds."""
    return "" if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?s", value) else "is not seconds such as 0.5s"


def unknown(value: Any, shape: Shape, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, str]]:
    """(path, message) for each place where a value is not of its shape."""
    here = path_of(path)
    if isinstance(shape, type) and issubclass(shape, Anything):
        return
    if isinstance(shape, type):
        number = shape in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and (shape is float or value == int(value))) and type(value) is not shape:
            yield here, f"is {_short(value)}, where the charts write a {shape.__name__}"
    elif isinstance(shape, (set, frozenset)):
        if (
            isinstance(value, (dict, list))
            or value not in shape
            or isinstance(value, bool) != any(isinstance(known, bool) for known in shape)
        ):
            yield (here, f"is {_short(value)}; the charts write {' or '.join(map(repr, sorted(shape, key=str)))}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield here, f"is {_short(value)}, not a list"
            return
        for number, item in enumerate(value):
            yield from unknown(item, shape[0], (*path, number))
    elif isinstance(shape, (dict, Each, Extension, Message)):
        if not isinstance(value, dict):
            yield here, f"is {_short(value)}, not an object"
        else:
            yield from _fields(value, shape, path)
    elif isinstance(shape, Callable) and (why := shape(value)):
        yield here, f"is {_short(value)}: {why}"


def _fields(value: Mapping[str, Any], shape: Shape, path: tuple[str | int, ...]) -> Iterator[tuple[str, str]]:
    here = path_of(path)
    if isinstance(shape, Each):
        for key, item in value.items():
            yield from unknown(item, shape.shape, (*path, key))
        return
    if isinstance(shape, Message):
        fields = shape.known.get(_text(value.get("@type")))
        if fields is None:
            yield (here, f"is of the type {_short(value.get('@type'))}, of which the router has none")
            return
        shape = {"@type": str, **fields}
    elif isinstance(shape, Extension):
        config = value.get("typed_config")
        kind = _text(config.get("@type")) if isinstance(config, dict) else ""
        fields = shape.known.get((_text(value.get("name")), kind))
        if fields is None:
            yield (
                here,
                (
                    f"is the extension {_short(value.get('name'))} of the type {kind.removeprefix(_URL) or 'nothing'}, "
                    "which the router does not have"
                ),
            )
            return
        shape = {"name": str, "typed_config": {"@type": str, **fields}, **{k: v for k, v in EXTRA.items()}}
    for key, item in value.items():
        if key not in shape:
            yield (path_of((*path, key)), f"is a field that the router's configuration does not have: {_short(item)}")
        else:
            yield from unknown(item, shape[key], (*path, key))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


_V = "envoy.extensions."
_EXACT = {"exact": str}
_REGEX = {"safe_regex": {"regex": str}}
_PATH = [{"key": str}]
_HEADER = {"header": {"key": str, "value": str}, "append_action": {"OVERWRITE_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT"}}
_DIRECTORY = {"path": str}
_LUA = ("envoy.filters.http.lua", _V + "filters.http.lua.v3.Lua", {"default_source_code": {"filename": str}})
_ROUTER = ("envoy.filters.http.router", _V + "filters.http.router.v3.Router", {})
_CODEC = ("envoy.filters.http.upstream_codec", _V + "filters.http.upstream_codec.v3.UpstreamCodec", {})

#: Where a file of the pod is a source of configuration; whether it is one of the ConfigMaps' is for another rule.
FILE = {"resource_api_version": {"V3"}, "path_config_source": {"path": str, "watched_directory": _DIRECTORY}}
_SDS = {"name": {"ca", "certificate"}, "sds_config": FILE}

_METADATA_MATCHER = {
    "filter": {"inference-plane", "usage", "envoy.filters.http.jwt_authn"},
    "path": _PATH,
    "value": {
        "present_match": {True},
        "string_match": {**_EXACT, **_REGEX},
        "double_match": {"range": {"start": float, "end": float}},
    },
}
_METADATA_FILTER = {"matcher": _METADATA_MATCHER, "match_if_key_not_found": {False}}
_STATUS_FILTER = {"comparison": {"op": {"EQ", "GE"}, "value": {"default_value": int, "runtime_key": {"none"}}}}
_LOG_FILTERS = {
    "metadata_filter": _METADATA_FILTER,
    "status_code_filter": _STATUS_FILTER,
    "header_filter": {"header": {"name": str, "present_match": {True}}},
    "response_flag_filter": {"flags": [str]},
}
_LOG_FILTER = _LOG_FILTERS | {"and_filter": {"filters": [_LOG_FILTERS]}}
#: Fields that an extension has beside its name and configuration.
EXTRA = {"filter": _LOG_FILTER}


def _kept(texts: Mapping[str, str]) -> Shape:
    """What is kept of a request for the balancer, the audit line and the counters, by its name."""
    return {
        "on_request_headers": [
            {
                "object_key": {f"inference-plane.{key}" for key in texts},
                "factory_key": {"envoy.hashable_string", "envoy.string"},
                "format_string": {
                    "text_format_source": {"inline_string": set(texts.values())},
                    "omit_empty_values": {True},
                },
                "skip_if_empty": {True},
            }
        ]
    }


_LOCAL_REPLY = {
    "mappers": [
        {
            "filter": _LOG_FILTER,
            "status_code": int,
            "headers_to_add": [_HEADER],
            "body_format_override": {"content_type": {"application/json"}, "json_format": Anything},
        }
    ]
}

_TLS_PARAMETERS = {"tls_minimum_protocol_version": {"TLSv1_2", "TLSv1_3"}, "tls_maximum_protocol_version": {"TLSv1_3"}}
_VALIDATION = {
    "match_typed_subject_alt_names": [{"san_type": {"DNS"}, "matcher": _EXACT}],
    "trusted_ca": {"filename": str, "inline_string": str},
}
_UPSTREAM_SOCKET = Extension(
    (
        "envoy.transport_sockets.tls",
        _V + "transport_sockets.tls.v3.UpstreamTlsContext",
        {
            "sni": str,
            "max_session_keys": {0},
            "common_tls_context": {
                "tls_params": _TLS_PARAMETERS,
                "alpn_protocols": [{"h2", "http/1.1"}],
                "validation_context": _VALIDATION,
                "combined_validation_context": {
                    "default_validation_context": _VALIDATION,
                    "validation_context_sds_secret_config": _SDS,
                },
            },
        },
    )
)
_LISTENER_SOCKET = Extension(
    (
        "envoy.transport_sockets.tls",
        _V + "transport_sockets.tls.v3.DownstreamTlsContext",
        {
            "common_tls_context": {
                "tls_params": _TLS_PARAMETERS,
                "alpn_protocols": [{"h2", "http/1.1"}],
                "tls_certificate_sds_secret_configs": [_SDS],
            }
        },
    )
)
_RAW_SOCKET = Extension(("envoy.transport_sockets.raw_buffer", _V + "transport_sockets.raw_buffer.v3.RawBuffer", {}))

_UPSTREAM_FILTERS = Extension(
    (
        "envoy.filters.http.header_mutation",
        _V + "filters.http.header_mutation.v3.HeaderMutation",
        {"mutations": {"request_mutations": [{"append": _HEADER}]}},
    ),
    _LUA,
    ("restore", _V + "filters.http.lua.v3.Lua", {}),
    (
        "envoy.filters.http.aws_request_signing",
        _V + "filters.http.aws_request_signing.v3.AwsRequestSigning",
        {
            "service_name": {"bedrock"},
            "region": str,
            "credential_provider": {
                "custom_credential_provider_chain": {True},
                "container_credential_provider": {},
                "assume_role_with_web_identity_provider": {
                    "role_arn": str,
                    "role_session_name": {"router"},
                    "web_identity_token_data_source": {"filename": str, "watched_directory": _DIRECTORY},
                },
            },
        },
    ),
    _CODEC,
)
_HTTP_OPTIONS = {
    "@type": {f"{_URL}{_V}upstreams.http.v3.HttpProtocolOptions"},
    "explicit_http_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
    "http_filters": [_UPSTREAM_FILTERS],
    "outlier_detection": {
        "error_matcher": {
            "http_response_headers_match": {
                "headers": [{"name": str, "string_match": {"prefix": str}, "present_match": {False}}]
            }
        }
    },
}
_CLUSTER = {
    "name": str,
    "alt_stat_name": str,
    "type": {"STATIC"},
    "cluster_type": Extension(
        (
            "envoy.clusters.dns",
            _V + "clusters.dns.v3.DnsCluster",
            {
                "dns_refresh_rate": duration,
                "dns_failure_refresh_rate": {"base_interval": duration, "max_interval": duration},
                "dns_lookup_family": {"V4_ONLY"},
                "all_addresses_in_single_endpoint": {False},
            },
        )
    ),
    "metadata": {"filter_metadata": {"inference-plane": Each(str)}},
    "connect_timeout": duration,
    "lb_policy": {"LEAST_REQUEST", "MAGLEV"},
    "maglev_lb_config": {"table_size": int},
    "ignore_health_on_host_removal": {True},
    "upstream_connection_options": {"tcp_keepalive": Each(int)},
    "common_lb_config": {
        "healthy_panic_threshold": {"value": {0}},
        "update_merge_window": duration,
        "consistent_hashing_lb_config": {"hash_balance_factor": int},
    },
    "load_assignment": {
        "cluster_name": str,
        "policy": {"overprovisioning_factor": int},
        "endpoints": [
            {
                "priority": {0, 1},
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {
                                "socket_address": {"address": str, "port_value": int},
                                "pipe": {"path": {"run/admin.sock", "run/jwks-proxy.sock"}},
                            },
                            "health_check_config": {"disable_active_health_check": {True}},
                        },
                        "metadata": {"filter_metadata": {"envoy.transport_socket_match": {"loopback": {True}}}},
                    }
                ],
            }
        ],
    },
    "transport_socket": _UPSTREAM_SOCKET,
    "transport_socket_matches": [
        {"name": {"loopback"}, "match": {"loopback": {True}}, "transport_socket": _RAW_SOCKET}
    ],
    "circuit_breakers": {"thresholds": [Each(Anything)]},
    "health_checks": [
        {
            "timeout": duration,
            "interval": duration,
            "no_traffic_interval": duration,
            "unhealthy_threshold": int,
            "healthy_threshold": int,
            "http_health_check": {"path": {"/health"}},
        }
    ],
    "outlier_detection": Each(Anything),
    "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _HTTP_OPTIONS},
}

_MATCH = {
    "path": str,
    "prefix": {"/"},
    "headers": [{"name": str, "present_match": {True}, "string_match": {**_EXACT, **_REGEX}, "invert_match": {True}}],
    "dynamic_metadata": [
        {"filter": {"inference-plane"}, "path": _PATH, "value": {"string_match": _REGEX}, "invert": {True}}
    ],
    "runtime_fraction": {"default_value": {"numerator": int}, "runtime_key": str},
}
_RETRY = {
    "retry_on": {"5xx,reset,connect-failure,retriable-status-codes"},
    "retriable_status_codes": [{429}],
    "num_retries": int,
    "retry_back_off": {"base_interval": duration, "max_interval": duration},
    "retry_host_predicate": [
        Extension(
            (
                "envoy.retry_host_predicates.previous_hosts",
                _V + "retry.host.previous_hosts.v3.PreviousHostsPredicate",
                {},
            )
        )
    ],
    "host_selection_retry_max_attempts": int,
    "refresh_cluster_on_retry": {True},
    "per_try_timeout": duration,
}
_LUA_PER_ROUTE = {"@type": {f"{_URL}{_V}filters.http.lua.v3.LuaPerRoute"}}
_ROUTE = {
    "name": str,
    "match": _MATCH,
    "direct_response": {"status": int, "body": {"inline_string": str}},
    "response_headers_to_add": [_HEADER],
    "request_headers_to_add": [_HEADER],
    "typed_per_filter_config": {"restore": _LUA_PER_ROUTE | {"source_code": {"filename": str}}},
    "route": {
        "cluster": str,
        "cluster_specifier_plugin": str,
        "timeout": duration,
        "hash_policy": [{"filter_state": {"key": {"inference-plane.affinity"}}}],
        "retry_policy": _RETRY,
    },
}
_ROUTES = {"name": str, "typed_config": Message(("envoy.config.route.v3.RouteList", {"routes": [_ROUTE]}))}
ROUTE_CONFIGURATION = {
    "name": {"plane"},
    "max_direct_response_body_size_bytes": int,
    "cluster_specifier_plugins": [
        {
            "extension": {
                "name": str,
                "typed_config": Message(
                    (
                        _V + "router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
                        {
                            "priority_groups": [
                                {
                                    "name": {"fleet", "fleet-again", "bedrock"},
                                    "clusters": [{"cluster_name": str, "weight": int}],
                                }
                            ]
                        },
                    )
                ),
            }
        }
    ],
    "response_headers_to_add": [_HEADER],
    "typed_per_filter_config": {
        "envoy.filters.http.lua": _LUA_PER_ROUTE | {"filter_context": Each(Anything)},
        "identity": _LUA_PER_ROUTE | {"filter_context": Each(Anything)},
    },
    "virtual_hosts": [
        {
            "name": {"plane"},
            "domains": [{"*"}],
            "request_headers_to_remove": [{"authorization", "cookie"}],
            "include_request_attempt_count": {True},
            "include_attempt_count_in_response": {True},
            "request_body_buffer_limit": int,
            "retry_policy": _RETRY,
            "matcher": {
                "matcher_tree": {
                    "input": {
                        "name": str,
                        "typed_config": Message(
                            ("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", {"header_name": {"x-plane-model"}})
                        ),
                    },
                    "exact_match_map": {"map": Each({"action": _ROUTES})},
                },
                "on_no_match": {"action": _ROUTES},
            },
        }
    ],
}

_RATE_LIMIT_METADATA = {"key": {"inference-plane"}, "path": _PATH}
_FRONT_FILTERS = Extension(
    (
        "envoy.filters.http.jwt_authn",
        _V + "filters.http.jwt_authn.v3.JwtAuthentication",
        {
            "providers": {
                "caller": {
                    "issuer": str,
                    "audiences": [str],
                    "remote_jwks": {
                        "http_uri": {"uri": str, "cluster": {"jwks"}, "timeout": duration},
                        "cache_duration": duration,
                        "async_fetch": {"failed_refetch_duration": duration},
                    },
                    "local_jwks": {"inline_string": str},
                    "from_headers": [{"name": {"authorization"}, "value_prefix": {"Bearer "}}],
                    "forward": {False},
                    "require_expiration": {True},
                    "clock_skew_seconds": int,
                    "jwt_cache_config": {"jwt_cache_size": int},
                    "payload_in_metadata": {"claims"},
                    "failed_status_in_metadata": {"failed"},
                }
            },
            "rules": [{"match": {"prefix": {"/"}}, "requires": {"provider_name": {"caller"}}}],
        },
    ),
    ("identity", _V + "filters.http.lua.v3.Lua", {"default_source_code": {"filename": str}}),
    (
        "caller",
        _V + "filters.http.set_filter_state.v3.Config",
        _kept({key: f"%DYNAMIC_METADATA(inference-plane:{key})%" for key in ("team", "cost_center", "subject")}),
    ),
    (
        "envoy.filters.http.rbac",
        _V + "filters.http.rbac.v3.RBAC",
        {
            "rules": {
                "action": {"ALLOW"},
                "policies": {
                    "team": {
                        "permissions": [{"any": {True}}],
                        "principals": [{"sourced_metadata": {"metadata_matcher": _METADATA_MATCHER}}],
                    }
                },
            }
        },
    ),
    _LUA,
    (
        "envoy.filters.http.set_filter_state",
        _V + "filters.http.set_filter_state.v3.Config",
        _kept(
            {
                "affinity": "%DYNAMIC_METADATA(inference-plane:affinity)%",
                "requested_model": "%REQ(x-plane-model)%",
                "requested_residency": "%REQ(x-residency)%",
            }
        ),
    ),
    (
        "envoy.filters.http.header_to_metadata",
        _V + "filters.http.header_to_metadata.v3.Config",
        {
            "request_rules": [
                {
                    "header": {"x-plane-model", "x-residency"},
                    "on_header_present": {"metadata_namespace": {"inference-plane"}, "key": str},
                }
            ],
            "response_rules": [
                {
                    "header": str,
                    "on_header_present": {"metadata_namespace": {"usage"}, "key": str, "type": {"NUMBER"}},
                    "remove": {True},
                }
            ],
        },
    ),
    (
        "envoy.filters.http.ratelimit",
        _V + "filters.http.ratelimit.v3.RateLimit",
        {
            "domain": {"tokens"},
            "timeout": duration,
            "failure_mode_deny": {True, False},
            "status_on_error": {"code": {"ServiceUnavailable"}},
            "enable_retry_after_header": {True},
            "rate_limit_service": {
                "transport_api_version": {"V3"},
                "grpc_service": {"envoy_grpc": {"cluster_name": {"ratelimit"}}},
            },
            "rate_limits": [
                {
                    "actions": [
                        {"metadata": {"descriptor_key": {"team", "model"}, "metadata_key": _RATE_LIMIT_METADATA}}
                    ],
                    "hits_addend": {"number": int, "format": str},
                    "limit": {"dynamic_metadata": {"metadata_key": _RATE_LIMIT_METADATA}},
                    "apply_on_stream_done": {True},
                }
            ],
        },
    ),
    (
        "envoy.filters.http.sse_to_metadata",
        _V + "filters.http.sse_to_metadata.v3.SseToMetadata",
        {
            "response_rules": {
                "content_parser": Extension(
                    (
                        "envoy.content_parsers.json",
                        _V + "content_parsers.json.v3.JsonContentParser",
                        {
                            "rules": [
                                {
                                    "rule": {
                                        "selectors": _PATH,
                                        "on_present": {"metadata_namespace": {"usage"}, "key": str, "type": {"NUMBER"}},
                                    }
                                }
                            ]
                        },
                    )
                )
            }
        },
    ),
    _ROUTER,
)
_TRACER = Extension(
    (
        "envoy.tracers.opentelemetry",
        "envoy.config.trace.v3.OpenTelemetryConfig",
        {
            "service_name": {"inference-router"},
            "grpc_service": {"envoy_grpc": {"cluster_name": {"traces"}}, "timeout": duration},
            "http_service": {"http_uri": {"uri": str, "cluster": {"traces"}, "timeout": duration}},
            "resource_detectors": [
                Extension(
                    (
                        "envoy.tracers.opentelemetry.resource_detectors.static_config",
                        _V + "tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig",
                        {"attributes": Each(str)},
                    )
                )
            ],
        },
    )
)
_TUNNEL = (
    "envoy.filters.network.tcp_proxy",
    _V + "filters.network.tcp_proxy.v3.TcpProxy",
    {"cluster": {"jwks-proxy"}, "stat_prefix": {"jwks_proxy"}, "tunneling_config": {"hostname": str}},
)
_NETWORK_FILTERS = Extension(
    _TUNNEL,
    (
        "envoy.filters.network.http_connection_manager",
        _V + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        {
            "stat_prefix": {"plane", "no_capacity", "status"},
            "server_name": {"inference-plane"},
            "use_remote_address": {True},
            "xff_num_trusted_hops": int,
            "internal_address_config": {"cidr_ranges": [{"address_prefix": {"127.255.255.255"}, "prefix_len": {32}}]},
            "normalize_path": {True},
            "merge_slashes": {True},
            "path_with_escaped_slashes_action": {"REJECT_REQUEST"},
            "always_set_request_id_in_response": {True},
            "stream_idle_timeout": duration,
            "request_headers_timeout": duration,
            "request_timeout": duration,
            "common_http_protocol_options": {
                "idle_timeout": duration,
                "headers_with_underscores_action": {"REJECT_REQUEST"},
            },
            "early_header_mutation_extensions": [
                Extension(
                    (
                        "envoy.http.early_header_mutation.header_mutation",
                        _V + "http.early_header_mutation.header_mutation.v3.HeaderMutation",
                        {"mutations": [{"remove_on_match": {"key_matcher": {"prefix": str}}, "remove": str}]},
                    )
                )
            ],
            "local_reply_config": _LOCAL_REPLY,
            "tracing": {
                "client_sampling": {"value": {0}},
                "random_sampling": {"value": float},
                "spawn_upstream_span": {True},
                "max_path_tag_length": int,
                "custom_tags": [{"tag": str, "value": str, "environment": {"name": {"HOSTNAME"}}}],
                "provider": _TRACER,
            },
            "access_log": [
                Extension(
                    (
                        "envoy.access_loggers.stdout",
                        _V + "access_loggers.stream.v3.StdoutAccessLog",
                        {"log_format": {"json_format": Each(str)}},
                    ),
                    (
                        "envoy.access_loggers.stats",
                        _V + "access_loggers.stats.v3.Config",
                        {
                            "stats_scope": {"prefix": {"usage"}},
                            "counters": [
                                {
                                    "stat": {"name": str, "tags": [{"name": str, "value_format": str}]},
                                    "value_fixed": {1},
                                    "value_format": str,
                                }
                            ],
                        },
                    ),
                )
            ],
            "rds": {"route_config_name": {"plane"}, "config_source": FILE},
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": {"no-capacity", "status"},
                        "domains": [{"*"}],
                        "routes": [
                            {
                                "match": {
                                    "prefix": {"/"},
                                    "path": {"/ready", "/alive", "/metrics"},
                                    "headers": [{"name": {":method"}, "string_match": {"exact": {"GET"}}}],
                                },
                                "direct_response": {"status": {503}},
                                "response_headers_to_add": [_HEADER],
                                "route": {
                                    "cluster": {"admin"},
                                    "prefix_rewrite": {"/hot_restart_version", "/stats/prometheus"},
                                },
                            }
                        ],
                    }
                ]
            },
            "http_filters": [_FRONT_FILTERS],
        },
    ),
)
BOOTSTRAP = {
    "node": {"id": {"router"}, "cluster": {"inference-plane"}},
    "admin": {"address": {"pipe": {"path": {"run/admin.sock"}, "mode": {384}}}},
    "dynamic_resources": {"cds_config": FILE},
    "typed_dns_resolver_config": Extension(
        (
            "envoy.network.dns_resolver.cares",
            _V + "network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            {
                "dns_resolver_options": {"no_default_search_domain": {True}},
                "resolvers": [{"socket_address": {"address": str, "port_value": int}}],
            },
        )
    ),
    "layered_runtime": {
        "layers": [
            {
                "name": str,
                "static_layer": Each(Anything),
                "rtds_layer": {
                    "name": {"policy", "fixed"},
                    "rtds_config": {
                        "path_config_source": FILE["path_config_source"],
                        "resource_api_version": {"V3"},
                        "initial_fetch_timeout": duration,
                        "api_config_source": {
                            "api_type": {"REST"},
                            "transport_api_version": {"V3"},
                            "cluster_names": [{"policy"}],
                            "refresh_delay": duration,
                            "request_timeout": duration,
                        },
                    },
                },
            }
        ]
    },
    "overload_manager": {
        "refresh_interval": duration,
        "resource_monitors": [
            Extension(
                (
                    "envoy.resource_monitors.global_downstream_max_connections",
                    _V + "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    {"max_active_downstream_connections": int},
                ),
                (
                    "envoy.resource_monitors.fixed_heap",
                    _V + "resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    {"max_heap_size_bytes": int},
                ),
            )
        ],
        "actions": [{"name": str, "triggers": [{"name": str, "threshold": {"value": float}}]}],
    },
    "static_resources": {
        "clusters": [_CLUSTER],
        "listeners": [
            {
                "name": {"plane", "no-capacity", "status", "jwks-proxy"},
                "stat_prefix": {"plane"},
                "address": {
                    "socket_address": {"address": str, "port_value": int},
                    "pipe": {"path": {"run/jwks-proxy.sock"}, "mode": {384}},
                },
                "per_connection_buffer_limit_bytes": int,
                "bypass_overload_manager": {True},
                "filter_chains": [
                    {
                        "filters": [_NETWORK_FILTERS],
                        "transport_socket": _LISTENER_SOCKET,
                        "transport_socket_connect_timeout": duration,
                    }
                ],
            }
        ],
    },
}
_SECRET = {
    "name": {"ca", "certificate"},
    "tls_certificate": {
        "certificate_chain": {"filename": {"certificate/tls.crt"}},
        "private_key": {"filename": {"certificate/tls.key"}},
        "watched_directory": {"path": {"certificate"}},
    },
    "validation_context": {"trusted_ca": {"filename": {"ca/ca.crt"}}, "watched_directory": {"path": {"ca"}}},
}


def _answer(message: Message) -> Shape:
    """A file that stands for an answer of a server of configuration."""
    return {"version_info": str, "resources": [message]}


#: The shapes of what the files hold, by what reads them.
FILES: Mapping[str, Shape] = {
    "bootstrap": BOOTSTRAP,
    "clusters": _answer(Message(("envoy.config.cluster.v3.Cluster", _CLUSTER))),
    "routes": _answer(Message(("envoy.config.route.v3.RouteConfiguration", ROUTE_CONFIGURATION))),
    "runtime": _answer(Message(("envoy.service.runtime.v3.Runtime", {"name": {"fixed"}, "layer": Each(int)}))),
    "secret": _answer(Message((_V + "transport_sockets.tls.v3.Secret", _SECRET))),
}
