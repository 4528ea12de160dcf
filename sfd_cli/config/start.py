"""What a transformer's training starts from, a part of its section."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sfd_cli.config.section import Section
from sfd_cli.errors import SettingError


def _old_class(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SettingError("", f"{value!r} is neither the number nor the name of a class", "give one of both")
    return value


OldClasses = Annotated[list[Annotated[int | str, BeforeValidator(_old_class)]], Field(min_length=1)]
"""Classes of another transformer, by their numbers or names."""


class Start(Section):
    """The weights to start from, and what of them holds for other classes, another grid and other images."""

    init: str | None = Field(
        None, description="start from these weights: a model folder, a reference .pt, a name from `sfd weights list`"
    )
    init_classes: dict[str, OldClasses] = Field(
        {},
        description="old classes of `init`, by number or name, of whose rows in its label table a new class takes the"
        " mean, as in {cat: [281, 282]}; others keep the row of their name, or begin as the null label",
    )
    statistics: Literal["init", "own"] | None = Field(
        None,
        description="mean and std that normalise the latents: init: those that `init` was trained with; own: those of"
        " the training set; unset: init where there is an `init`, else own",
    )
    init_learning_rate_scale: float = Field(
        1.0, gt=0, description="learning rate of the weights that come from `init`, over that of those made anew"
    )

    @model_validator(mode="after")
    def _inherits(self) -> Self:
        """What is about `init` needs one."""
        if self.init is None:
            for key in ("init_classes", "init_learning_rate_scale"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    problem = f"{getattr(self, key)} is about the weights to start from, but there is no init"
                    raise SettingError(key, problem, "give init, or leave this out")
            if self.statistics == "init":
                raise SettingError("statistics", "'init' needs an init to take them from", "give init, or use own")
        return self
