{{/*
What vLLM is started with, wherever it runs: command line, environment, labels, and what an entry may not set of them.
*/}}

{{/*
Since which vLLM release a flag works, for the flags that the plane sets and that not every release has. Read from the
argument parsers of the released packages: 0.28.0 has no max-num-queued-reqs and 0.29.0 does; 0.17.1 has no
shutdown-timeout and 0.18.0 does; 0.15.1 has no disable-access-log-for-endpoints and 0.16.0 does. All know
otlp-traces-endpoint, and refuse it without packages that 0.17.1 demands and 0.16.0 does not. 0.10.2 has all others.
*/}}
{{- define "plane.flagsSince" -}}
max-num-queued-reqs: 0.29.0
shutdown-timeout: 0.18.0
disable-access-log-for-endpoints: 0.16.0
otlp-traces-endpoint: 0.17.1
{{- end -}}

{{/* What an image without a flag of plane.flagsSince loses. */}}
{{- define "plane.flagsLost" -}}
max-num-queued-reqs: its queue has no bound, so a full engine answers late instead of sending requests elsewhere
shutdown-timeout: it aborts on SIGTERM, so its preStop hook waits out the whole drain instead
disable-access-log-for-endpoints: its access log has a line for each probe and scrape
otlp-traces-endpoint: traces end at the router
{{- end -}}

{{/* The oldest vLLM release whose flags are known here. */}}
{{- define "plane.oldestEngine" -}}0.10.2{{- end -}}

