{{/*
IAM roles: one for each ServiceAccount that calls AWS, with a policy that follows from the catalogue. What is written
here is rendered as ACK objects where global.identity.manage is ack, and printed by scripts/iam for any other tool.
*/}}

{{/* Where EKS puts a pod's token: the folders that its own webhooks use, so that they find theirs already done. */}}
{{- define "plane.podIdentityFolder" -}}/var/run/secrets/pods.eks.amazonaws.com/serviceaccount{{- end -}}
{{- define "plane.webIdentityFolder" -}}/var/run/secrets/eks.amazonaws.com/serviceaccount{{- end -}}

{{/* "true" where these charts render roles and associations as ACK objects. */}}
{{- define "plane.managesRoles" -}}
{{- if and (eq .identity.manage "ack") (ne .identity.mode "none") -}}true{{- end -}}
{{- end -}}

{{/*
plane.role: the role of a ServiceAccount, as JSON: (dict "global" $global "namespace" "inference" "serviceAccount" "x").
A name alone would fit several accounts of a cluster, so the namespace stands in it.
*/}}
{{- define "plane.role" -}}
{{- $aws := .global.aws -}}
{{- $name := printf "%s%s-%s" .global.identity.roleNamePrefix .namespace .serviceAccount -}}
{{- $arn := printf "arn:%s:iam::%s:role/%s" $aws.partition $aws.accountId $name -}}
{{- dict "name" $name "arn" $arn "namespace" .namespace "serviceAccount" .serviceAccount | toJson -}}
{{- end -}}

{{/* plane.roles: the catalogue's roles, a JSON list: of engines that read from S3, of a router that falls back. */}}
{{- define "plane.roles" -}}
{{- $global := .Values.global -}}
{{- $roles := list -}}
{{- $models := include "plane.models" . | fromJson -}}
{{- range $name, $fleet := include "plane.fleets" $models | fromJson -}}
{{- if include "plane.fromS3" $fleet -}}
{{- $of := dict "global" $global "namespace" $fleet.namespace "serviceAccount" $name -}}
{{- $roles = append $roles (include "plane.role" $of | fromJson) -}}
{{- end -}}
{{- end -}}
{{- if include "plane.fallsBack" $models -}}
{{- $of := dict "global" $global "namespace" (include "plane.routerNamespace" .) "serviceAccount" "router" -}}
{{- $roles = append $roles (include "plane.role" $of | fromJson) -}}
{{- end -}}
{{- toJson $roles -}}
{{- end -}}

{{/* "true" where one of the models has a fallback, so that the router calls Amazon Bedrock: takes resolved models. */}}
{{- define "plane.fallsBack" -}}
{{- $bedrock := list -}}
{{- range . -}}
{{- $bedrock = append $bedrock (.reach | default "") -}}
{{- end -}}
{{- if compact $bedrock -}}true{{- end -}}
{{- end -}}

{{/* The names of the models for which AWS is called, S3 or Amazon Bedrock, as a JSON list: takes resolved models. */}}
{{- define "plane.callers" -}}
{{- $callers := list -}}
{{- range $name, $model := . -}}
{{- if or $model.fallback (include "plane.fromS3" $model) -}}
{{- $callers = append $callers $name -}}
{{- end -}}
{{- end -}}
{{- toJson $callers -}}
{{- end -}}

{{/* A policy document of statements, as JSON: (dict "statements" $list). */}}
{{- define "plane.policy" -}}
{{- dict "Version" "2012-10-17" "Statement" .statements | toJson -}}
{{- end -}}

