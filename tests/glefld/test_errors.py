"""The errors that are no bugs: what is one, and that a row's error comes back whole from another process."""

import copy
import pickle

import pytest

from glefld.errors import (
    BadAnswer,
    BadBox,
    BadInput,
    BadPhoto,
    BadRow,
    NoGarment,
    UserError,
    require_between,
)


def test_a_users_mistake_is_a_value_error() -> None:
    """So a caller that knows nothing of this program can catch it; not every ValueError is a user's."""
    assert issubclass(UserError, ValueError)
    assert not isinstance(ValueError(), UserError)


def test_a_bad_row_is_no_mistake_that_ends_a_job() -> None:
    assert not issubclass(BadInput, ValueError)


@pytest.mark.parametrize("kind", [BadInput, *BadInput.__subclasses__()])
def test_a_bad_input_survives_a_pickle(kind: type[BadInput]) -> None:
    """Its reason is counted and its detail shown on the other side."""
    error = kind("empty_box", "box 1 2 1 4")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (again.reason, again.detail) == ("empty_box", "box 1 2 1 4")
        assert str(again) == str(error) == "empty_box: box 1 2 1 4"


def test_every_kind_of_bad_input_is_tested() -> None:
    assert set(BadInput.__subclasses__()) == {BadPhoto, BadBox, BadAnswer, BadRow, NoGarment}


@pytest.mark.parametrize("value", [1, 2.5, 3])
def test_a_number_within_its_limits_is_taken(value: float) -> None:
    require_between("--rows", value, 1, 3)


@pytest.mark.parametrize(
    ("value", "most", "message"),
    [
        (0, None, "--rows must be at least 1, not 0"),
        (4, 3, "--rows must be between 1 and 3, not 4"),
        (float("nan"), 3, "--rows must be between 1 and 3, not nan"),
        (float("nan"), None, "--rows must be at least 1, not nan"),
    ],
)
def test_a_number_out_of_its_limits_is_named(value: float, most: float | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        require_between("--rows", value, 1, most)
    assert str(error.value) == message
