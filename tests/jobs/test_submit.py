"""What a submission passes on is what the documentation says."""

import re
from pathlib import Path

from jobs.submit import PASSED

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster.md"


def test_the_documentation_names_every_variable_that_is_passed_on() -> None:
    listed = re.search(r"only these variables are passed on:(.*?)\.\s+A URL", CLUSTER.read_text(), re.DOTALL)
    assert listed is not None
    named = set(re.findall(r"`([A-Z0-9_*]+)`", listed[1]))
    assert named == {
        name.replace(".*", "*")
        for pattern in PASSED.pattern.split("|")
        for name in {pattern.replace("(_S3)?", ""), pattern.replace("(_S3)?", "_S3")}
    }
