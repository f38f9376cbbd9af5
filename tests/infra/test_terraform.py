"""The Terraform module: formatted, and its own tests (infra/terraform/tests), with a mock of AWS."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.infra.rendered import INFRA


class Module:
    """A copy of the module that `terraform init` may write to."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("terraform") is None:
            pytest.skip("no terraform")
        self.folder = shutil.copytree(
            INFRA / "terraform", folder / "module", ignore=shutil.ignore_patterns(".terraform*")
        )
        self.environment = {**os.environ, "CHECKPOINT_DISABLE": "1"}
        # Providers from a folder on this machine if there is one, else from where they are published.
        mirrors = [path.parent for path in Path("/opt").glob("*/registry.terraform.io")]
        named = self.environment.get("TF_CLI_CONFIG_FILE", "")
        if mirrors and not Path(named).is_file():
            settings = folder / "terraform.rc"
            paths = "\n".join(f'filesystem_mirror {{ path = "{path}" }}' for path in mirrors)
            settings.write_text(f"provider_installation {{\n{paths}\n}}\n")
            self.environment["TF_CLI_CONFIG_FILE"] = str(settings)
        if (initialised := self.terraform("init", "-backend=false", "-input=false")).returncode != 0:
            assert "provider" in initialised.stderr, initialised.stderr
            pytest.skip("no provider hashicorp/aws, neither in a mirror nor to be fetched")

    def terraform(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["terraform", arguments[0], "-no-color", *arguments[1:]]
        return subprocess.run(
            command,
            check=False,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return Module(tmp_path_factory.mktemp("terraform"))


def test_module_is_formatted(module: Module) -> None:
    formatted = module.terraform("fmt", "-check", "-recursive")
    assert (formatted.returncode, formatted.stdout) == (0, "")


@pytest.mark.slow
def test_module_passes_its_tests_and_a_role_too_wide_does_not(module: Module) -> None:
    passed = module.terraform("test")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "10 passed, 0 failed" in passed.stdout
    roles = module.folder / "roles.tf"
    intended = roles.read_text()
    spoiled = intended.replace('write = ["runs", "models"]', 'write = ["runs", "models", "data"]')
    assert spoiled != intended
    tests = module.folder / "tests" / "module.tftest.hcl"
    settings, *runs = re.split(r"(?m)^(?=run )", (all_of_them := tests.read_text()))
    (of_roles,) = [run for run in runs if run.startswith('run "each_role_has_its_prefixes_only"')]
    roles.write_text(spoiled)
    tests.write_text(settings + of_roles)
    try:
        assert "a role may write where it should not" in module.terraform("test").stderr
    finally:
        roles.write_text(intended)
        tests.write_text(all_of_them)
