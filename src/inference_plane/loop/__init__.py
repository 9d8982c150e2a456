"""The elastic plane on one machine: real control loops from a client's request to the node that comes for it, and back.

Load reaches the rendered Envoys by a load balancer; KEDA reads the policy service and the engines, and scales
Deployments on a real API server; Karpenter sees Pending pods and launches instances by CreateFleet; their nodes
register, a kubelet of this package starts an engine for each pod, and the routers find it. They are its pods too.
AWS is moto, the load balancer, kubelets and engines' speed stand in, and everything runs in a network namespace of its
own, in which every pod has its address.
"""
