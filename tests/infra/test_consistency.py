"""Names that must agree between files which nothing else reads together."""

import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro
import yaml

from tests.infra.dockerfiles import stages
from tests.infra.rendered import (
    COMPONENT,
    INFRA,
    ROOT,
    everything,
    of_kind,
    pods,
    readme_blocks,
    readme_commands,
    walk,
)


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


def third_party_images() -> list[str]:
    """Each mention of an image that is not ours, in the Dockerfile, the manifests and the compose file."""
    bases = [commands[0].value[0] for commands in stages().values()]
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"].values()
    images = [container["image"] for pod in pods() for container in pod["spec"]["containers"]]
    return [image for image in (*bases, *(s["image"] for s in services), *images) if "glefld" not in image]


def test_other_peoples_images_are_named_by_tag_and_digest() -> None:
    """A tag can be moved. The same tag has the same digest everywhere."""
    found = set(third_party_images())
    assert {image.rpartition(":")[0].rpartition("@")[0].partition(":")[0] for image in found} == {
        *("python", "nvidia/cuda", "postgres", "chrislusf/seaweedfs")
    }
    for image in found:
        assert re.fullmatch(r"[\w/]+:\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", image), image
    assert len({image.partition("@")[0] for image in found}) == len(found)


def test_the_readmes_loop_writes_the_registrys_digests(tmp_path: Path) -> None:
    """As it stands, but that a script answers in the registry's place: into every file, for every image."""
    (loop,) = (block for block in readme_blocks() if "imagetools inspect" in block)
    shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns(".terraform", ".env"))
    (tmp_path / "docker").write_text(
        '#!/bin/sh\ncat > /dev/null; printf %s "$6" | sha256sum | sed "s/^/sha256:/; s/ .*//"\n'
    )
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", loop], check=True, cwd=tmp_path, env={"PATH": path}, timeout=60)
    for image in set(third_party_images()):
        name, _, digest = image.partition("@")
        written = f"{name}@sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        for file in (path for path in INFRA.rglob("*") if path.is_file() and ".terraform" not in path.parts):
            if image in (before := file.read_text()):
                after = (tmp_path / "infra" / file.relative_to(INFRA)).read_text()
                assert after.count(written) == before.count(image)
                assert digest not in after


def test_what_the_readme_makes_for_ray_up_is_its_owners_alone(tmp_path: Path) -> None:
    """From the start, under an ordinary umask, also where an earlier one made it readable."""
    (block,) = (block for block in readme_blocks() if "get-auth-token" in block)
    commands = block.partition("\n)\n")[0] + "\n)"
    (tmp_path / "PASSWORD-FILE").write_text("from a file")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    made = tmp_path / ".ray"
    watched = f"umask 022; {commands}"
    for earlier in (False, True):
        if earlier:
            for file in made.iterdir():
                file.chmod(0o644)
            # Checked as it is written: a later chmod would come too late.
            watched = watched.replace(
                "MLFLOW_TRACKING_PASSWORD=", "MODE=$(stat -c %a ~/.ray/*)\nMLFLOW_TRACKING_PASSWORD="
            )
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        subprocess.run(["bash", "-c", watched], check=True, cwd=tmp_path, env=environment, timeout=120)
        assert {file.name for file in made.iterdir()} == {"auth_token", "glefld.env"}
        assert {file.stat().st_mode & 0o777 for file in made.iterdir()} == {0o600}
    assert "MODE=600\n600\n" in (made / "glefld.env").read_text()


def test_what_pods_take_their_settings_from_is_there() -> None:
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind("ConfigMap")}
    del maps["glefld-dashboard"]  # for Grafana, which finds it by its label
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
    (settings,) = (found for found in of_kind("ConfigMap") if found["metadata"]["name"] == "settings")
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
    """(job, its arguments) of each `glefld NAME` and `python -m jobs.NAME` in infra/."""
    lines = [*readme_commands(), *(job["spec"]["entrypoint"] for job in of_kind("RayJob"))]
    for line in lines:
        if (found := re.search(r"(?:glefld |python -m jobs\.)(\w+) (.*)", line)) is not None:
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
