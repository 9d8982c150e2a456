"""A stand-in for an AWS account: moto behind one endpoint on loopback, and what moto lacks for controllers of EKS.

What is added to moto 5.2.5, and nothing else:

- the public SSM parameters of Bottlerocket's AMIs, with those AMIs (`publish_bottlerocket`);
- an AMI keeps the architecture that it is registered with (moto drops it, and Karpenter then finds no AMI);
- instances of a fleet have the security groups of their launch template (without them Karpenter sees drift for ever);
- a fleet launches the smallest instance type that was offered to it, as lowest-price does (moto takes the first);
- a price list of On-Demand instances; the prices are made up, in the order of size, and none is a fact about AWS;
- `refuse_spot`: Spot capacity that is not to be had, as EC2 says it in the answer of CreateFleet.

Only the families of FAMILIES exist: with all of them one DescribeInstanceTypes takes seconds. Which of their types a
zone offers, and what Spot costs there, is AWS' own data as moto captured it.

Every call is recorded, and one that moto cannot answer is told by `unanswered`, so that nothing hides behind a retry.
"""

from __future__ import annotations

import functools
import io
import json
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

import boto3
from moto.core.base_backend import BackendDict
from moto.ec2.models import ec2_backends
from moto.ec2.models.fleets import Fleet
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, InstanceTypeBackend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.ssm.models import Parameter, ssm_backends
from werkzeug.serving import make_server

from inference_plane.onehost.processes import free_port

ACCOUNT_ID = "123456789012"

#: Those of the accelerator profiles, two that no profile names, and ordinary ones.
FAMILIES = ("g6", "g6e", "p4d", "p4de", "p5", "inf2", "trn2", "g5", "p5en", "m7i")


@dataclass(frozen=True)
class Call:
    """One request to AWS: `error` is AWS' code for it, empty where it was answered; parameters are of form bodies."""

    service: str
    action: str
    status: int
    error: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


