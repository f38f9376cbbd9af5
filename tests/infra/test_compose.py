"""The compose file and the cluster file of `ray up` against what would read them."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra.rendered import INFRA

COMPOSE = INFRA / "compose.yaml"


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def against_the_specification(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)


def test_compose_file_keeps_to_the_specification() -> None:
    checked = against_the_specification(COMPOSE)
    assert checked.returncode == 0, checked.stdout


def test_spoiled_compose_file_is_refused(tmp_path: Path) -> None:
    spoiled = compose()
    spoiled["services"]["mlflow"]["port"] = ["5000:5000"]
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(spoiled))
    checked = against_the_specification(tmp_path / "compose.yaml")
    assert checked.returncode != 0
    assert "'port' was unexpected" in checked.stdout


def test_compose_is_reached_from_this_machine_only() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8333:8333", "${MLFLOW_ADDRESS:-127.0.0.1}:5000:5000"]


def test_compose_does_not_start_without_its_passwords() -> None:
    """Each is demanded (`:?`), and the README makes exactly those."""
    text = (INFRA / "README.md").read_text()
    made = text.split("for name in ")[1].split("; do")[0].split()
    demanded = set()
    for service in compose()["services"].values():
        for value in service.get("environment", {}).values():
            if "$" in value:
                name, sep, message = value.removeprefix("${").partition(":?")
                assert sep, f"{value} would start empty"
                assert message
                demanded.add(name)
    assert demanded == set(made)


def test_compose_services_are_healthy_before_others_start() -> None:
    services = compose()["services"]
    assert all("healthcheck" in service for service in services.values())
    assert services["mlflow"]["depends_on"] == {
        name: {"condition": "service_healthy"} for name in ("postgres", "object-store")
    }


def test_compose_services_write_to_volumes_and_memory_only() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert "/tmp" in service["tmpfs"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert "/var/run/postgresql" in compose()["services"]["postgres"]["tmpfs"]


def cluster() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "ray-cluster.yaml").read_text())


def test_cluster_file_keeps_to_rays_schema() -> None:
    """As it stands, and as Ray completes it before it starts anything."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster(), schema)
    prepared = prepare_config(cluster())
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_spoiled_cluster_file_is_refused() -> None:
    spoiled = copy.deepcopy(cluster())
    spoiled["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(spoiled))


def test_cluster_of_ray_up_is_closed_and_scales_from_nothing_on_spot() -> None:
    found = cluster()
    assert found["provider"]["use_internal_ips"] is True
    for name, kind in found["available_node_types"].items():
        node = kind["node_config"]
        assert node["SecurityGroupIds"], "else Ray makes a group that lets everyone in on port 22"
        assert ("InstanceMarketOptions" in node) == (name != "head")
        assert kind.get("min_workers", 0) == 0
        role = "head" if name == "head" else "worker"
        assert node["IamInstanceProfile"] == {"Name": f"glefld-ray-up-{role}"}
    assert 'name     = "${var.name}-ray-up-${each.key}"' in (INFRA / "terraform/ray-up.tf").read_text()
    (head,) = (command for command in found["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    mounted = set(found["file_mounts"].values())
    assert mounted == {"~/.ray/auth_token", "~/.ray/glefld.env"}
    assert "RAY_AUTH_MODE=token" in (INFRA / "README.md").read_text().split("> ~/.ray/glefld.env <<END")[1]
