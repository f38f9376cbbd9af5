"""What our process group gives a training worker, as Ray's own does."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch.distributed as dist
from ray.train.torch import TorchTrainer

from pipelines import ray_private
from pipelines.train.process_group import NodeAddressConfig


def variables(_: dict[str, Any]) -> list[dict[str, str]]:
    """What libraries read to find the device that is theirs, of each rank."""
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "RANK", "WORLD_SIZE")
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, {name: os.environ.get(name, "") for name in names})
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_workers_know_their_rank_by_torchs_variables(tmp_path: Path) -> None:
    trainer = TorchTrainer(
        variables,
        train_loop_config={},
        torch_config=NodeAddressConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="ray", storage_path=str(tmp_path)),
    )
    shared = {"LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "WORLD_SIZE": "2"}
    assert trainer.fit().return_value == [{"LOCAL_RANK": rank, "RANK": rank, **shared} for rank in ("0", "1")]


def test_a_group_that_is_left_has_ended(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    ray_private.leave_process_group(destroy=True)
    assert not dist.is_initialized()