class Account:
    """A context manager: an account with one Region, which answers at `url` while it is entered.

    `done`, where it is set, is told of each call that is done, before whoever made it hears the answer.
    """

    def __init__(self, region: str) -> None:
        self.region = region
        self.url = f"http://127.0.0.1:{free_port()}"
        self.calls: list[Call] = []
        self.refuse_spot = False
        self.done: Callable[[Call], None] | None = None
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __enter__(self) -> Account:
        _correct_moto()
        host, port = self.url.removeprefix("http://").split(":")
        self._server = make_server(host, int(port), self, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        BackendDict.reset()  # of all services: a process may have had an account before
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI application: moto, recorded."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        service, action, parameters = _asked(environ, body)
        told: list[Any] = []
        if self.refuse_spot and action == "CreateFleet" and _wants_spot(parameters):
            answer = _no_spot(parameters)
            told = ["200 OK", [("Content-Type", "text/xml")]]
        elif action == "GetProducts":
            answer = _prices(json.loads(body))
            told = ["200 OK", [("Content-Type", "application/x-amz-json-1.1")]]
        else:
            answer = b"".join(self._moto(environ, lambda status, headers, *_: told.extend((status, headers))))
        status = int(told[0].split()[0])
        if not environ["PATH_INFO"].startswith("/moto-api"):
            self.calls.append(Call(service, action, status, _error(status, answer, told[1]), parameters))
            if self.done is not None:
                self.done(self.calls[-1])
        start_response(told[0], told[1])
        return [answer]

    @property
    def environment(self) -> dict[str, str]:
        """What points an AWS SDK at this account."""
        return {
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> Any:
        """A boto3 client of a service of this account."""
        return boto3.client(
            service,
            region_name=self.region,
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def unanswered(self) -> list[str]:
        """The calls that moto had no answer to: an action that it does not have, or a failure of its own."""
        found = {f"{c.service} {c.action}: {c.status} {c.error}" for c in self.calls if _is_motos_fault(c)}
        return sorted(found)

    def made(self, action: str) -> list[Call]:
        """The calls of an action so far, refused ones too."""
        return [call for call in self.calls if call.action == action]

    def make_network(self, subnet_tags: Mapping[str, str], group_tags: Mapping[str, str]) -> dict[str, Any]:
        """Tags the subnets of the default VPC, one in each zone, and makes a security group of nodes; their ids."""
        ec2 = self.client("ec2")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
        group = ec2.create_security_group(GroupName=f"nodes-{uuid.uuid4()}", Description="nodes", VpcId=vpc)["GroupId"]
        for resources, tags in ((subnets, subnet_tags), ([group], group_tags)):
            ec2.create_tags(Resources=resources, Tags=[{"Key": key, "Value": value} for key, value in tags.items()])
        return {"vpc": vpc, "subnets": subnets, "group": group}

    def offer(self, *instance_types: str) -> None:
        """Instance types in every zone of the Region, also where AWS has them elsewhere only. Before Karpenter asks."""
        zones = [zone["ZoneName"] for zone in self.client("ec2").describe_availability_zones()["AvailabilityZones"]]
        for kind, regions in INSTANCE_TYPE_OFFERINGS.items():
            places = {"region": [self.region], "availability-zone": zones}.get(kind, [])
            known = {(offering["InstanceType"], offering["Location"]) for offering in regions[self.region]}
            regions[self.region] += [
                {"InstanceType": instance_type, "Location": place, "LocationType": kind}
                for instance_type in instance_types
                for place in places
                if (instance_type, place) not in known
            ]

    def make_role(self, name: str) -> None:
        self.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")

    def publish_bottlerocket(self, version: str, kubernetes: str) -> None:
        """The AMIs of a Bottlerocket version, such as 1.46.0, for a minor version of Kubernetes, such as 1.36."""
        ec2 = self.client("ec2")
        for variant in ("", "-nvidia"):
            for architecture in ("x86_64", "arm64"):
                name = f"bottlerocket-aws-k8s-{kubernetes}{variant}-{architecture}-v{version}"
                image = ec2.register_image(
                    Name=name, Architecture=architecture, RootDeviceName="/dev/xvda", VirtualizationType="hvm"
                )["ImageId"]
                stored = ec2_backends[ACCOUNT_ID][self.region].amis[image]
                stored.architecture, stored.virtualization_type = architecture, "hvm"
                path = f"/aws/service/bottlerocket/aws-k8s-{kubernetes}{variant}/{architecture}/{version}/image_id"
                self._publish(path, image)

    def _publish(self, name: str, value: str) -> None:
        """A public parameter; the API itself lets nobody write one."""
        ssm_backends[ACCOUNT_ID][self.region]._parameters[name].append(
            Parameter(
                account_id=ACCOUNT_ID,
                name=name,
                value=value,
                parameter_type="String",
                description="",
                allowed_pattern="",
                keyid=None,
                last_modified_date=time.time(),
                version=1,
                data_type="text",
                labels=[],
                source_result=None,
            )
        )


class _Quiet(MotoRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections, of which a controller would need thousands

    def log(self, *_: object) -> None:
        """The calls are recorded elsewhere."""


@functools.cache
def _correct_moto() -> None:
    """Once a process: see the head of this module."""
    wanted = lambda name: name.split(".")[0] in FAMILIES  # noqa: E731
    types = InstanceTypeBackend.instance_types
    types[:] = [kind for kind in types if wanted(kind["InstanceType"])]
    for regions in INSTANCE_TYPE_OFFERINGS.values():
        for offerings in regions.values():
            offerings[:] = [offering for offering in offerings if wanted(offering["InstanceType"])]
    sizes = {
        kind["InstanceType"]: (kind["VCpuInfo"]["DefaultVCpus"], kind["MemoryInfo"]["SizeInMiB"]) for kind in types
    }
    choose, create = Fleet.get_launch_spec_counts, Fleet.__init__

    def choose_smallest(fleet: Fleet, capacity: float) -> Any:
        fleet.launch_specs.sort(key=lambda spec: (sizes[spec.instance_type], spec.subnet_id))
        return choose(fleet, capacity)

    def create_with_groups(fleet: Fleet, *arguments: Any, **keywords: Any) -> None:
        create(fleet, *arguments, **keywords)
        launched = [(item["instance"], item["launch_spec"]) for item in fleet.on_demand_instances]
        launched += [(request.instance, request.launch_spec) for request in fleet.spot_requests]
        for instance, spec in launched:
            template = fleet.ec2_backend.get_launch_template(template_id=spec.launch_template_spec["LaunchTemplateId"])
            interfaces = template.get_version(template.latest_version_number).data["NetworkInterfaces"]
            groups = interfaces[0]["Groups"]
            instance.security_groups = [fleet.ec2_backend.get_security_group_from_id(group) for group in groups]

    Fleet.get_launch_spec_counts, Fleet.__init__ = choose_smallest, create_with_groups


def _asked(environ: Mapping[str, Any], body: bytes) -> tuple[str, str, dict[str, str]]:
    """The service, the action and its form parameters of a request."""
    credential = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0].split("/")
    service = credential[3] if len(credential) == 5 else "unsigned"
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return service, target.rpartition(".")[2], {}
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        parameters = dict(urllib.parse.parse_qsl(body.decode()))
        if "Action" in parameters:
            return service, parameters["Action"], parameters
    return service, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", {}


def _error(status: int, answer: bytes, headers: Iterable[tuple[str, str]]) -> str:
    """AWS' own code for a refusal, or what stands instead of one."""
    if status < 400:
        return ""
    kind = next((value for name, value in headers if name.lower() == "x-amzn-errortype"), "")
    if kind:
        return kind.partition(":")[0]
    text = answer.decode(errors="replace")
    if "<Code>" in text:
        return text.partition("<Code>")[2].partition("</Code>")[0]
    try:
        said = json.loads(text)
        return str(said.get("__type") or said.get("code") or "").rpartition("#")[2]
    except (ValueError, AttributeError):
        return ""


def _is_motos_fault(call: Call) -> bool:
    """A failure, or a refusal without a code of AWS: a route or an action that moto does not have."""
    return call.status >= 500 or (call.status >= 400 and not call.error)


def _prices(asked: Mapping[str, Any]) -> bytes:
    """A page of the price list: every instance type that is, or is not, of bare metal, as the filters say."""
    filters = {entry["Field"]: entry["Value"] for entry in asked["Filters"]}
    metal = filters.get("productFamily") == "Compute Instance (bare metal)"
    products = []
    for kind in InstanceTypeBackend.instance_types:
        if kind["BareMetal"] == metal:
            groups = [kind.get("GpuInfo", {}).get("Gpus", ()), kind.get("NeuronInfo", {}).get("NeuronDevices", ())]
            devices = sum(device["Count"] for group in groups for device in group)
            price = f"{kind['VCpuInfo']['DefaultVCpus'] * 0.05 + devices:.4f}"
            terms = {"term": {"priceDimensions": {"hour": {"pricePerUnit": {"USD": price}}}}}
            product = {"attributes": {"instanceType": kind["InstanceType"]}}
            products.append(json.dumps({"product": product, "terms": {"OnDemand": terms}}))
    return json.dumps({"FormatVersion": "aws_v1", "PriceList": products}).encode()


def _wants_spot(parameters: Mapping[str, str]) -> bool:
    return parameters.get("TargetCapacitySpecification.DefaultTargetCapacityType") == "spot"


def _no_spot(parameters: Mapping[str, str]) -> bytes:
    """EC2's answer to an instant fleet for which it has nothing: an error for each instance type that was offered."""
    errors = []
    for key, instance_type in parameters.items():
        head, _, name = key.rpartition(".")
        if name == "InstanceType" and ".Overrides." in head:
            zone, subnet = (parameters.get(f"{head}.{part}", "") for part in ("AvailabilityZone", "SubnetId"))
            overrides = f"<instanceType>{escape(instance_type)}</instanceType><subnetId>{escape(subnet)}</subnetId>"
            overrides += f"<availabilityZone>{escape(zone)}</availabilityZone>" if zone else ""
            errors.append(
                "<item><errorCode>InsufficientInstanceCapacity</errorCode>"
                "<errorMessage>There is no Spot capacity available that matches your request.</errorMessage>"
                "<lifecycle>spot</lifecycle>"
                f"<launchTemplateAndOverrides><overrides>{overrides}</overrides></launchTemplateAndOverrides></item>"
            )
    return (
        '<CreateFleetResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<requestId>{uuid.uuid4()}</requestId><fleetId>fleet-{uuid.uuid4()}</fleetId>"
        f"<errorSet>{''.join(errors)}</errorSet><fleetInstanceSet/></CreateFleetResponse>"
    ).encode()
