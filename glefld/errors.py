"""The two kinds of error that are not bugs: what a user can fix, and one row that cannot be used or answered."""


class UserError(ValueError):
    """Something the user caused and can fix; its one line says how.

    The command line shows it without a traceback. Any other ValueError is a bug in this program.
    """


class Mistake(UserError):
    """A UserError that only training's workers can find. All ranks raise it at the same time, never one alone."""


class BadInput(Exception):
    """One row that cannot be used or answered. It becomes a counted reject or an error row and ends no job."""

    def __init__(self, reason: str, detail: str) -> None:
        """reason: a constant that can be counted. detail: what is wrong, in words."""
        super().__init__(reason, detail)  # stored as args, which pickle passes to the constructor
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class BadPhoto(BadInput):
    """A photo that cannot be read or decoded; ``reason`` is one of the rejects' reasons."""


class BadBox(BadInput):
    """A box that shares no area with its photo: ``empty_box`` or ``box_outside_photo``."""


class BadAnswer(BadInput):
    """A garment for which the model answers with what is no number: ``not_finite``."""


class NoGarment(BadInput):
    """A photo in which a detector finds no garment: ``no_garment``."""


class BadRow(BadInput):
    """An annotation that cannot be used; ``reason`` is one of the rejects' reasons."""


def require_between(option: str, value: float, least: float, most: float | None = None) -> None:
    """UserError unless ``value`` is a number from ``least`` to ``most`` (no upper limit if None)."""
    if not value >= least or (most is not None and not value <= most):  # NaN is refused too
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise UserError(f"{option} must be {limits}, not {value}")
