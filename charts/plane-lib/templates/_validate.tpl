{{/*
What a schema cannot say of the catalogue: rules between fields. Every chart of the plane includes
plane.validateCatalogue in a templates/validate.yaml. Helm renders deeper folders first and in one folder the last
name first, so what stands in templates/tests/ is rendered before it.
*/}}

{{/*
plane.validateCatalogue: takes the root ($). Fails once with every refusal of every rule; renders nothing otherwise.
*/}}
{{- define "plane.validateCatalogue" -}}
{{- $global := .Values.global -}}
{{- $models := include "plane.models" . | fromJson -}}
{{- $fleets := include "plane.fleets" $models | fromJson -}}
{{- $refusals := list -}}
{{- range $rule := list "Aws" "Identity" "Network" "Tls" "Accelerators" "Images" -}}
{{- $context := dict "root" $ "global" $global "models" $models "fleets" $fleets -}}
{{- $refusals = append $refusals (include (printf "plane.refuse%s" $rule) $context) -}}
{{- end -}}
{{- range $name, $model := $models -}}
{{- $context := dict "global" $global "models" $models "model" $model "entry" (get $global.models $name)
      "path" (printf "global.models.%s" $name) -}}
{{- range $rule := list "References" "Sources" "Key" "Names" "Engine" "Nodes" "Replicas" "Fallback" "Fit" -}}
{{- $refusals = append $refusals (include (printf "plane.refuse%s" $rule) $context) -}}
{{- end -}}
{{- with get (include "plane.fleets" (dict $name $model) | fromJson) (printf "%s-canary" $name) -}}
{{- $context = dict "global" $global "models" $models "stable" $model "model" . "path" .path -}}
{{- range $rule := list "Canary" "Sources" "Replicas" "Fit" -}}
{{- $refusals = append $refusals (include (printf "plane.refuse%s" $rule) $context) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "the catalogue" "refusals" $refusals) -}}
{{- end -}}

{{/*
plane.validateImages: refuses images that a chart names itself beside the models' own, where they have no digest and
one is required: (dict "root" $ "images" (list "envoy")).
*/}}
{{- define "plane.validateImages" -}}
{{- $refusal := include "plane.refuseDigests" (dict "global" .root.Values.global "images" .images) -}}
{{- include "plane.failOn" (dict "of" "the catalogue" "refusals" (list $refusal)) -}}
{{- end -}}

{{/*
Fails with all refusals in one message, where there is one: (dict "of" "the router" "refusals" $texts), the texts being
those of plane.refusal.
*/}}
{{- define "plane.failOn" -}}
{{- $of := .of -}}
{{- with join "" .refusals -}}
{{- fail (printf "values of %s do not fit together:\n%s" $of (trimSuffix "\n" .)) -}}
{{- end -}}
{{- end -}}

{{/* One refusal, a line: (list path what why remedy). */}}
{{- define "plane.refusal" -}}
{{- printf "- %s: %s. %s. Set %s.\n" (index . 0) (index . 1) (index . 2) (index . 3) -}}
{{- end -}}

{{/* The Region of the calls to S3 and Bedrock. */}}
{{- define "plane.refuseAws" -}}
{{- $callers := include "plane.callers" .models | fromJsonArray -}}
{{- if and $callers (not .global.aws.region) -}}
{{- include "plane.refusal" (list "global.aws.region"
      (printf "empty, while S3 or Amazon Bedrock is called for %s" (join ", " $callers))
      "Nothing guesses where they are called"
      "the Region, such as eu-central-1") -}}
{{- end -}}
{{- $region := .global.aws.region -}}
{{- $partition := hasPrefix "us-gov-" $region | ternary "aws-us-gov" "aws" -}}
{{- $partition = hasPrefix "cn-" $region | ternary "aws-cn" $partition -}}
{{- if and $region (ne $partition .global.aws.partition) -}}
{{- include "plane.refusal" (list "global.aws.partition"
      (printf "%s, while the Region %s is in %s" .global.aws.partition $region $partition)
      "Every ARN names its partition, and one of another partition grants nothing"
      (printf "partition: %s, or a Region of %s" $partition .global.aws.partition)) -}}
{{- end -}}
{{- end -}}

