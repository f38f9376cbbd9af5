"""No secret in any file of infra/, and none that git would take."""

import math
import re
import subprocess
from collections import Counter

import pytest

from tests.infra.rendered import INFRA, ROOT

NAME = r"[\w.-]*(?:password|passwd|secret|token|access[_-]?key|api[_-]?key)[\w.-]*"
#: `name: value`, `name = value`, `name=value`, the value perhaps in quotes.
ASSIGNED = re.compile(rf"""(?i)["']?({NAME})["']?[ \t]*[:=][ \t]*["']?([^\s"'#,}}]+)""")
#: user:password@host
IN_URL = re.compile(r"://[^\s/:@]+:[^\s/@]+@")
#: What stands for a value and is none: a reference, a name of a Secret or key, a switch, a file.
NO_VALUE = re.compile(
    r"(?:\$[({\w]\S*|[&{\[(|>]\S*|<[A-Z-]+>|ray-token|mlflow(-client)?|token|false|true|required|auth_token|~/\S+|any|Equal"
    r"|PASSWORD-FILE\)?)$"
)
KEY = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|[A-Za-z0-9+/]{40,}|\b[0-9a-f]{32,}\b")


#: An image's digest, which is no secret.
DIGEST = re.compile(r"(?<=[\w.-]@)sha256:[0-9a-f]{64}\b")


def secrets_in(text: str) -> list[str]:
    text = DIGEST.sub("", text)
    found = [name for name, value in ASSIGNED.findall(text) if not NO_VALUE.match(value)]
    found += IN_URL.findall(text)
    return found + [key for key in KEY.findall(text) if entropy(key) > 3]


def entropy(text: str) -> float:
    """Bits a character: words and paths have less than keys."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def test_no_file_holds_a_secret() -> None:
    paths = [
        path
        for path in INFRA.rglob("*")
        if path.is_file() and path.name != ".env" and ".terraform" not in str(path)
    ]
    assert len(paths) > 20
    found = {
        str(path.relative_to(ROOT)): secrets for path in paths if (secrets := secrets_in(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "POSTGRES_PASSWORD: hunter22",
        'admin_password = "hunter22"',
        "--from-literal=auth_token=8f14e45fceea",
        "postgresql+psycopg2://mlflow:hunter22@postgres/mlflow",
        "key: AKIAABCDEFGHIJKLMNOP",
        "POSTGRES_PASSWORD: mlflow-Hunter2",
        "admin_password = anything123",
        "password: <hunter2>",
        "x@sha256: 3b5d5c3712955042212316173ccf37be800a4a3d2d9b5a1b",
        "x: wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY",
    ],
)
def test_a_secret_would_be_seen(text: str) -> None:
    assert secrets_in(text)


def test_git_ignores_what_holds_them() -> None:
    names = ["infra/.env", "infra/terraform/terraform.tfstate", "infra/terraform/.terraform/providers/x"]
    ignored = subprocess.run(
        ["git", "check-ignore", *names], check=False, cwd=ROOT, capture_output=True, text=True
    )
    if ignored.returncode == 128:
        pytest.skip("not a git clone")
    assert ignored.stdout.split() == names
