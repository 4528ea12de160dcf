"""What every section of `params.yaml` is: typed, checked once, unchangeable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from sfd_cli.errors import SettingError

LARGEST = 2**63 - 1
"""Seeds and counts go into 64-bit integers of PyTorch, NumPy and HDF5."""


class Section(BaseModel):
    """A block of `params.yaml`. Unknown keys are errors, numbers are finite; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, which pydantic would take for 1 and 0; and any integer."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            problem = f"expected another kind of value than {str(value).lower()}"
            raise SettingError("", problem, "put yes, no, on and off in quotes where they are words")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise SettingError("", "the number does not fit into 64 bits", f"use {LARGEST} at most")
        return value


def count_or_auto(what: str, least: int = 1) -> Callable[[Any], Any]:
    """A check of a field that is a number of something from `least` on, which a flag gives as a text, or `auto`."""

    def check(value: Any) -> Any:
        count = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        if count != "auto" and (type(count) is not int or count < least):
            raise SettingError("", f"{value!r} is no number of {what}", f"give one from {least} on, or auto")
        return count

    return check