{{/* What roles, their names and their trust need: (dict "root" $ "global" $global "models" $models). */}}
{{- define "plane.refuseIdentity" -}}
{{- $global := .global -}}
{{- $identity := $global.identity -}}
{{- $callers := include "plane.callers" .models | fromJsonArray -}}
{{- if and (eq $identity.manage "ack") (eq $identity.mode "none") -}}
{{- include "plane.refusal" (list "global.identity.manage"
      "ack, while mode is none"
      "Without an identity of their own the pods have no roles to manage"
      "mode: podIdentity or irsa, or manage: external") -}}
{{- end -}}
{{- $rendered := include "plane.managesRoles" $global -}}
{{- if and $callers (or $rendered (eq $identity.mode "irsa")) -}}
{{- $needs := dict "aws.accountId" (list $global.aws.accountId
      "ARNs of roles name the account" "the account's 12 digits, in quotes") -}}
{{- if and $rendered (eq $identity.mode "podIdentity") -}}
{{- $_ := set $needs "aws.clusterName" (list $global.aws.clusterName
      "A role trusts one cluster, and an association names it" "the name of the EKS cluster") -}}
{{- end -}}
{{- if and $rendered (eq $identity.mode "irsa") -}}
{{- $_ := set $needs "identity.oidcProvider" (list $identity.oidcProvider
      "A role trusts the OIDC provider of one cluster" "its host and path, without https://") -}}
{{- end -}}
{{- range $path, $need := $needs -}}
{{- if not (index $need 0) -}}
{{- include "plane.refusal" (list (printf "global.%s" $path)
      (printf "empty, while identity is %s, managed by %s" $identity.mode $identity.manage)
      (index $need 1) (index $need 2)) -}}
{{- end -}}
{{- end -}}
{{- $seen := dict -}}
{{- range include "plane.roles" .root | fromJsonArray -}}
{{- $account := printf "%s/%s" .namespace .serviceAccount -}}
{{- if gt (len .name) 64 -}}
{{- include "plane.refusal" (list "global.identity.roleNamePrefix"
      (printf "the role %s of the ServiceAccount %s has %d characters" .name $account (len .name))
      "IAM takes 64 at most"
      "a shorter prefix, namespace or model name") -}}
{{- end -}}
{{- if hasKey $seen .name -}}
{{- include "plane.refusal" (list "global.identity.roleNamePrefix"
      (printf "the role %s would be that of the ServiceAccounts %s and %s" .name (get $seen .name) $account)
      "Each would get what the other may do"
      "another name or namespace for one of them") -}}
{{- end -}}
{{- $_ := set $seen .name $account -}}
{{- end -}}
{{- end -}}
{{- if $rendered -}}
{{- include "plane.refuseRouterPolicy" . -}}
{{- end -}}
{{- end -}}

{{/* IAM takes 10240 characters of a role's inline policies, blanks aside, and this JSON has none. */}}
{{- define "plane.refuseRouterPolicy" -}}
{{- range $prefix, $regions := .global.bedrock.profileRegions -}}
{{- if and (kindIs "slice" $regions) (not $regions) -}}
{{- include "plane.refusal" (list (printf "global.bedrock.profileRegions.%s" $prefix)
      "names no Region"
      "The router may call a profile's model in the Regions that the profile processes in, and nowhere else"
      (printf "the Regions of the profiles %s., or null where there are none" $prefix)) -}}
{{- end -}}
{{- end -}}
{{- $size := include "plane.routerPermissions" .root | len -}}
{{- if gt $size 10240 -}}
{{- include "plane.refusal" (list "global.models"
      (printf "the router's policy has %d characters" $size)
      "IAM takes 10240 at most for a role"
      "fewer different fallback models, foundation models before inference profiles, or two planes") -}}
{{- end -}}
{{- end -}}

