"""The plane on one machine: what stands around the rendered router where there is no cluster.

Production names stay as they are rendered. A DNS server on loopback (`dns`) answers them with loopback addresses, one
address a pod, so each pod keeps its real port. Engines are either the real small model behind vLLM's surface
(`engine`, `model`) or captured replies of vLLM (`replay`); `bedrock` stands in for Amazon Bedrock and for the EKS Pod
Identity agent. `processes` starts and ends what runs outside this process. Linux only: the whole of 127.0.0.0/8 must
be local.
"""