{{/*
plane.trustPolicy: who may assume a role, one ServiceAccount of one cluster, as JSON:
(dict "global" $global "role" $role). EKS Pod Identity tags its sessions with namespace, account and cluster, and an
association can leave those tags out but not change them:
https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html
*/}}
{{- define "plane.trustPolicy" -}}
{{- $aws := .global.aws -}}
{{- $statement := dict "Sid" "OneServiceAccount" "Effect" "Allow" -}}
{{- if eq .global.identity.mode "irsa" -}}
{{- $host := .global.identity.oidcProvider -}}
{{- $provider := printf "arn:%s:iam::%s:oidc-provider/%s" $aws.partition $aws.accountId $host -}}
{{- $_ := set $statement "Principal" (dict "Federated" $provider) -}}
{{- $_ := set $statement "Action" (list "sts:AssumeRoleWithWebIdentity") -}}
{{- $_ := set $statement "Condition" (dict "StringEquals" (dict
      (printf "%s:sub" $host) (printf "system:serviceaccount:%s:%s" .role.namespace .role.serviceAccount)
      (printf "%s:aud" $host) "sts.amazonaws.com")) -}}
{{- else -}}
{{- $cluster := printf "arn:%s:eks:%s:%s:cluster/%s" $aws.partition $aws.region $aws.accountId $aws.clusterName -}}
{{- $_ := set $statement "Principal" (dict "Service" "pods.eks.amazonaws.com") -}}
{{- $_ := set $statement "Action" (list "sts:AssumeRole" "sts:TagSession") -}}
{{- $_ := set $statement "Condition" (dict "StringEquals" (dict
      "aws:SourceAccount" $aws.accountId
      "aws:RequestTag/eks-cluster-arn" $cluster
      "aws:RequestTag/kubernetes-namespace" .role.namespace
      "aws:RequestTag/kubernetes-service-account" .role.serviceAccount)) -}}
{{- end -}}
{{- include "plane.policy" (dict "statements" (list $statement)) -}}
{{- end -}}

{{/*
plane.enginePermissions: what an engine may do, as JSON: (dict "global" $global "model" $model). It reads what lies
under its version prefix (and that of its compiled artifact), lists nothing else, and decrypts with the one key by way
of S3 alone. Both readers list the prefix with the slash at its end, the Run:ai streamer
(runai_model_streamer_s3/files/files.py) and KServe's storage initializer (bucket.objects.filter(Prefix=...)).
*/}}
{{- define "plane.enginePermissions" -}}
{{- $global := .global -}}
{{- $sources := dict "Weights" .model.source -}}
{{- with .model.compiled -}}
{{- $_ := set $sources "Compiled" .source -}}
{{- end -}}
{{- $statements := list -}}
{{- range $what, $source := $sources -}}
{{- $path := trimPrefix "s3://" $source -}}
{{- $bucket := splitList "/" $path | first -}}
{{- $prefix := trimPrefix (printf "%s/" $bucket) $path -}}
{{- $arn := printf "arn:%s:s3:::%s" $global.aws.partition $bucket -}}
{{- $read := dict "Sid" (printf "Read%s" $what) "Effect" "Allow"
      "Action" (list "s3:GetObject") "Resource" (list (printf "%s/%s*" $arn $prefix)) -}}
{{- $list := dict "Sid" (printf "List%s" $what) "Effect" "Allow"
      "Action" (list "s3:ListBucket") "Resource" (list $arn)
      "Condition" (dict "StringLike" (dict "s3:prefix" (list (printf "%s*" $prefix)))) -}}
{{- with $global.network.s3EndpointIds -}}
{{- $by := dict "Condition" (dict "StringEquals" (dict "aws:SourceVpce" .)) -}}
{{- $read = merge $read $by -}}
{{- $list = merge $list $by -}}
{{- end -}}
{{- $statements = concat $statements (list $read $list) -}}
{{- end -}}
{{- with .model.kmsKeyArn -}}
{{- $suffix := eq $global.aws.partition "aws-cn" | ternary "amazonaws.com.cn" "amazonaws.com" -}}
{{- $s3 := printf "s3.%s.%s" $global.aws.region $suffix -}}
{{- $statements = append $statements (dict "Sid" "Decrypt" "Effect" "Allow"
      "Action" (list "kms:Decrypt") "Resource" (list .)
      "Condition" (dict "StringEquals" (dict "kms:ViaService" $s3))) -}}
{{- end -}}
{{- include "plane.policy" (dict "statements" $statements) -}}
{{- end -}}

