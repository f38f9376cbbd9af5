"""Each stage in one process, for hundredths of a second: what it measures, and what it is compared with."""

import math

import pytest
import torch

from pipelines.benchmark import stages
from pipelines.benchmark.material import Material
from pipelines.benchmark.stages import Nothing, loop_rate, measure, model_rate, resident_rate
from tests import dots
from tests.forks import forks
from tests.pipelines.benchmark.bench import tiny, write_material

#: By stage, its measurements, and whether each has a ceiling and a peer.
MEASURED = {
    "read": {"read": (True, False)},
    "loader": {
        "loader": (True, True),
        "loader/mirror": (True, True),
        "loader/evaluation": (True, True),
    },
    "step": {"step": (True, True)},
    "predict": {
        "predict": (True, True),
        "predict/data": (True, False),
        "predict/onnx": (False, True),
    },
    "shard": {"shard": (True, True)},
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    forks()  # from which a DataLoader's processes come too
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("stage", MEASURED)
def test_a_stage_measures_what_it_is_compared_with(stage: str, material: Material) -> None:
    found = measure(stage, tiny(material))
    assert {n: (m.ceiling is not None, m.peer is not None) for n, m in found.items()} == MEASURED[stage]
    for measurement in found.values():
        for figures in (measurement.ours, measurement.ceiling, measurement.peer, *measurement.also.values()):
            assert figures is None or (len(figures) == 2 and all(0 < f < math.inf for f in figures))


def test_without_peers_none_is_measured(material: Material) -> None:
    found = measure("step", tiny(material, peers=False))
    assert found["step"].peer is None
    assert set(found["step"].also) < {"ours in fp32, images/s", "ours in bf16, images/s"}


def test_the_ceilings_are_those_of_both_types_and_of_the_codec(material: Material) -> None:
    found = measure("ceilings", tiny(material))
    assert set(found) == {
        "ceilings/matrix product, fp32",
        "ceilings/matrix product, bf16",
        "ceilings/convolution, fp32",
        "ceilings/convolution, bf16",
        "ceilings/libjpeg-turbo decodes, 1 threads",
    }
    assert all(m.ours and min(m.ours) > 0 for m in found.values())


@pytest.mark.parametrize("rate", [resident_rate, loop_rate, model_rate])
def test_what_whole_jobs_are_compared_with(rate: object, material: Material) -> None:
    assert rate(tiny(material)) > 0  # type: ignore[operator]


def test_a_stage_uses_the_threads_that_it_was_given(material: Material) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measure("read", tiny(material))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_no_model_answers_with_as_many_maps_as_there_are_images() -> None:
    nothing = Nothing(dots.network(), torch.zeros(4, 2, 8, 8))
    assert nothing(torch.zeros(3, 3, 64, 64)).heatmaps.shape == (3, 2, 8, 8)


def test_the_first_steps_do_not_count_where_there_are_later_ones() -> None:
    assert stages.steady([1.0, 5.0, 6.0, 7.0]) == 6
    assert stages.steady([1.0]) == 1
