"""The manifests against the schemas of what would read them."""

import copy
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.conftest import SHARED
from tests.infra.dockerfiles import run_steps
from tests.infra.rendered import TARGETS, Document, of_kind, pods, render, walk

KUBERNETES_VERSION = "1.34"
#: KubeRay's custom resource definitions: beside the repository, since they are large and not ours.
CRDS = SHARED / "kuberay"


def closed(schema: Any, inside: str = "") -> Any:
    """A structural schema as the API server reads it under strict validation: unknown fields are wrong."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {
        name: {key: closed(part, key) for key, part in value.items()}
        if name == "properties"
        else closed(value)
        for name, value in schema.items()
    }
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    if "properties" in schema:
        if inside != "metadata" and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        defaulted = {name for name, part in schema["properties"].items() if "default" in part}
        schema["required"] = [name for name in schema.get("required", []) if name not in defaulted]
    return schema


@pytest.fixture(scope="module")
def custom_schemas() -> dict[str, Any]:
    """The schema of each kind of KubeRay's, version v1."""
    if not CRDS.is_dir():
        pytest.skip("no custom resource definitions of KubeRay: ../shared/kuberay is absent")
    schemas = {}
    for path in CRDS.glob("*.yaml"):
        spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        (version,) = (version for version in spec["versions"] if version["name"] == "v1")
        schemas[spec["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return schemas


@pytest.mark.parametrize("target", TARGETS)
def test_manifests_keep_to_kubernetes_schemas(target: str) -> None:
    foreign = ("ray.io", "monitoring.coreos.com")  # the latter's schema is at hand nowhere
    documents = [document for document in render(target) if not document["apiVersion"].startswith(foreign)]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    assert documents or target.startswith("jobs/")


def test_spoiled_deployment_is_refused() -> None:
    spoiled = copy.deepcopy(of_kind("Deployment")[0])
    spoiled["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(spoiled, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize(("kind", "count"), [("RayCluster", 1), ("RayJob", 3)])
def test_ray_manifests_keep_to_kuberays_schemas(
    kind: str, count: int, custom_schemas: dict[str, Any]
) -> None:
    found = of_kind(kind)
    assert len(found) == count
    for document in found:
        jsonschema.validate(document, custom_schemas[kind])


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("authOptions", {"mode": "tokens"}, "'tokens' is not one of"),
        ("autoscalerOptions", {"idleTimeoutSecond": 1}, "idleTimeoutSecond"),
        ("headGroupSpec", {"rayStartParams": {"num-cpus": 0}}, "0 is not of type 'string'"),
    ],
)
def test_spoiled_ray_cluster_is_refused(
    part: str, change: Document, complaint: str, custom_schemas: dict[str, Any]
) -> None:
    spoiled = copy.deepcopy(of_kind("RayCluster")[0])
    spoiled["spec"][part] |= change
    with pytest.raises(jsonschema.ValidationError, match=complaint):
        jsonschema.validate(spoiled, custom_schemas["RayCluster"])


def test_pods_keep_to_the_restricted_standard() -> None:
    """The namespace enforces it: a pod that does not would never start."""
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], pod["of"]
        assert spec["securityContext"]["runAsUser"] > 0, pod["of"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod["of"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), pod["of"]
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            assert_confined(container["securityContext"])
    for document in (*of_kind("RayCluster"), *of_kind("RayJob")):
        for part in walk(document):
            if "autoscalerOptions" in part:
                assert_confined(part["autoscalerOptions"]["securityContext"])


def assert_confined(context: Document) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


#: What each image writes to, beside its volume of data. Ray's objects are in /dev/shm, which KubeRay mounts.
WRITTEN = {
    "glefld": {"/tmp", "/home/ray"},
    "glefld-mlflow": {"/tmp", "/home/mlflow"},
    "postgres": {"/tmp", "/var/run/postgresql"},
    "seaweedfs": {"/tmp"},
}


def test_what_is_written_beside_a_read_only_root_is_a_volume_of_the_pod() -> None:
    for stage, user in (("cluster", "ray"), ("mlflow", "mlflow")):
        assert f"/home/{user}" in WRITTEN["glefld" if stage == "cluster" else "glefld-mlflow"]
        assert ["useradd", "--uid", "1000", "--create-home", user] in run_steps(stage)
    for pod in pods():
        empty = {v["name"] for v in pod["spec"].get("volumes", []) if "emptyDir" in v}
        for container in pod["spec"]["containers"]:
            name = re.split("[:@]", container["image"])[0].rpartition("/")[2]
            mounted = {m["mountPath"] for m in container["volumeMounts"] if m["name"] in empty}
            assert mounted == WRITTEN[name], (pod["of"], container["name"])
        assert empty == {m["name"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]} & empty
        assert pod["spec"]["securityContext"]["fsGroup"] == pod["spec"]["securityContext"]["runAsUser"]
    for document in (*of_kind("RayCluster"), *of_kind("RayJob")):
        for part in walk(document):
            if "autoscalerOptions" in part:
                mounts = part["autoscalerOptions"]["volumeMounts"]
                assert {mount["mountPath"] for mount in mounts} == WRITTEN["glefld"]
                volumes = {v["name"] for v in part["headGroupSpec"]["template"]["spec"]["volumes"]}
                assert {mount["name"] for mount in mounts} <= volumes, (
                    "the autoscaler stands in the head's pod"
                )


def test_clusters_ask_for_a_token_and_scale_from_nothing_on_spot() -> None:
    specs = [cluster["spec"] for cluster in of_kind("RayCluster")]
    specs += [job["spec"]["rayClusterSpec"] for job in of_kind("RayJob")]
    for spec in specs:
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        assert spec["enableInTreeAutoscaling"] is True
        head = spec["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert "tolerations" not in head["template"]["spec"], "the head must not stand on a spot machine"
        cpu, gpu = spec["workerGroupSpecs"]
        for group in (cpu, gpu):
            assert group["minReplicas"] == 0
            assert "replicas" not in group, "the autoscaler owns it"
            pod = group["template"]["spec"]
            assert any(taint["key"] == "glefld/spot" for taint in pod["tolerations"])
            assert pod["terminationGracePeriodSeconds"] < 120
        limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in (cpu, gpu)]
        assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, "1"]
