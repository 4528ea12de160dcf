"""What every section of `params.yaml` is: typed, checked once, unchangeable."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from sfd_cli.errors import SettingError


class Section(BaseModel):
    """A block of `params.yaml`. Unknown keys are errors; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, and pydantic would take them for 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            problem = f"expected another kind of value than {str(value).lower()}"
            raise SettingError("", problem, "put yes, no, on and off in quotes where they are words")
        return value