{{/*
plane.routerPermissions: what the router may do, as JSON: takes the root. It invokes the fallback models of the
catalogue and no other: a bare id in the own Region; an inference profile in the own Region, and its foundation model in
the Regions that the profile processes in, by way of that profile alone.
https://docs.aws.amazon.com/bedrock/latest/userguide/geographic-cross-region-inference.html
https://docs.aws.amazon.com/bedrock/latest/userguide/global-cross-region-inference.html
The OpenAI-compatible API authorises its caller on the account's default project too, which names no model:
https://docs.aws.amazon.com/bedrock/latest/userguide/projects.html
*/}}
{{- define "plane.routerPermissions" -}}
{{- $global := .Values.global -}}
{{- $aws := $global.aws -}}
{{- $own := printf "arn:%s:bedrock:%s:%s" $aws.partition $aws.region $aws.accountId -}}
{{- $bare := list -}}
{{- $profiles := list -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- with $model.fallback -}}
{{- if eq $model.reach "region" -}}
{{- $bare = append $bare (printf "arn:%s:bedrock:%s::foundation-model/%s" $aws.partition $aws.region .model) -}}
{{- else -}}
{{- $profiles = append $profiles .model -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $allow := dict "Effect" "Allow" "Action" (list "bedrock:InvokeModel" "bedrock:InvokeModelWithResponseStream") -}}
{{- $here := dict "aws:RequestedRegion" $aws.region -}}
{{- with $global.network.bedrockEndpointIds -}}
{{- $_ := set $here "aws:SourceVpce" . -}}
{{- end -}}
{{- $allowHere := merge (dict "Condition" (dict "StringEquals" $here)) $allow -}}
{{- /* A bearer token is a key that works anywhere; the router signs. https://docs.aws.amazon.com/bedrock/latest/userguide/api-keys-permissions.html */ -}}
{{- $deny := dict "Sid" "NoBearerToken" "Effect" "Deny" "Action" (list "bedrock:CallWithBearerToken") "Resource" (list "*") -}}
{{- $project := dict "Sid" "Project" "Resource" (list (printf "%s:project/default" $own)) -}}
{{- $statements := list $deny (merge $project $allowHere) -}}
{{- with uniq $bare | sortAlpha -}}
{{- $statements = append $statements (merge (dict "Sid" "OwnRegion" "Resource" .) $allowHere) -}}
{{- end -}}
{{- range $index, $id := uniq $profiles | sortAlpha -}}
{{- $prefix := splitList "." $id | first -}}
{{- $model := trimPrefix (printf "%s." $prefix) $id -}}
{{- $profile := printf "%s:inference-profile/%s" $own $id -}}
{{- $ofProfile := dict "bedrock:InferenceProfileArn" $profile -}}
{{- $regions := list $aws.region -}}
{{- if ne $prefix "global" -}}
{{- $regions = get $global.bedrock.profileRegions $prefix | default list | concat $regions | uniq | sortAlpha -}}
{{- end -}}
{{- $models := list -}}
{{- range $regions -}}
{{- $models = append $models (printf "arn:%s:bedrock:%s::foundation-model/%s" $aws.partition . $model) -}}
{{- end -}}
{{- $statements = append $statements (merge (dict "Sid" (printf "Profile%d" $index)
      "Resource" (list $profile)) $allowHere) -}}
{{- $statements = append $statements (merge (dict "Sid" (printf "Regions%d" $index) "Resource" $models
      "Condition" (dict "StringEquals" $ofProfile)) $allow) -}}
{{- if eq $prefix "global" -}}
{{- /* The request for the model somewhere in the world names no Region, and AWS calls that one unspecified. */ -}}
{{- $statements = append $statements (merge (dict "Sid" (printf "Global%d" $index)
      "Resource" (list (printf "arn:%s:bedrock:::foundation-model/%s" $aws.partition $model))
      "Condition" (dict "StringEquals" (merge (dict "aws:RequestedRegion" "unspecified") $ofProfile))) $allow) -}}
{{- end -}}
{{- end -}}
{{- include "plane.policy" (dict "statements" $statements) -}}
{{- end -}}

{{/*
plane.identity: a role, and the association that gives it to a ServiceAccount, as ACK objects:
(dict "root" $ "component" "engine" "namespace" "inference" "serviceAccount" "x" "policy" $json). Nothing where somebody
else makes them. The association names the Role object, so ACK makes it once the role is there.
*/}}
{{- define "plane.identity" -}}
{{- $global := .root.Values.global -}}
{{- if include "plane.managesRoles" $global -}}
{{- $role := include "plane.role" (merge (dict "global" $global) .) | fromJson -}}
---
apiVersion: iam.services.k8s.aws/v1alpha1
kind: Role
metadata:
  name: {{ .serviceAccount }}
  namespace: {{ .namespace }}
  labels:
    {{- include "plane.labels" (dict "root" .root "component" .component "name" .serviceAccount) | nindent 4 }}
