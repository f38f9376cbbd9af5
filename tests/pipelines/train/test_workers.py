"""How many workers train, and with what."""

import pytest

from glefld.errors import UserError
from pipelines.train.workers import loading_threads, parse_workers


@pytest.mark.parametrize(("text", "bounds"), [("1", (1, 1)), ("3", (3, 3)), ("1-4", (1, 4)), ("2-2", (2, 2))])
def test_worker_counts(text: str, bounds: tuple[int, int]) -> None:
    assert parse_workers(text) == bounds


@pytest.mark.parametrize("text", ["0", "-1", "4-1", "two", "1-", "1-2-3", ""])
def test_wrong_worker_counts_end_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--num-workers"):
        parse_workers(text)


@pytest.mark.parametrize(
    ("gpu", "assigned", "node", "threads"),
    [
        (False, 2, {"CPU": 16}, 2),
        (True, 1, {"CPU": 16, "GPU": 1}, 16),
        (True, 1, {"CPU": 26, "GPU": 4}, 6),
        (True, 8, {"CPU": 16, "GPU": 4}, 8),
        (True, 1, {"CPU": 2, "GPU": 8}, 1),
    ],
)
def test_a_gpus_share_of_the_machine_loads_for_it(
    gpu: bool, assigned: int, node: dict[str, float], threads: int
) -> None:
    assert loading_threads(gpu, assigned, node) == threads
