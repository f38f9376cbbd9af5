"""The Dockerfile, parsed."""

import shlex

import dockerfile

from tests.infra.rendered import INFRA

DOCKERFILE = INFRA / "Dockerfile"


def stages() -> dict[str, list[dockerfile.Command]]:
    """The commands of each stage, by its name."""
    found: dict[str, list[dockerfile.Command]] = {}
    for command in dockerfile.parse_file(str(DOCKERFILE)):
        if command.cmd.upper() == "FROM":
            current = found.setdefault(command.value[-1], [])
        current.append(command)
    return found


def run_steps(stage: str) -> list[list[str]]:
    """The simple commands of a stage's RUN steps."""
    steps = [command.value[0] for command in stages()[stage] if command.cmd.upper() == "RUN"]
    return [shlex.split(part) for step in steps for part in step.split("&&")]