{{/* A key that the role could not name, or S3 not use. */}}
{{- define "plane.refuseKey" -}}
{{- $aws := .global.aws -}}
{{- $parts := splitList ":" (.model.kmsKeyArn | default "") -}}
{{- if and (gt (len $parts) 1) (include "plane.fromS3" .model) -}}
{{- if or (ne (index $parts 1) $aws.partition) (ne (index $parts 3) $aws.region) -}}
{{- include "plane.refusal" (list (printf "%s.kmsKeyArn" .path)
      (printf "%s is not in %s of %s" .model.kmsKeyArn ($aws.region | default "the Region") $aws.partition)
      "S3 decrypts with keys of the bucket's own Region, and weights are read in global.aws.region"
      "the ARN of the bucket's key in that Region, or the Region of the bucket in global.aws") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a default-deny world must name. */}}
{{- define "plane.refuseNetwork" -}}
{{- $network := .global.network -}}
{{- $needs := dict -}}
{{- if eq .global.identity.mode "irsa" -}}
{{- with include "plane.callers" .models | fromJsonArray -}}
{{- $_ := set $needs "stsCidrs" (printf "%s has its credentials from STS" (first .)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $model := .models -}}
{{- if include "plane.fromS3" $model -}}
{{- $_ := set $needs "s3Cidrs" (printf "%s reads its weights from S3" $name) -}}
{{- end -}}
{{- if $model.fallback -}}
{{- $_ := set $needs "bedrockCidrs" (printf "%s falls back to Amazon Bedrock" $name) -}}
{{- end -}}
{{- end -}}
{{- with .global.tracing.endpoint -}}
{{- $_ := set $needs "otlpCidrs" (printf "global.tracing.endpoint is %s" .) -}}
{{- end -}}
{{- range $list, $need := $needs -}}
{{- if and $network.policies (not (get $network $list)) -}}
{{- include "plane.refusal" (list (printf "global.network.%s" $list)
      (printf "empty, while %s" $need)
      "The NetworkPolicies deny what nobody names"
      (printf "the CIDRs of the endpoint, or global.network.policies: false")) -}}
{{- end -}}
{{- end -}}
{{- range $list := list "albSubnetCidrs" "apiServerCidrs" "bedrockCidrs" "budgetStoreCidrs" "jwksCidrs" "otlpCidrs"
      "s3Cidrs" "stsCidrs" -}}
{{- include "plane.refuseWideCidrs" (list (printf "global.network.%s" $list) (get $network $list)
      "It would let prompts and weights go anywhere and leave the residency unprovable"
      "the CIDRs of the endpoint or the subnets alone") -}}
{{- end -}}
{{- end -}}

{{/*
CIDRs so wide that they stand for everywhere, IPv4 below /8 and IPv6 below /16: (list path cidrs why remedy). No private
network and no one owner's addresses are wider.
*/}}
{{- define "plane.refuseWideCidrs" -}}
{{- $at := . -}}
{{- range $cidr := index . 1 -}}
{{- if regexMatch "(^[0-9.]+/[0-7]$)|(:.*/([0-9]|1[0-5])$)" $cidr -}}
{{- include "plane.refusal" (list (index $at 0)
      (printf "%s is a large part of all addresses" $cidr)
      (index $at 2) (index $at 3)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Accelerator profiles. */}}
{{- define "plane.refuseAccelerators" -}}
{{- $global := .global -}}
{{- range $name, $hardware := $global.accelerators -}}
{{- $path := printf "global.accelerators.%s" $name -}}
{{- include "plane.refuseAbsent" (list $path $hardware "resource" "memoryGiB" "image" "cpu" "memory") -}}
{{- if $hardware -}}
{{- if and (eq "aws.amazon.com/neuron" ($hardware.resource | default "")) (not $hardware.coresPerDevice) -}}
{{- include "plane.refusal" (list (printf "%s.coresPerDevice" $path)
      (printf "absent, while the resource is %s" $hardware.resource)
      "Neuron counts cores, and pods may have to ask for whole devices"
      "the cores of one device, such as 2") -}}
{{- end -}}
{{- if and $hardware.image (not (kindIs "map" (get $global.images $hardware.image))) -}}
{{- include "plane.unknown" (list (printf "%s.image" $path) $hardware.image "global.images" $global.images) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fields that an entry of a table must have: (list path entry field ...). An entry that is null is not there. */}}
{{- define "plane.refuseAbsent" -}}
{{- $path := index . 0 -}}
{{- $entry := index . 1 -}}
{{- range $field := slice . 2 -}}
{{- if and (kindIs "map" $entry) (not (hasKey $entry $field)) -}}
{{- include "plane.refusal" (list (printf "%s.%s" $path $field)
      "absent"
      "No default has an entry of that name to take it from"
      "it") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A name that a table does not have: (list path name pathOfTable table). */}}
{{- define "plane.unknown" -}}
{{- $have := list -}}
{{- range $name, $value := index . 3 -}}
{{- if kindIs "map" $value -}}
{{- $have = append $have $name -}}
{{- end -}}
{{- end -}}
{{- include "plane.refusal" (list (index . 0)
      (printf "%s is not in %s" (index . 1) (index . 2))
      (printf "There are %s" (join ", " $have | default "none"))
      (printf "one that exists, or add %s to %s" (index . 1) (index . 2))) -}}
{{- end -}}

{{/* Tags that move, of all images; missing digests, of those that the catalogue needs. */}}
{{- define "plane.refuseImages" -}}
{{- $global := .global -}}
{{- range $name, $image := $global.images -}}
{{- include "plane.refuseAbsent" (list (printf "global.images.%s" $name) $image "repository" "tag") -}}
{{- if eq (dig "tag" "" ($image | default dict)) "latest" -}}
{{- include "plane.refusal" (list (printf "global.images.%s.tag" $name)
      "latest moves"
      "A restart could bring another image than the one that was tested"
      "the tag of a version") -}}
{{- end -}}
{{- end -}}
{{- /* Of a program in between no flag depends on the version; of an engine many do. */ -}}
{{- $engines := list -}}
{{- range .fleets -}}
{{- $engines = append $engines .image -}}
{{- end -}}
{{- range $name := uniq $engines | sortAlpha -}}
{{- include "plane.refuseAbsent" (list (printf "global.images.%s" $name) (get $global.images $name) "version") -}}
{{- end -}}
{{- $images := include "plane.modelImages" .fleets | fromJsonArray -}}
{{- include "plane.refuseDigests" (dict "global" $global "images" $images) -}}
{{- end -}}

{{/* Images without a digest where one is required: (dict "global" $global "images" (list ...)). */}}
{{- define "plane.refuseDigests" -}}
{{- $global := .global -}}
{{- range $name := .images -}}
{{- $image := get $global.images $name -}}
{{- if and $global.requireDigest $image (not $image.digest) -}}
{{- include "plane.refusal" (list (printf "global.images.%s.digest" $name)
      "null, while global.requireDigest is true"
      (printf "The registry may move the tag %s" $image.tag)
      "the digest (sha256:...) that the registry gives for it, or global.requireDigest: false") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The names of the images that resolved models need, as a JSON array. */}}
{{- define "plane.modelImages" -}}
{{- $images := list -}}
{{- range . -}}
{{- $images = append $images .image -}}
{{- if and (include "plane.onNeuron" .) (include "plane.fromS3" .) -}}
{{- $images = append $images "storage-initializer" -}}
{{- end -}}
{{- end -}}
{{- without $images "" | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* What an entry must have and what it names. */}}
{{- define "plane.refuseReferences" -}}
{{- $context := . -}}
{{- $model := .model -}}
{{- range $field := list "accelerator" "maxModelLen" -}}
{{- if not (get $model $field) -}}
{{- include "plane.refusal" (list (printf "%s.%s" $context.path $field)
      "absent"
      "Neither the entry nor its profile nor global.modelDefaults has one"
      "it in one of them") -}}
{{- end -}}
{{- end -}}
{{- $tables := dict "accelerator" "accelerators" "team" "teams" "image" "images" -}}
{{- range $field, $table := $tables -}}
{{- $name := get $model $field -}}
{{- $own := ne $name (get $model.hardware $field) -}}
{{- if and $name $own (not (kindIs "map" (get (get $context.global $table) $name))) -}}
{{- include "plane.unknown" (list (printf "%s.%s" $context.path $field)
      $name
      (printf "global.%s" $table)
      (get $context.global $table)) -}}
{{- end -}}
{{- end -}}
{{- range $team := dig "access" "teams" list $model -}}
{{- if not (kindIs "map" (get $context.global.teams $team)) -}}
{{- include "plane.unknown" (list (printf "%s.access.teams" $context.path) $team "global.teams" $context.global.teams) -}}
{{- end -}}
{{- end -}}
{{- $profiles := $context.global.modelDefaults.profiles -}}
{{- with $context.entry.profile -}}
{{- if not (kindIs "map" (get $profiles .)) -}}
{{- include "plane.unknown" (list (printf "%s.profile" $context.path) . "global.modelDefaults.profiles" $profiles) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where weights and compiled artifacts come from. */}}
{{- define "plane.refuseSources" -}}
{{- include "plane.refuseSource" (list (printf "%s.source" .path) .model.source) -}}
{{- with .model.compiled -}}
{{- include "plane.refuseSource" (list (printf "%s.compiled.source" $.path) .source) -}}
{{- end -}}
{{- end -}}

{{/* One source: (list path source). */}}
{{- define "plane.refuseSource" -}}
{{- $source := index . 1 -}}
{{- $segments := splitList "/" (regexReplaceAll "^(s3://[^/]*|file://)" $source "" | trimAll "/") -}}
{{- $path := index . 0 -}}
{{- if has "latest" $segments -}}
{{- include "plane.refusal" (list $path
      (printf "%s passes through latest" $source)
      "What a moving name holds changes without a rollout, and no audit can tell which weights answered"
      "a path with a version at its end, such as s3://models/clinical-summary/v7/") -}}
{{- else if not (regexMatch "^v?[0-9][0-9A-Za-z._-]*$" (last $segments)) -}}
{{- include "plane.refusal" (list $path
      (printf "%s does not end in an immutable version" $source)
      "What a moving name holds changes without a rollout, and no audit can tell which weights answered"
      "a path with a version at its end, such as s3://models/clinical-summary/v7/") -}}
{{- else if not (regexMatch "^(s3://[a-z0-9][a-z0-9.-]+|file://)(/[A-Za-z0-9._=-]+){2,}/$" $source) -}}
{{- include "plane.refusal" (list $path
      (printf "%s is not a bucket, a prefix and a version of plain characters" $source)
      "A role may read exactly one prefix, so the source must name one, without wildcards"
      "s3://BUCKET/PREFIX/VERSION/ of letters, digits, '.', '_', '=' and '-', or file:///FOLDER/VERSION/") -}}
{{- end -}}
{{- end -}}

{{/* Names that clients send: one model a name. */}}
{{- define "plane.refuseNames" -}}
{{- $context := . -}}
{{- $self := .model.name -}}
{{- if has $self (list "router" "router-policy" "router-ratelimit" "router-valkey") -}}
{{- include "plane.refusal" (list .path
      (printf "%s is the router's own name" $self)
      "The engine's Service and the router's would be one object"
      (printf "another name for the model; clients may keep this one by servedNames: [%s]" $self)) -}}
{{- end -}}
{{- range $name := .entry.servedNames -}}
{{- range $other, $model := $context.models -}}
{{- /* Of two entries with the same further name the later one is told; a key belongs to its entry. */ -}}
{{- if or (eq $name $other) (and (lt $other $self) (has $name $model.servedNames)) -}}
{{- $by := eq $other $self | ternary "this entry" (printf "global.models.%s" $other) -}}
{{- include "plane.refusal" (list (printf "%s.servedNames" $context.path)
      (printf "%s is served by %s already" $name $by)
      "A request names exactly one model"
      "a name that no other entry has") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What only one of the engines takes, and names that KServe gives. */}}
{{- define "plane.refuseEngine" -}}
{{- $context := . -}}
{{- $mode := .entry.deploymentMode -}}
{{- if and $mode (ne .model.engine "kserve") -}}
{{- include "plane.refusal" (list (printf "%s.deploymentMode" .path)
      (printf "%s, while engine is %s" $mode .model.engine)
      "It is a mode of KServe, and no InferenceService is rendered"
      "engine: kserve, or take deploymentMode out") -}}
{{- else if eq ($mode | default "Standard") "Knative" -}}
{{- include "plane.refusal" (list (printf "%s.deploymentMode" .path)
      "Knative, which this release does not run"
      (print "Knative keeps an old revision's pods as long as requests reach them, and the router sends to every ready "
             "pod, so that no rollout would end; it takes no preStop hook and no grace period either")
      "deploymentMode: Standard, with replicas.min: 0 to scale to zero") -}}
{{- end -}}
{{- if eq .model.engine "kserve" -}}
{{- range $fleet, $model := include "plane.fleets" (dict .model.name .model) | fromJson -}}
{{- $taken := include "plane.engineDeployment" $model -}}
{{- with get (include "plane.fleets" $context.models | fromJson) $taken -}}
{{- if eq .namespace $model.namespace -}}
{{- include "plane.refusal" (list $context.path
      (printf "%s is what KServe calls the Deployment and the Service of %s" $taken $fleet)
      "Two objects of one name would overwrite each other"
      "another name, or another namespace") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A replica is one pod, and a pod is on one node. */}}
{{- define "plane.refuseNodes" -}}
{{- if not (include "plane.fitsOneNode" .model) -}}
{{- $largest := get (include "plane.largestNode" . | fromJson) .model.hardware.resource | int -}}
{{- $perDevice := .model.hardware.coresPerDevice | default 1 -}}
{{- $cores := mul $largest (eq .model.hardware.resource "aws.amazon.com/neuron" | ternary $perDevice 1) -}}
{{- include "plane.refusal" (list (printf "%s.tensorParallelSize" .path)
      (printf "%d needs %d of %s, and the largest node has %d"
        (int .model.tensorParallelSize) (int .model.devices) .model.hardware.resource $largest)
      (eq .model.engine "kserve" | ternary
        "KServe's multi-node takes weights from pvc:// or oci://, never from s3://"
        "A replica is one pod, and a pod is on one node")
      (printf "tensorParallelSize: %d or less, or an accelerator with more memory" $cores)) -}}
{{- end -}}
{{- end -}}

{{/*
A canary beside its model: (dict "global" $global "models" $models "stable" $model "model" $fleet "path" $path).
*/}}
{{- define "plane.refuseCanary" -}}
{{- $fleet := .model.fleet -}}
{{- if eq .model.source .stable.source -}}
{{- include "plane.refusal" (list (printf "%s.source" .path)
      (printf "%s is the entry's own" .model.source)
      "Both fleets would serve the same weights under one version, and nothing would be tried"
      "the prefix of another version, or canary: null") -}}
{{- end -}}
{{- if gt (len $fleet) 40 -}}
{{- include "plane.refusal" (list .path
      (printf "the fleet's name %s has %d characters" $fleet (len $fleet))
      "A fleet's objects take its name, which has at most 40 as a model's has"
      "the canary for a model whose name has at most 33 characters") -}}
{{- end -}}
{{- if hasKey .models $fleet -}}
{{- include "plane.refusal" (list .path
      (printf "%s is a model of its own" $fleet)
      "The canary's Service and that model's would be one object"
      (printf "another name for global.models.%s" $fleet)) -}}
{{- end -}}
{{- with .model.image -}}
{{- if not (kindIs "map" (get $.global.images .)) -}}
{{- include "plane.unknown" (list (printf "%s.image" $.path) . "global.images" $.global.images) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "plane.refuseReplicas" -}}
{{- $min := int .model.replicas.min -}}
{{- $max := int .model.replicas.max -}}
{{- if gt $min $max -}}
{{- include "plane.refusal" (list (printf "%s.replicas" .path)
      (printf "min %d is above max %d" $min $max)
      "No number of replicas is both"
      (printf "max: %d or more, or min: %d or less" $min $max)) -}}
{{- end -}}
{{- end -}}

{{/* Whether the fallback stays inside the residency. A prompt travels no farther than its residency. */}}
{{- define "plane.refuseFallback" -}}
{{- $path := .path -}}
{{- $residency := .model.residency -}}
{{- $geography := .global.residency.geography -}}
{{- if not .model.fallback -}}
{{- with .entry.firstTokenBudget -}}
{{- include "plane.refusal" (list (printf "%s.firstTokenBudget" $path)
      (printf "%s without a fallback" .)
      "A stream that misses its budget needs somewhere else to go"
      "a fallback, or take firstTokenBudget out") -}}
{{- end -}}
{{- else -}}
{{- $id := .model.fallback.model -}}
{{- $reach := .model.reach -}}
{{- if eq $reach "hidden" -}}
{{- include "plane.refusal" (list (printf "%s.fallback.model" $path)
      (printf "%s hides where it processes" $id)
      "An ARN, an application inference profile, a prompt router or an unlisted prefix does not show its destinations"
      "a foundation-model id such as openai.gpt-oss-120b-1:0, or add a new provider to global.bedrock.providers") -}}
{{- else if gt (include "plane.residencyRank" $reach | int) (include "plane.residencyRank" $residency | int) -}}
{{- $where := eq $reach "anywhere" | ternary $reach (printf "the %s" $reach) -}}
{{- $why := "A prompt travels no farther than its residency" -}}
{{- $remedies := list -}}
{{- $prefix := splitList "." $id | first -}}
{{- if ne $residency "cluster" -}}
{{- $remedies = append $remedies "a bare foundation-model id" -}}
{{- end -}}
{{- if and (eq $reach "anywhere") (ne $prefix "global") -}}
{{- $why = printf "%s, and %s. stays in its geography only where global.residency.geography is %s (it is %s)"
      $why $prefix $prefix ($geography | default "empty") -}}
{{- if and (eq $residency "geography") (not $geography) -}}
{{- $remedies = append $remedies (printf "global.residency.geography: %s" $prefix) -}}
{{- end -}}
{{- end -}}
{{- $remedies = append $remedies (printf "residency: %s" $reach) -}}
{{- if eq $residency "cluster" -}}
{{- $remedies = append $remedies "fallback: null" -}}
{{- end -}}
{{- include "plane.refusal" (list (printf "%s.fallback.model" $path)
      (printf "%s reaches %s, beyond the residency %s" $id $where $residency)
      $why
      (join ", or " $remedies)) -}}
{{- end -}}
{{- if and (eq .model.fallback.retention "provider_data_share") (ne $residency "anywhere") -}}
{{- include "plane.refusal" (list (printf "%s.fallback.retention" $path)
      (printf "provider_data_share hands prompts to the model's provider, beyond the residency %s" $residency)
      "Where the provider keeps them is not known"
      "the account's mode to none and retention: none, or residency: anywhere") -}}
{{- end -}}
{{- if not (has "chat" .model.api) -}}
{{- include "plane.refusal" (list (printf "%s.api" $path)
      (printf "%s with a fallback" (join ", " .model.api))
      "Only chat completions fall back"
      "chat in api, or fallback: null") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The capacity check, where all it counts is known. */}}
{{- define "plane.refuseFit" -}}
{{- if and .model.hardware.memoryGiB .model.maxModelLen -}}
{{- with include "plane.fitRefusal" .model -}}
{{- printf "- %s: %s\n" $.path . -}}
{{- end -}}
{{- end -}}
{{- end -}}
