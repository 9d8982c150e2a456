// Built by `scripts/cluster up kind` where no registry gives a node image: the process that holds a pod's namespaces.
module inference-plane/tools/pause

go 1.26.0