spec:
  name: {{ $role.name }}
  description: {{ printf "The ServiceAccount %s/%s of the inference plane." .namespace .serviceAccount }}
  assumeRolePolicyDocument: {{ include "plane.trustPolicy" (dict "global" $global "role" $role) | squote }}
  inlinePolicies:
    inference-plane: {{ .policy | squote }}
  {{- with $global.identity.permissionsBoundaryArn }}
  permissionsBoundary: {{ . }}
  {{- end }}
{{- if eq $global.identity.mode "podIdentity" }}
---
apiVersion: eks.services.k8s.aws/v1alpha1
kind: PodIdentityAssociation
metadata:
  name: {{ .serviceAccount }}
  namespace: {{ .namespace }}
  labels:
    {{- include "plane.labels" (dict "root" .root "component" .component "name" .serviceAccount) | nindent 4 }}
  annotations:
    services.k8s.aws/region: {{ $global.aws.region }}
spec:
  clusterName: {{ $global.aws.clusterName }}
  namespace: {{ .namespace }}
  serviceAccount: {{ .serviceAccount }}
  roleRef:
    from:
      name: {{ .serviceAccount }}
{{- end }}
{{- end -}}
{{- end -}}

{{/*
Annotations of a ServiceAccount that calls AWS: (dict "root" $ "namespace" "inference" "serviceAccount" "x"). By them
the webhook of IRSA gives its pods a token and the name of the role.
*/}}
{{- define "plane.serviceAccountAnnotations" -}}
{{- $global := .root.Values.global -}}
{{- if eq $global.identity.mode "irsa" -}}
annotations:
  eks.amazonaws.com/role-arn: {{ (include "plane.role" (merge (dict "global" $global) .) | fromJson).arn }}
  # STS of the own Region, which global.network.stsCidrs lets pods reach.
  eks.amazonaws.com/sts-regional-endpoints: "true"
{{- end -}}
{{- end -}}

{{/*
"true" where pods carry the variables and the token of EKS Pod Identity themselves. EKS adds them to a pod that starts
after its association alone, and ACK makes that association beside the pod.
*/}}
{{- define "plane.carriesCredentials" -}}
{{- if and (eq .identity.mode "podIdentity") (eq .identity.manage "ack") -}}true{{- end -}}
{{- end -}}

{{/* Environment by which AWS SDKs find the EKS Pod Identity agent, as JSON, name -> value: takes the root. */}}
{{- define "plane.credentialsEnv" -}}
{{- $env := dict -}}
{{- if include "plane.carriesCredentials" .Values.global -}}
{{- $agent := splitList "/" .Values.global.network.podIdentityAgent | first -}}
{{- $_ := set $env "AWS_CONTAINER_CREDENTIALS_FULL_URI" (printf "http://%s/v1/credentials" $agent) -}}
{{- $token := printf "%s/eks-pod-identity-token" (include "plane.podIdentityFolder" .) -}}
{{- $_ := set $env "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" $token -}}
{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{/* The volume of the token for the EKS Pod Identity agent, as a list item: takes the root. */}}
{{- define "plane.credentialsVolume" -}}
{{- if include "plane.carriesCredentials" .Values.global -}}
- name: eks-pod-identity-token
  projected:
    sources:
      - serviceAccountToken:
          audience: pods.eks.amazonaws.com
          # The kubelet renews it earlier.
          expirationSeconds: 86400
          path: eks-pod-identity-token
{{- end -}}
{{- end -}}

{{/* Its mount, as a list item: takes the root. */}}
{{- define "plane.credentialsMount" -}}
{{- if include "plane.carriesCredentials" .Values.global -}}
- name: eks-pod-identity-token
  mountPath: {{ include "plane.podIdentityFolder" . }}
  readOnly: true
{{- end -}}
{{- end -}}
