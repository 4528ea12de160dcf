"""A study as its file says it: a question, settings for all runs, rows of settings that differ, and seeds."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sfd_cli.config import DEFAULT_PARAMS, Fid, Section, Settings, first_problem, validate_settings
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import read_yaml
from sfd_cli.presets import list_presets, preset_text
from sfd_cli.studies.layers import dotted, laid, merged, nested

STUDIES = Path("studies")
FILE = "study.yaml"
SEEDED = ("dit", "guide")
# What pairs runs: the same in all rows.
PAIRED = tuple(f"{section}.seed" for section in SEEDED)


class Study(Section):
    """The contents of `study.yaml`. Keys of settings are those of params.yaml, nested or with dots: dit.steps."""

    title: str = Field(description="heading of the study's page")
    question: str = Field(description="what it asks, a sentence")
    dataset: str = Field("", description="what the images are, for tables and results")
    base: str | None = Field(None, description="settings to begin with: a file or a preset; unset: params.yaml here")
    set: dict[str, Any] = Field({}, description="settings of all runs, over those of `base`")
    vary: dict[str, dict[str, Any]] = Field({}, description="rows: name -> settings that make the difference")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="setting -> values; every row with every combination of them"
    )
    baseline: str | None = Field(
        None,
        description="the row that others are compared with; unset: the first. A name in `vary` where there is a grid:"
        " the row of that name with the same values of the grid",
    )
    explain: dict[str, Any] = Field(
        {}, description="settings of the probe of `sfd study explain`, over those of the row that it is for"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0, 1, 2, 3], min_length=1, description="seeds of transformer and guide; the samples keep theirs"
    )
    score: str = Field(
        "fd_dinov2",
        description="a number of fid.json; fd_dinov2 is of the DINOv2 in fid.encoder, which results name",
    )

    @field_validator("vary", mode="before")
    @classmethod
    def _nothing_is_a_row_too(cls, value: Any) -> Any:
        """`name:` with nothing behind it is a row without settings of its own."""
        return {key: keys or {} for key, keys in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _names_can_be_told(self) -> Study:
        if not self.vary and not self.grid:
            raise SettingError("vary", "has no row", "give rows, or a grid")
        for name in self.vary:
            if not name.strip() or any(sign in name for sign in ",|\n"):
                raise SettingError("vary", f"{name!r} is no name of a row", "leave commas and bars out of it")
        if len(dict.fromkeys(self.seeds)) < len(self.seeds):
            raise SettingError("seeds", f"{self.seeds} has one twice", "leave it out")
        if self.baseline is not None and self.baseline not in (*self.rows, *self.vary):
            raise SettingError("baseline", f"there is no row {self.baseline!r}", _nearest(self.baseline, self.rows))
        return self

    @model_validator(mode="after")
    def _pairs_stay_pairs(self) -> Study:
        rows = {f"vary.{name}": settings for name, settings in self.rows.items()}
        common = {"set": nested(self.set), "explain": nested(self.explain)}
        for place, settings in {**common, **rows}.items():
            for key in dotted(settings):
                if key in (PAIRED if place in common else (*PAIRED, "sample.seed")):
                    problem = f"{key} is not for a row to choose, for rows are compared seed by seed"
                    raise SettingError(place, problem, "give `seeds`")
        return self

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Settings by row, nested: those of `vary`, each with every combination of the grid."""
        return {
            _row(name, values): merged(nested(settings), nested(values))
            for name, settings in (self.vary or {"": {}}).items()
            for values in self._combinations()
        }

    @cached_property
    def partners(self) -> dict[str, str]:
        """The row that each row is paired with, itself of those that others are paired with."""
        if self.baseline is None or self.baseline in self.rows:
            return dict.fromkeys(self.rows, self.baseline or next(iter(self.rows)))
        return {
            _row(name, values): _row(self.baseline, values) for name in self.vary for values in self._combinations()
        }

    @property
    def compared_with(self) -> str:
        """What the rows that the others are paired with are called."""
        return self.baseline or next(iter(self.rows))

    def _combinations(self) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    @property
    def varied(self) -> list[str]:
        """Dotted keys of all settings in which rows differ."""
        return list(dict.fromkeys(key for row in self.rows.values() for key in dotted(row)))


