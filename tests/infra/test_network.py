"""Who reaches what: the network policies, evaluated as a network plugin would."""

import ipaddress

import pytest

from tests.infra.rendered import COMPONENT, Document, of_kind, pods

ELSEWHERE = {COMPONENT: "anything"}
OPERATOR = {COMPONENT: "kuberay-operator"}
#: Addresses of what is no pod, by the name that stands for its namespace. Pods are at POD.
OUTSIDE = {"internet": "203.0.113.7", "api server": "192.168.49.2", "metadata": "169.254.169.254"}
POD = "10.244.1.5"


def matches(selector: Document, labels: dict[str, str]) -> bool:
    for term in selector.get("matchExpressions", []):
        assert term["operator"] == "In"
        if labels.get(term["key"]) not in term["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def peer_matches(peer: Document, labels: dict[str, str], namespace: str) -> bool:
    if "ipBlock" in peer:  # it covers pods too: 0.0.0.0/0 is everybody
        address = ipaddress.ip_address(OUTSIDE.get(namespace, POD))
        return address in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(
            address in ipaddress.ip_network(hole) for hole in peer["ipBlock"].get("except", [])
        )
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    elif namespace != "glefld":
        return False
    return namespace not in OUTSIDE and matches(peer.get("podSelector", {}), labels)


def passes(direction: str, pod: dict[str, str], peer: dict[str, str], namespace: str, port: int) -> bool:
    """Whether the pod's own policies let the connection through; a pod that no policy selects is open."""
    selecting = [
        policy["spec"]
        for policy in of_kind("NetworkPolicy")
        if direction in policy["spec"]["policyTypes"] and matches(policy["spec"]["podSelector"], pod)
    ]
    assert selecting, "the default policy selects every pod"
    side = "from" if direction == "Ingress" else "to"
    return any(
        (side not in rule or any(peer_matches(entry, peer, namespace) for entry in rule[side]))
        and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        for spec in selecting
        for rule in spec.get(direction.lower(), [])
    )


def one_pod(component: str) -> dict[str, str]:
    return next(pod["labels"] for pod in pods() if pod["labels"][COMPONENT] == component)


def reaches(source: str, target: str, port: int) -> bool:
    """From one of our pods to another: both sides must agree."""
    a, b = one_pod(source), one_pod(target)
    return passes("Egress", a, b, "glefld", port) and passes("Ingress", b, a, "glefld", port)


@pytest.mark.parametrize("component", ["ray", "mlflow", "postgres", "object-store", "submitter"])
@pytest.mark.parametrize("namespace", ["glefld", "other", "internet"])
def test_strangers_reach_nothing(component: str, namespace: str) -> None:
    """Above all not the dashboard, which takes jobs: not from outside, not from a stray pod beside it."""
    ports = {
        port["containerPort"]
        for pod in pods()
        for c in pod["spec"]["containers"]
        for port in c.get("ports", [])
    }
    assert {8265, 6379, 5000, 5432, 8333} <= ports
    for port in (*ports, 10002):
        assert not passes("Ingress", one_pod(component), ELSEWHERE, namespace, port)


def test_kuberays_operator_reaches_the_dashboard_alone() -> None:
    assert passes("Ingress", one_pod("ray"), OPERATOR, "kuberay", 8265)
    assert not passes("Ingress", one_pod("ray"), OPERATOR, "kuberay", 6379)
    assert not passes("Ingress", one_pod("ray"), OPERATOR, "other", 8265), "anybody may call a pod so"
    assert not passes("Ingress", one_pod("mlflow"), OPERATOR, "kuberay", 5000)


def test_prometheus_reads_the_metrics_and_nothing_else() -> None:
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    (monitor,) = of_kind("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for pod in pods():
        ports = {p["name"]: p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", [])}
        scraped = matches(monitor["spec"]["selector"], pod["labels"])
        assert scraped is (endpoint["port"] in ports), pod["labels"]
        if scraped:
            port = ports[endpoint["port"]]
            assert passes("Ingress", pod["labels"], prometheus, "monitoring", port)
            assert not passes("Ingress", pod["labels"], prometheus, "monitoring", 8265)
            assert not passes("Ingress", pod["labels"], prometheus, "other", port), (
                "anybody may call a pod so"
            )
            assert not passes("Ingress", pod["labels"], ELSEWHERE, "monitoring", port)
    for document in (*of_kind("RayCluster"), *of_kind("RayJob")):
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["rayStartParams"]["metrics-export-port"] == "8080"


@pytest.mark.parametrize(
    ("source", "target", "port", "through"),
    [
        ("ray", "ray", 6379, True),
        ("ray", "ray", 10002, True),  # a worker's port
        ("submitter", "ray", 8265, True),
        ("submitter", "ray", 6379, False),
        ("submitter", "mlflow", 5000, False),
        ("ray", "mlflow", 5000, True),
        ("ray", "postgres", 5432, False),
        ("ray", "object-store", 8333, True),
        ("mlflow", "postgres", 5432, True),
        ("mlflow", "object-store", 8333, True),
        ("mlflow", "ray", 8265, False),
        ("postgres", "mlflow", 5000, False),
        ("object-store", "ray", 8265, False),
    ],
)
def test_our_pods_reach_what_they_need_and_no_more(
    source: str, target: str, port: int, through: bool
) -> None:
    assert reaches(source, target, port) is through


def test_who_reaches_the_outside() -> None:
    """Object storage for Ray and MLflow, the API server for heads; names for all."""
    for component in ("ray", "mlflow"):
        assert passes("Egress", one_pod(component), {}, "internet", 443)
    for component in ("postgres", "submitter", "object-store"):
        assert not passes("Egress", one_pod(component), {}, "internet", 443)
    heads = [pod["labels"] for pod in pods() if pod["labels"].get("ray.io/node-type") == "head"]
    assert len(heads) == 4
    assert all(passes("Egress", head, {}, "api server", 6443) for head in heads)
    assert not passes("Egress", {COMPONENT: "ray"}, {}, "api server", 6443)
    assert not any(passes("Egress", pod["labels"], {}, "internet", 6443) for pod in pods())
    assert not any(passes("Egress", pod["labels"], {}, "metadata", 443) for pod in pods())
    for pod in pods():
        assert passes("Egress", pod["labels"], {}, "kube-system", 53)
