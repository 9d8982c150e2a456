{{/*
What a schema cannot say of node pools. Every refusal says what, why, and what to set.
*/}}

{{/* Fails once with every refusal; renders nothing otherwise. */}}
{{- define "nodepools.validate" -}}
{{- $pools := include "nodepools.pools" . | fromJson -}}
{{- $refusals := list (include "nodepools.refuseUnknown" .) -}}
{{- if $pools -}}
{{- $context := dict "root" . "pools" $pools -}}
{{- $rules := list "Names" "Hardware" "Sizes" "Drain" "Age" "Selectors" "Role" "Ami" "AutoMode" "Volumes" "Labels"
      "Tags" -}}
{{- range $rule := $rules -}}
{{- $refusals = append $refusals (include (printf "nodepools.refuse%s" $rule) $context) -}}
{{- end -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "the node pools" "refusals" $refusals) -}}
{{- end -}}

{{- define "nodepools.refuseUnknown" -}}
{{- range $accelerator, $classes := .Values.pools -}}
{{- if and $classes (not (kindIs "map" (get $.Values.global.accelerators $accelerator))) -}}
{{- include "plane.unknown" (list (printf "pools.%s" $accelerator)
      $accelerator
      "global.accelerators"
      $.Values.global.accelerators) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Karpenter writes a pool's name into the label karpenter.sh/nodepool of its nodes. */}}
{{- define "nodepools.refuseNames" -}}
{{- $root := .root -}}
{{- $taken := dict -}}
{{- range $key, $pool := .pools -}}
{{- $path := printf "pools.%s.name" (replace "/" "." $key) -}}
{{- if gt (len $pool.name) 63 -}}
{{- include "plane.refusal" (list $path
      (printf "%s has %d characters" $pool.name (len $pool.name))
      "Karpenter writes the name into a label, and a label's value has at most 63"
      "a shorter name or namePrefix") -}}
{{- end -}}
{{- with get $taken $pool.name -}}
{{- include "plane.refusal" (list $path
      (printf "%s is the name of pools.%s already" $pool.name (replace "/" "." .))
      "One object would overwrite the other, and its nodes would end"
      "another name") -}}
{{- end -}}
{{- $_ := set $taken $pool.name $key -}}
{{- $class := include "nodepools.className" (dict "root" $root "accelerator" $pool.accelerator) -}}
{{- if and (include "nodepools.auto" $root) (eq $class "default") -}}
{{- include "plane.refusal" (list "namePrefix"
      (printf "empty, which names a node class %s" $class)
      "default is the NodeClass that EKS Auto Mode makes itself"
      "namePrefix") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether the nodes of a pool have what its pods ask for. */}}
{{- define "nodepools.refuseHardware" -}}
{{- $seen := list -}}
{{- range $pool := .pools -}}
{{- if not (has .accelerator $seen) -}}
{{- $seen = append $seen .accelerator -}}
{{- $path := printf "global.accelerators.%s" .accelerator -}}
{{- if .hardware -}}
{{- if not .hardware.resource -}}
{{- include "plane.refusal" (list (printf "pools.%s" .accelerator)
      (printf "%s has no resource" .accelerator)
      "A pool's taint and limit are those of an accelerator; what needs none runs on the cluster's ordinary nodes"
      (printf "another accelerator, or take pools.%s out" .accelerator)) -}}
{{- else if not .hardware.instanceFamilies -}}
{{- include "plane.refusal" (list (printf "%s.instanceFamilies" $path)
      "absent"
      "Karpenter would bring any instance, and the pods would fit on none of them"
      "the families that have it, such as [g6e]") -}}
{{- else -}}
{{- $neuron := include "plane.onNeuron" . -}}
{{- range $family := .hardware.instanceFamilies -}}
{{- $isNeuron := regexMatch "^(inf|trn)[0-9]" $family -}}
{{- $isNvidia := and (regexMatch "^(g|gr|p)[0-9]" $family) (not (hasPrefix "g4ad" $family)) -}}
{{- if not ($neuron | empty | ternary $isNvidia $isNeuron) -}}
{{- include "plane.refusal" (list (printf "%s.instanceFamilies" $path)
      (printf "%s, while the resource is %s" $family $pool.hardware.resource)
      "No instance of that family has such a device, so every node would come and stay empty"
      ($neuron | empty | ternary
        "families with NVIDIA GPUs, such as g6e or p5"
        "families with Neuron devices, such as inf2 or trn2")) -}}
{{- else if regexMatch "^(g5g|p6e)" $family -}}
{{- include "plane.refusal" (list (printf "%s.instanceFamilies" $path)
      (printf "%s is arm64" $family)
      "The engines' images are for amd64"
      "families with x86-64 processors") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Limits and headroom beside what the catalogue asks for. */}}
{{- define "nodepools.refuseSizes" -}}
{{- range $key, $pool := .pools -}}
{{- $path := printf "pools.%s" (replace "/" "." $key) -}}
{{- if lt (int $pool.limit) (int $pool.floor) -}}
{{- include "plane.refusal" (list (printf "%s.limit" $path)
      (printf "%d, while %s need %d at their fewest replicas"
        (int $pool.limit) (join ", " $pool.models) (int $pool.floor))
      "Karpenter brings no node beyond it, so replicas would stay Pending"
      (printf "%d or more, or null" (int $pool.floor))) -}}
{{- end -}}
{{- if and $pool.headroom (not $pool.models) -}}
{{- include "plane.refusal" (list (printf "%s.headroom" $path)
      (printf "%d, while no model uses the pool" (int $pool.headroom))
      "Headroom is as large as a replica of the pool's biggest model"
      "headroom: 0, or add a model") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether an engine can end its answers before its node is gone. */}}
{{- define "nodepools.refuseDrain" -}}
{{- $values := .root.Values -}}
{{- $drain := int $values.longestDrainSeconds -}}
{{- if lt (include "plane.seconds" $values.terminationGracePeriod | int) $drain -}}
{{- include "plane.refusal" (list "terminationGracePeriod"
      (printf "%s is less than longestDrainSeconds %d" $values.terminationGracePeriod $drain)
      "Karpenter would kill engines that still answer"
      (printf "%ds or more" $drain)) -}}
{{- end -}}
{{- $spot := list -}}
{{- range .pools -}}
{{- if has "spot" (get $values.traffic .traffic).capacityTypes -}}
{{- $spot = append $spot .name -}}
{{- end -}}
{{- end -}}
{{- if and $spot (gt $drain 100) -}}
{{- include "plane.refusal" (list "longestDrainSeconds"
      (printf "%d is above 100, while %s may run on Spot" $drain (join ", " $spot))
      "EC2 takes a Spot instance back two minutes after it says so, and some of them pass before the drain begins"
      "100 or less here and shorter times in the engines' drain, or traffic.batch.capacityTypes: [on-demand]") -}}
{{- end -}}
{{- end -}}

{{/* https://docs.aws.amazon.com/eks/latest/userguide/auto-security.html: Auto Mode ends each node after 21 days. */}}
{{- define "nodepools.refuseAge" -}}
{{- $values := .root.Values -}}
{{- if include "nodepools.auto" .root -}}
{{- $never := eq $values.expireAfter "Never" -}}
{{- $age := $never | ternary "0s" $values.expireAfter | include "plane.seconds" -}}
{{- $leave := include "plane.seconds" $values.terminationGracePeriod -}}
{{- if or $never (gt (add $age $leave) 1814400) -}}
{{- include "plane.refusal" (list "expireAfter"
      (printf "%s and terminationGracePeriod %s are more than 21 days"
        $values.expireAfter $values.terminationGracePeriod)
      "EKS Auto Mode ends a node of that age, whatever still drains"
      "both so that their sum is at most 504h") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "nodepools.refuseSelectors" -}}
{{- $class := .root.Values.nodeClass -}}
{{- range $field, $what := dict "subnetTags" "private subnets" "securityGroupTags" "nodes' security groups" -}}
{{- if not (include "nodepools.strings" (get $class $field)) -}}
{{- include "plane.refusal" (list (printf "nodeClass.%s" $field)
      "empty"
      "Nothing guesses where nodes with prompts in memory stand"
      (printf "tags that the %s have and no others, such as karpenter.sh/discovery: CLUSTER" $what)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "nodepools.refuseRole" -}}
{{- $role := .root.Values.nodeClass.role -}}
{{- $profile := .root.Values.ec2.instanceProfile -}}
{{- $auto := include "nodepools.auto" .root -}}
{{- if and (not $role) (or $auto (not $profile)) -}}
{{- include "plane.refusal" (list "nodeClass.role"
      "empty"
      "A node without a role cannot join the cluster"
      ($auto | empty | ternary
        "the name of the nodes' IAM role, or ec2.instanceProfile"
        "the name of the nodes' IAM role")) -}}
{{- else if and $role $profile (not $auto) -}}
{{- include "plane.refusal" (list "ec2.instanceProfile"
      (printf "%s beside nodeClass.role %s" $profile $role)
      "An EC2NodeClass has one of them"
      "one of the two to \"\"") -}}
{{- end -}}
{{- end -}}

{{- define "nodepools.refuseAmi" -}}
{{- $ec2 := .root.Values.ec2 -}}
{{- $version := trimPrefix "bottlerocket@" $ec2.amiAlias | trimPrefix "v" -}}
{{- if not (include "nodepools.auto" .root) -}}
{{- if not $ec2.amiAlias -}}
{{- include "plane.refusal" (list "ec2.amiAlias"
      "empty"
      "A version of the AMI that nobody chose was tested by nobody"
      "bottlerocket@VERSION") -}}
{{- else if eq $version "latest" -}}
{{- include "plane.refusal" (list "ec2.amiAlias"
      (printf "%s moves" $ec2.amiAlias)
      "Each release of Bottlerocket would replace the nodes, and bring drivers that nobody tested with the engines"
      "bottlerocket@VERSION") -}}
{{- else if not (regexMatch "^[0-9]+\\.[0-9]+\\.[0-9]+(-[0-9a-f]+)?$" $version) -}}
{{- include "plane.refusal" (list "ec2.amiAlias"
      (printf "%s is no version of Bottlerocket" $ec2.amiAlias)
      "Karpenter would find no AMI"
      "bottlerocket@VERSION, such as bottlerocket@1.46.0") -}}
{{- else if and $ec2.soci (semverCompare "<1.44.0" (regexFind "^[0-9.]+" $version)) -}}
{{- include "plane.refusal" (list "ec2.soci"
      (printf "true, while the AMI is %s" $ec2.amiAlias)
      "Bottlerocket before 1.44.0 passes over the settings of the parallel pull and says nothing"
      "ec2.amiAlias to 1.44.0 or newer, or ec2.soci: false") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What an EC2NodeClass has and Auto Mode's NodeClass has not. */}}
{{- define "nodepools.refuseAutoMode" -}}
{{- if include "nodepools.auto" .root -}}
{{- $ec2 := .root.Values.ec2 -}}
{{- range $field, $why := dict
      "amiAlias" "Auto Mode chooses the AMI, and rolls nodes when it has a new one"
      "instanceProfile" "Auto Mode makes the instance profile from nodeClass.role"
      "userData" "Auto Mode runs no user data" -}}
{{- with get $ec2 $field -}}
{{- include "plane.refusal" (list (printf "ec2.%s" $field)
      "given, while mode is autoMode"
      $why
      (printf "ec2.%s: \"\", or mode: ec2NodeClass" $field)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "nodepools.refuseVolumes" -}}
{{- $volume := .root.Values.dataVolume -}}
{{- /* Two unpacked engine images of 30 GiB, and emptyDirs. */ -}}
{{- $base := 100 -}}
{{- $need := $base -}}
{{- $for := "images, logs and caches" -}}
{{- range $name, $model := include "plane.fleets" (include "plane.models" .root | fromJson) | fromJson -}}
{{- /* GPU engines keep none on their node: they stream them to the device. */ -}}
{{- $weights := include "plane.onNeuron" $model | empty | ternary 0 (include "plane.artifactsGiB" $model | int) -}}
{{- if gt (add $base $weights) $need -}}
{{- $need = add $base $weights -}}
{{- $for = printf "%d for images, logs and caches, %d for weights and artifacts of %s" $base $weights $name -}}
{{- end -}}
{{- end -}}
{{- if lt (int $volume.sizeGiB) (int $need) -}}
{{- include "plane.refusal" (list "dataVolume.sizeGiB"
      (printf "%d is less than %d (%s)" (int $volume.sizeGiB) (int $need) $for)
      "A full disk evicts the pods of its node"
      (printf "%d or more, and more where replicas share a node" (int $need))) -}}
{{- end -}}
{{- if gt (mul 4 (int $volume.throughput)) (int $volume.iops) -}}
{{- include "plane.refusal" (list "dataVolume.throughput"
      (printf "%d is above a quarter of iops %d" (int $volume.throughput) (int $volume.iops))
      "EC2 refuses such a gp3 volume, and no node comes"
      (printf "iops: %d or more, or a lower throughput" (mul 4 (int $volume.throughput)))) -}}
{{- end -}}
{{- end -}}

{{/* Labels that Karpenter, Kubernetes or this chart sets. */}}
{{- define "nodepools.refuseLabels" -}}
{{- range $label, $value := .root.Values.nodeLabels -}}
{{- $domain := splitList "/" $label | first -}}
{{- $theirs := has $domain (list "karpenter.k8s.aws" "eks.amazonaws.com") -}}
{{- if or $theirs (hasSuffix "karpenter.sh" $domain) (eq $label "kubernetes.io/hostname") -}}
{{- include "plane.refusal" (list (printf "nodeLabels.%s" $label)
      "not for a NodePool to set"
      "Karpenter sets it on each node, and refuses a NodePool that does"
      "a label of your own domain, or take it out") -}}
{{- else if has $label (list "inference-plane/accelerator" "inference-plane/traffic") -}}
{{- include "plane.refusal" (list (printf "nodeLabels.%s" $label)
      "set by the chart"
      "It says what the pool is for"
      "another label, or take it out") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Tags of EC2 that Karpenter, EKS or this chart sets. */}}
{{- define "nodepools.refuseTags" -}}
{{- range $tag, $value := .root.Values.nodeClass.tags -}}
{{- $theirs := "^(karpenter\\.sh/|karpenter\\.k8s\\.aws/|eks\\.amazonaws\\.com/|kubernetes\\.io/cluster|eks:)" -}}
{{- if or (regexMatch $theirs $tag) (eq $tag "inference-plane/accelerator") -}}
{{- include "plane.refusal" (list (printf "nodeClass.tags.%s" $tag)
      "not for these values to set"
      "Karpenter, EKS or this chart tags instances with it"
      "another tag, or take it out") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
nodepools.validateEngines: what the umbrella alone can see, because it has the engines' values too. Takes its root.
*/}}
{{- define "nodepools.validateEngines" -}}
{{- $own := index .Values "karpenter-nodepools" -}}
{{- $refusals := list -}}
{{- $used := list -}}
{{- range include "plane.models" . | fromJson -}}
{{- $used = append $used .engine -}}
{{- end -}}
{{- range $chart := uniq $used | sortAlpha -}}
{{- $engines := get $.Values $chart -}}
{{- if $engines.enabled -}}
{{- $grace := include "plane.engineGraceSeconds" (dict "Values" $engines) | int -}}
{{- if gt $grace (int $own.longestDrainSeconds) -}}
{{- $refusals = append $refusals (include "plane.refusal" (list "karpenter-nodepools.longestDrainSeconds"
      (printf "%d is less than the engines' grace period of %d (%s.drain)" (int $own.longestDrainSeconds) $grace $chart)
      "The node pools would be checked against a drain that is not theirs"
      (printf "%d" $grace))) -}}
{{- end -}}
{{- $label := printf "%s/instance-family" (include "nodepools.labelGroup" (dict "Values" $own)) -}}
{{- if ne $engines.instanceFamilyLabel $label -}}
{{- $refusals = append $refusals (include "plane.refusal" (list (printf "%s.instanceFamilyLabel" $chart)
      (printf "%s, while karpenter-nodepools.mode is %s" $engines.instanceFamilyLabel $own.mode)
      "No node of these pools has that label, so every engine would stay Pending"
      $label)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "the node pools" "refusals" $refusals) -}}
{{- end -}}