def _row(name: str, values: Mapping[str, Any]) -> str:
    """What a row with these values of the grid is called."""
    return " ".join(filter(None, [name, *(f"{key}={str(value).replace(',', '')}" for key, value in values.items())]))


def key_of(score: str, options: Fid) -> str:
    """The number of `fid.json` that a study calls `score`: its `fd_dinov2` leaves out which DINOv2 `fid.encoder` is.

    Where EDM2's FD-DINOv2 is computed (`fid.dinov2`) the name is that one's.
    """
    name = options.encoder.short_name
    if options.dinov2 != "none" or name in score or not name.startswith("dinov2"):
        return score
    return score.replace("_dinov2", f"_{name}", 1)


def settings_of(
    study: Study, row: str, seed: int, base: dict[str, Any], source: object, over: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of one run; weights, data order, times and noise are drawn alike in all rows of a seed.

    Args:
        study: the study.
        row: its row.
        seed: of transformer and guide.
        base: what `read_base` gave.
        source: the study's file, for messages.
        over: nested settings over those of the row.

    Raises:
        UserError: they do not hold; names the key and the row.
    """
    values = laid(laid(laid(base, nested(study.set)), study.rows[row]), over or {})
    seeds = {section: {"seed": seed} for section in SEEDED if values.get(section, {}) is not None}
    return validate_settings(merged(values, seeds), f"row {row!r} of {source}")


def read_base(study: Study, params: Path | None) -> dict[str, Any]:
    """The plain values that a study begins with: `params` if it is given, else its base, else params.yaml here.

    Raises:
        UserError: there is no such file or preset, or it is not YAML.
    """
    named = study.base if params is None else str(params)
    if named is None:
        return _mapping(DEFAULT_PARAMS) if DEFAULT_PARAMS.exists() else {}
    if params is not None or Path(named).suffix in (".yaml", ".yml"):
        if not Path(named).exists():
            raise UserError("base" if params is None else "--params", f"{named} does not exist", "check the path")
        return _mapping(Path(named))
    if named not in list_presets():
        raise UserError("base", f"no preset is called {named!r}", _nearest(named, list_presets()))
    return dict(yaml.safe_load(preset_text(named)))


def list_studies() -> dict[str, Path]:
    """The studies of this project by name: `studies/NAME/study.yaml` and `studies/NAME.yaml`."""
    files = [*STUDIES.glob("*.yaml"), *STUDIES.glob(f"*/{FILE}")]
    found = {path.parent.name if path.name == FILE else path.stem: path for path in files if path.name[0] != "."}
    return dict(sorted(found.items()))


def open_study(name: str) -> tuple[Study, Path]:
    """A study by name, and its file.

    Raises:
        UserError: there is none of this name, or its file does not hold; names the key.
    """
    known = list_studies()
    if name not in known:
        raise UserError(name, "no study has this name", _nearest(name, known, f"write {STUDIES / name / FILE}"))
    return read_study(known[name]), known[name]


def read_study(path: Path) -> Study:
    """A study from its file.

    Raises:
        UserError: it is not YAML, or a key does not hold.
    """
    try:
        return Study.model_validate(_mapping(path))
    except ValidationError as error:
        found = first_problem(error, Study)
        raise UserError(f"{path}: {found.subject}" if found.subject else path, found.problem, found.remedy) from None


def chosen(flag: str, wanted: Iterable[Any] | None, known: Iterable[Any]) -> list[Any]:
    """Those of `known` that are wanted, in the order of `known`; all where nothing is said.

    Raises:
        UserError: something is wanted that there is not.
    """
    known = list(known)
    if wanted is None:
        return known
    for name in (wanted := list(wanted)):
        if name not in known:
            raise UserError(flag, f"the study has no {name!r}", _nearest(str(name), map(str, known)))
    return [name for name in known if name in wanted]


def _mapping(path: Path) -> dict[str, Any]:
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(path, f"holds a {type(values).__name__}", "give keys at the top level")
    return values


def _nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}" if names else otherwise
