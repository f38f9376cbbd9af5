"""Names that must agree between files which nothing else reads together."""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator

import pytest
import tyro
import yaml

from tests.infra.rendered import COMPONENT, INFRA, ROOT, everything, of_kind, pods, readme_commands, walk


def made_secrets() -> set[tuple[str, str]]:
    """(name, key) of each Secret that the README makes."""
    made = re.findall(
        r"kubectl create secret generic (\S+) [^\n]*<<END\n(.*?)\nEND",
        (INFRA / "README.md").read_text(),
        re.S,
    )
    return {(name, line.partition("=")[0]) for name, lines in made for line in lines.splitlines()}


def test_no_secret_of_the_readme_is_an_argument() -> None:
    """Every user of a machine can list the arguments of its processes; echo is the shell's own."""
    for command in readme_commands():
        if re.match(r"(\S+=\S+ )*(kubectl|terraform|docker|helm|ray|\.venv)", command):
            assert "openssl" not in command.partition("<<END")[0], command


def test_each_secret_of_the_manifests_is_made_in_the_readme() -> None:
    """And none is made that nobody reads."""
    wanted = {("ray-token", "auth_token")}  # the key that KubeRay reads
    whole = set()
    for part in (part for document in everything() for part in walk(document)):
        if "secretKeyRef" in part:
            wanted.add((part["secretKeyRef"]["name"], part["secretKeyRef"]["key"]))
        if "secretRef" in part:
            whole.add(part["secretRef"]["name"])
        if "authOptions" in part:
            assert part["authOptions"]["secretName"] == "ray-token"
    made = made_secrets()
    assert {secret for secret in made if secret[0] not in whole} == wanted
    assert {name for name, _ in made if name in whole} == whole == {"object-store"}


def test_each_selector_selects_pods_and_each_service_a_port_of_theirs() -> None:
    labels = [pod["labels"] for pod in pods()]
    for document in everything():
        spec = document.get("spec", {})
        if document["kind"] in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        if document["kind"] == "Service":
            (selected,) = (pod for pod in pods() if spec["selector"].items() <= pod["labels"].items())
            named = {
                port["name"] for container in selected["spec"]["containers"] for port in container["ports"]
            }
            assert {port["targetPort"] for port in spec["ports"]} <= named
        if document["kind"] == "NetworkPolicy":
            for part in walk(spec):
                terms = [part["matchLabels"]] if COMPONENT in part.get("matchLabels", {}) else []
                terms += [
                    {COMPONENT: value} for e in part.get("matchExpressions", []) for value in e["values"]
                ]
                for term in terms:
                    outside = term[COMPONENT] == "kuberay-operator"
                    assert outside or any(term.items() <= found.items() for found in labels), term


def test_pods_get_images_from_the_registry_that_is_named() -> None:
    """`images` in the kustomizations must reach the Ray pods and submitters too, whose kind kustomize does not know."""
    images = {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    ours = {image for image in images if "glefld" in image}
    assert ours == {"registry.example.com/glefld:0.1.0", "registry.example.com/glefld-mlflow:0.1.0"}
    assert all(re.search(r":[\d.]+", image) for image in images), "an image without a version"


def test_what_pods_take_their_settings_from_is_there() -> None:
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind("ConfigMap")}
    referred = {
        source["configMapRef"]["name"]
        for pod in pods()
        for container in pod["spec"]["containers"]
        for source in container.get("envFrom", [])
        if "configMapRef" in source
    }
    assert referred == set(maps) == {"settings"}
    (mlflow,) = (service for service in of_kind("Service") if service["metadata"]["name"] == "mlflow")
    assert maps["settings"]["MLFLOW_TRACKING_URI"] == f"http://mlflow:{mlflow['spec']['ports'][0]['port']}"


def test_the_store_on_premises_makes_the_bucket_that_the_settings_name() -> None:
    (settings,) = of_kind("ConfigMap")
    arguments = [
        a for pod in pods() for container in pod["spec"]["containers"] for a in container.get("args", [])
    ]
    assert settings["data"]["GLEFLD_ROOT"].replace("s3://", "-bucket=") in arguments


