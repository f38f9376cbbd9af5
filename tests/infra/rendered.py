"""What the files of infra/ come to: manifests as kubectl renders them, commands as the README gives them."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
#: Everything that `kubectl apply -k` is meant for.
TARGETS = ["", "on-premises", "monitoring", "jobs/ingest", "jobs/train", "jobs/infer"]
COMPONENT = "app.kubernetes.io/component"

Document = dict[str, Any]


@functools.cache
def render(target: str) -> list[Document]:
    """The manifests of one of TARGETS."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl, which renders the manifests")
    command = ["kubectl", "kustomize", str(KUBERNETES / target)]
    rendered = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


def everything() -> list[Document]:
    return [document for target in TARGETS for document in render(target)]


def of_kind(kind: str) -> list[Document]:
    found = [document for document in everything() if document["kind"] == kind]
    assert found, f"there is no {kind}"
    return found


def walk(value: Any) -> Iterator[Document]:
    """Each mapping within, the outer ones first."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from walk(part)
    elif isinstance(value, list):
        for part in value:
            yield from walk(part)


def pods() -> list[Document]:
    """Each pod's template (metadata, spec), with the labels that KubeRay adds to Ray's heads."""
    found = []
    for document in everything():
        for part in walk(document):
            for name, template in part.items():
                if name in ("template", "submitterPodTemplate") and "containers" in template.get("spec", {}):
                    labels = dict(template["metadata"]["labels"])
                    if "rayStartParams" in part and "groupName" not in part:
                        labels["ray.io/node-type"] = "head"
                    found.append(
                        {"labels": labels, "spec": template["spec"], "of": document["metadata"]["name"]}
                    )
    return found


def readme_blocks() -> list[str]:
    return re.findall(r"^```\n(.*?)^```", (INFRA / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def readme_commands() -> list[str]:
    """The lines of the README's blocks, those that end in a backslash joined."""
    blocks = readme_blocks()
    return [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
