"""What only a GPU shows: `make test-gpu`. It needs PyTorch, DALI and pyarrow, but neither Ray nor MLflow."""

from collections.abc import Callable

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure, with the device's name, whether the test passes or not."""

    def say(figure: str) -> None:
        with capsys.disabled():
            print(f"\n{torch.cuda.get_device_name()}: {figure}")

    return say