def test_the_service_mlflow_does_not_pass_for_mlflows_settings() -> None:
    """Kubernetes sets MLFLOW_PORT=tcp://... in every pod beside a Service of that name, unless told not to."""
    assert all(pod["spec"]["enableServiceLinks"] is False for pod in pods())


def test_service_accounts_are_terraforms_roles() -> None:
    roles = set(
        re.findall(r"^    (\w+) += \{ read =", (INFRA / "terraform/roles.tf").read_text(), re.MULTILINE)
    )
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    used = {pod["spec"]["serviceAccountName"] for pod in pods() if "serviceAccountName" in pod["spec"]}
    assert roles == accounts == used


@pytest.mark.parametrize("job", ["ingest", "train", "infer"])
def test_a_job_runs_with_its_own_role_only(job: str) -> None:
    (found,) = (found for found in of_kind("RayJob") if found["metadata"]["labels"][COMPONENT] == job)
    accounts = {part["serviceAccountName"] for part in walk(found) if "serviceAccountName" in part}
    assert accounts == {job}


def job_commands() -> Iterator[tuple[str, list[str]]]:
    """(job, its arguments) of each `python -m jobs.NAME` in infra/."""
    lines = [*readme_commands(), *(job["spec"]["entrypoint"] for job in of_kind("RayJob"))]
    for line in lines:
        if (found := re.search(r"python -m jobs\.(\w+) (.*)", line)) is not None:
            job, arguments = found[1], shlex.split(found[2])
            if job == "submit":
                assert arguments[-2] == "--address"
                yield "submit", []
                job, *arguments = arguments[:-2]
            yield job, arguments


def test_commands_are_jobs_and_their_options_exist() -> None:
    """Each command of the README and the RayJobs is parsed as the job itself does."""
    commands = list(job_commands())
    assert {"submit", "ingest", "train", "infer"} == {job for job, _ in commands}
    for job, arguments in commands:
        assert importlib.util.find_spec(f"jobs.{job}") is not None, f"there is no jobs.{job}"
        if job != "submit":
            module = importlib.import_module(f"jobs.{job}")
            module.parse(arguments) if job == "train" else tyro.cli(module.Options, args=arguments)


def test_a_wrong_option_would_be_seen() -> None:
    with pytest.raises(SystemExit):
        tyro.cli(importlib.import_module("jobs.ingest").Options, args=["--datset", "fld", "--source", "x"])


def test_paths_in_the_readme_exist() -> None:
    text = (INFRA / "README.md").read_text()
    named = set(re.findall(r"\binfra/[\w./-]*\w", text)) - {"infra/.env"}
    assert len(named) > 8
    for path in named:
        assert (ROOT / path).exists(), path
    table = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    for name in re.findall(r"`([\w./-]+)`", " ".join(table[:5])):
        assert (INFRA / name).exists(), name


def test_versions_agree_with_the_lock() -> None:
    """Ray's head, workers, drivers and what the manifests tell KubeRay must be one version."""
    locked = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert {cluster["spec"]["rayVersion"] for cluster in of_kind("RayCluster")} == {locked[1]}


def test_mlflow_is_served_alike_in_compose_and_kubernetes() -> None:
    """One server, twice described: the same options but for where it is reached and where artifacts lie."""
    (deployment,) = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["mlflow"]
    here, there = (
        {
            option
            for option in options
            if not option.startswith(("--artifacts-destination", "--allowed-hosts"))
        }
        for options in (container["args"], compose["command"])
    )
    assert here == there
    assert "--app-name=basic-auth" in here
    database = re.search(r"database_uri = (.*)", (INFRA / "mlflow-auth.ini").read_text())
    assert database is not None
    assert f"--backend-store-uri={database[1]}" in here
    secret = {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "PGPASSWORD"}
    assert secret <= {variable["name"] for variable in container["env"]}
    assert secret <= compose["environment"].keys()