{{/* The vLLM version of a model's image as major.minor.patch: (dict "root" $ "model" $model). */}}
{{- define "plane.engineVersion" -}}
{{ (get .root.Values.global.images .model.image).version | regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+" }}
{{- end -}}

{{/* "true" where the image of a model has a flag, else nothing: (dict "root" $ "model" $model "flag" "uds"). */}}
{{- define "plane.hasFlag" -}}
{{- $since := get (include "plane.flagsSince" . | fromYaml) .flag | default (include "plane.oldestEngine" .) -}}
{{- if semverCompare (printf ">=%s" $since) (include "plane.engineVersion" .) -}}true{{- end -}}
{{- end -}}

{{/* "true" where an engine sends spans of its requests: (dict "root" $ "model" $model). */}}
{{- define "plane.engineTraces" -}}
{{- if .root.Values.global.tracing.endpoint -}}
{{- include "plane.hasFlag" (dict "root" .root "model" .model "flag" "otlp-traces-endpoint") -}}
{{- end -}}
{{- end -}}

{{/* Where spans go, as OpenTelemetry's exporters want it: takes the root. */}}
{{- define "plane.tracesUrl" -}}
{{- with .Values.global.tracing -}}
{{ .tls | ternary "https" "http" }}://{{ .endpoint }}{{ eq .protocol "http" | ternary "/v1/traces" "" }}
{{- end -}}
{{- end -}}

{{/* Where an engine finds its weights: in S3 by the streamer, or in a folder of an init container or the image. */}}
{{- define "plane.modelPath" -}}
{{- if hasPrefix "file://" .source -}}
{{ .source | trimPrefix "file://" | trimSuffix "/" }}
{{- else if include "plane.onNeuron" . -}}
/mnt/models/weights
{{- else -}}
{{ .source }}
{{- end -}}
{{- end -}}

{{/*
The arguments of `vllm` for a model, as list items: (dict "root" $ "model" $model "shutdownTimeoutSeconds" 60).
The model is positional, because `vllm serve --model` is an error up to 0.10 and deprecated after.
*/}}
{{- define "plane.engineArgs" -}}
{{- $model := .model -}}
{{- $flag := dict "root" .root "model" $model -}}
- serve
- {{ include "plane.modelPath" $model }}
- --served-model-name
{{- range $model.servedNames }}
- {{ . | quote }}
{{- end }}
- --host=0.0.0.0
- --port={{ include "plane.enginePort" . }}
{{- if include "plane.tls" .root }}
- --ssl-certfile=/etc/inference-plane/tls/tls.crt
- --ssl-keyfile=/etc/inference-plane/tls/tls.key
- --enable-ssl-refresh
{{- end }}
- --tensor-parallel-size={{ $model.tensorParallelSize | int }}
- --max-model-len={{ $model.maxModelLen | int }}
- --max-num-seqs={{ $model.maxNumSeqs | int }}
{{- if eq $model.hardware.resource "nvidia.com/gpu" }}
- --gpu-memory-utilization={{ $model.gpuMemoryUtilization }}
{{- end }}
{{- if hasPrefix "s3://" (include "plane.modelPath" $model) }}
- --load-format=runai_streamer
- {{ printf "--model-loader-extra-config=%s" (include "plane.streamerConfig" .) | squote }}
{{- end }}
{{- if include "plane.hasFlag" (set $flag "flag" "max-num-queued-reqs") }}
# It counts running and waiting requests together.
- --max-num-queued-reqs={{ add $model.maxNumSeqs $model.maxQueuedRequests }}
{{- end }}
{{- if include "plane.hasFlag" (set $flag "flag" "shutdown-timeout") }}
- --shutdown-timeout={{ .shutdownTimeoutSeconds | int }}
{{- end }}
- --middleware=plane_middleware.PlaneMiddleware
- --enable-force-include-usage
- --enable-prompt-tokens-details
- --enable-request-id-headers
- --disable-fastapi-docs
{{- if include "plane.hasFlag" (set $flag "flag" "disable-access-log-for-endpoints") }}
- --disable-access-log-for-endpoints=/health,/metrics
{{- end }}
{{- if include "plane.engineTraces" . }}
- --otlp-traces-endpoint={{ include "plane.tracesUrl" .root }}
{{- end }}
{{- range $name, $value := $model.args }}
{{- if kindIs "bool" $value }}
- {{ ternary (printf "--%s" $name) (printf "--no-%s" $name) $value }}
{{- else }}
- {{ printf "--%s=%s" $name (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
How the streamer reads from S3. One client for 4 GB of weights, as the EKS guide for fast model loading has it. Half of
an accelerator's share of the memory for the buffer of its worker: the streamer's own default knows of no limit and
would have the pod killed. Ranks share the download (`distributed`) where there is more than one; not under
enforce-eager, with which the guide calls it incompatible.
*/}}
{{- define "plane.streamerConfig" -}}
{{- $config := dict "concurrency" (divf (mulf .model.weightsGiB 1.073741824) 4 | ceil | int) -}}
{{- $_ := set $config "memory_limit" (div (include "plane.bytes" .model.hardware.memory | int64) 2) -}}
{{- $eager := get (.model.args | default dict) "enforce-eager" -}}
{{- $knows := semverCompare ">=0.16.0" (include "plane.engineVersion" .) -}}
{{- if and $knows (gt (int .model.tensorParallelSize) 1) (not $eager) -}}
{{- $_ := set $config "distributed" true -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/*
The environment of an engine as JSON, name -> value: (dict "root" $ "model" $model). None of it can be changed by the
entry's `env`. /cache and /tmp are emptyDirs, /opt/plane holds the middleware (under KServe the command says so), which
writes PLANE_* into its lines.
*/}}
{{- define "plane.engineEnv" -}}
{{- $model := .model -}}
{{- $env := dict
      "VLLM_NO_USAGE_STATS" "1"
      "DO_NOT_TRACK" "1"
      "HF_HUB_OFFLINE" "1"
      "TRANSFORMERS_OFFLINE" "1"
      "HOME" "/cache"
      "USER" "vllm"
      "LOGNAME" "vllm"
      "TMPDIR" "/tmp"
      "HF_HOME" "/cache/huggingface"
      "XDG_CACHE_HOME" "/cache"
      "XDG_CONFIG_HOME" "/cache/config"
      "VLLM_CACHE_ROOT" "/cache/vllm"
      "VLLM_CONFIG_ROOT" "/cache/config/vllm"
      "TORCHINDUCTOR_CACHE_DIR" "/cache/inductor"
      "TRITON_CACHE_DIR" "/cache/triton"
      "PLANE_MODEL" $model.name
      "PLANE_MODEL_VERSION" $model.version -}}
{{- if ne $model.engine "kserve" -}}
{{- $_ := set $env "PYTHONPATH" "/opt/plane" -}}
{{- end -}}
{{- if hasPrefix "s3://" (include "plane.modelPath" $model) -}}
{{- $_ := merge $env (include "plane.awsEnv" .root | fromJson) (dict
      "RUNAI_STREAMER_CHUNK_BYTESIZE" "4294967296"
      "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS" "3000"
      "RUNAI_STREAMER_S3_LOW_SPEED_LIMIT" "1048576") -}}
{{- end -}}
{{- if include "plane.engineTraces" . -}}
{{- $protocol := eq .root.Values.global.tracing.protocol "http" | ternary "http/protobuf" "grpc" -}}
{{- $_ := set $env "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" $protocol -}}
{{- $_ := set $env "OTEL_SERVICE_NAME" $model.fleet -}}
{{- end -}}
{{- if include "plane.onNeuron" $model -}}
{{- if semverCompare "<0.21.0" (include "plane.engineVersion" .) -}}
{{- /* NxD Inference, the engine of the images before 0.21, loads a compiled model from here. */ -}}
{{- $_ := set $env "NEURON_COMPILED_ARTIFACTS" "/mnt/models/compiled" -}}
{{- else -}}
{{- /* vLLM Neuron looks its compiled graphs up in, and adds missing ones to, $VLLM_CACHE_ROOT/neuron. */ -}}
{{- $_ := set $env "VLLM_CACHE_ROOT" "/mnt/models/compiled" -}}
{{- end -}}
{{- else if eq $model.hardware.resource "" -}}
{{- /* gpuMemoryUtilization would be a share of the node's memory here, not of the pod's. In whole GiB. */ -}}
{{- $fit := include "plane.fit" $model | fromJson -}}
{{- $_ := set $env "VLLM_CPU_KVCACHE_SPACE" ($fit.kvGiB | ceil | int | max 1 | toString) -}}
{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{/* What AWS SDKs want, as JSON: credentials' source, and the Region, which EKS Pod Identity does not bring. */}}
{{- define "plane.awsEnv" -}}
{{- $region := dict "AWS_REGION" .Values.global.aws.region "AWS_DEFAULT_REGION" .Values.global.aws.region -}}
{{ include "plane.credentialsEnv" . | fromJson | merge $region | toJson }}
{{- end -}}

{{/*
Flags that an entry's `args` may not have, with the reason. Each stands for itself, its `no-` form, its dotted fields
and every abbreviation that the parser would take for it.
*/}}
{{- define "plane.ownedFlags" -}}
the chart sets it from the entry:
  - model
  - served-model-name
  - tensor-parallel-size
  - max-model-len
  - max-num-seqs
  - max-num-queued-reqs
  - gpu-memory-utilization
  - load-format
  - model-loader-extra-config
  - download-dir
the plane relies on what the chart sets:
  - host
  - port
  - middleware
  - shutdown-timeout
  - enable-force-include-usage
  - enable-prompt-tokens-details
  - enable-request-id-headers
  - disable-access-log-for-endpoints
  - disable-log-stats
  - otlp-traces-endpoint
  - disable-fastapi-docs
  - config
  - headless
  - root-path
  - disable-frontend-multiprocessing
it would open a way to the engine that the router and the policies do not know:
  - api-key
  - uds
  - grpc
  - grpc-port
  - ssl-keyfile
  - ssl-certfile
  - ssl-ca-certs
  - ssl-cert-reqs
  - ssl-ciphers
  - enable-ssl-refresh
  - allowed-local-media-path
  - hf-token
it would write prompts or answers to the log:
  - enable-log-outputs
  - enable-log-requests
  - enable-log-deltas
  - max-log-len
a pod has the accelerators that tensorParallelSize counts and no more:
  - tp
  - pp
  - pcp
  - dp
  - dpl
  - dpn
  - dpr
  - dpa
  - dpb
  - dph
  - dpe
  - pipeline-parallel-size
  - prefill-context-parallel-size
  - data-parallel-size
  - data-parallel-size-local
  - data-parallel-rank
  - data-parallel-start-rank
  - data-parallel-address
  - data-parallel-backend
  - data-parallel-hybrid-lb
  - data-parallel-external-lb
  - data-parallel-multi-port-external-lb
  - nnodes
  - node-rank
  - master-addr
  - master-port
{{- end -}}

{{/* Why an entry may not set a flag, or nothing: takes the flag in any spelling. */}}
{{- define "plane.ownedFlag" -}}
{{- $flag := lower . | replace "_" "-" | trimPrefix "no-" | splitList "." | first -}}
{{- $why := "" -}}
{{- range $reason, $flags := include "plane.ownedFlags" . | fromYaml -}}
{{- range $owned := $flags -}}
{{- /* A beginning of a flag is an abbreviation, which argparse completes. */ -}}
{{- if and (not $why) (hasPrefix $flag $owned) -}}
{{- $why = $reason -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $why -}}
{{- end -}}

{{/* Environment that an entry's `env` may not have beside plane.engineEnv; an item that ends in * is a prefix. */}}
{{- define "plane.ownedEnv" -}}
the chart sets it:
  - PYTHONPATH
KServe reads it:
  - PROTOCOL
  - MULTI_MODEL_SERVER
  - INFERENCE_SERVICE_NAME
it would open the engine or take its weights from elsewhere:
  - AWS_*
  - STORAGE_URI
  - RUNAI_STREAMER_S3_ENDPOINT
  - HF_TOKEN
  - HF_ENDPOINT
  - HTTP_PROXY
  - HTTPS_PROXY
  - ALL_PROXY
  - LD_PRELOAD
  - NVIDIA_VISIBLE_DEVICES
  - VLLM_API_KEY
  - VLLM_SERVER_DEV_MODE
  - VLLM_ALLOW_RUNTIME_LORA_UPDATING
  - VLLM_USE_MODELSCOPE
  - VLLM_HOST_IP
  - VLLM_PORT
it would keep prompts and answers in one engine's memory, where no other request finds them:
  - VLLM_ENABLE_RESPONSES_API_STORE
it would send usage statistics:
  - VLLM_DO_NOT_TRACK
  - VLLM_USAGE_*
it would write prompts or answers to the log:
  - VLLM_DEBUG_LOG_API_SERVER_RESPONSE
the middleware does not run in it:
  - VLLM_USE_RUST_FRONTEND
{{- end -}}

{{/* Why an entry may not set a variable, or nothing: (dict "root" $ "model" $model "variable" "HOME"). */}}
{{- define "plane.ownedVariable" -}}
{{- $variable := .variable -}}
{{- $why := "" -}}
{{- if hasKey (include "plane.engineEnv" . | fromJson) $variable -}}
{{- $why = "the chart sets it" -}}
{{- end -}}
{{- range $reason, $owned := include "plane.ownedEnv" . | fromYaml -}}
{{- range $owned -}}
{{- if and (not $why) (or (eq . $variable) (and (hasSuffix "*" .) (hasPrefix (trimSuffix "*" .) $variable))) -}}
{{- $why = $reason -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $why -}}
{{- end -}}

{{/*
Labels that say what a model's objects are, for people, bills and dashboards; no selector uses them. The version is
shortened to what a label's value may hold; the source itself is in the arguments.
*/}}
{{- define "plane.modelLabels" -}}
inference-plane/model: {{ .name }}
inference-plane/version: {{ regexReplaceAll "[^A-Za-z0-9._-]" .version "-" | trunc 63 | trimAll "-._" | quote }}
inference-plane/residency: {{ .residency }}
inference-plane/traffic: {{ .traffic }}
{{- with .team }}
inference-plane/team: {{ . | quote }}
{{- end }}
{{- with .costCenter }}
inference-plane/cost-center: {{ . | quote }}
{{- end }}
{{- end -}}
