"""All of `params.yaml`: read, validated section by section and as a whole, with errors that name the key."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import (
    ValidationError,
    model_validator,
)

from sfd_cli.architecture import (
    require_halving,
    require_patches,
)
from sfd_cli.config.compressors import SemVAE, TextureVAE
from sfd_cli.config.data import Encoder, Features, Images, Latents, Paths, Runtime
from sfd_cli.config.elsewhere import called_here
from sfd_cli.config.metrics import Metrics
from sfd_cli.config.results import Curve, Fid, Foreign, Report, Sample
from sfd_cli.config.section import Section
from sfd_cli.config.transformers import DiT, LearnSchedule
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import read_yaml
from sfd_cli.laws import (
    LEARNED,
    laid_over,
)

DEFAULT_PARAMS = Path("params.yaml")


class Settings(Section):
    """All of `params.yaml`."""

    runtime: Runtime = Runtime()
    paths: Paths = Paths()
    images: Images = Images()
    encoder: Encoder = Encoder()
    features: Features = Features()
    semvae: SemVAE = SemVAE()
    texture_vae: TextureVAE = TextureVAE()
    latents: Latents = Latents()
    dit: DiT = DiT()
    guide: DiT | None = DiT()
    schedule: LearnSchedule = LearnSchedule()
    foreign: Foreign = Foreign()
    sample: Sample = Sample()
    fid: Fid = Fid()
    curve: Curve = Curve()
    report: Report = Report()
    metrics: Metrics = Metrics()

    @property
    def needs_encoder(self) -> bool:
        """Whether the latents need the patch tokens of the visual encoder."""
        return self.semvae.compressor != "none" or self.latents.store_features

    @property
    def grid(self) -> int:
        """Latent pixels along one side, of both streams."""
        return self.images.size // self.texture_vae.downsampling

    @model_validator(mode="after")
    def _grids_match(self) -> Self:
        """Encoder and both latents share one grid of tokens."""
        side, size = self.texture_vae.downsampling, self.images.size
        if size % side:
            below = size - size % side
            problem = f"{size} is not a multiple of the texture VAE's factor {side}"
            raise SettingError("images.size", problem, f"try {below or side} or {below + side}")
        with _within("texture_vae"):
            require_halving(size, self.texture_vae.decoder_channels)
        if size % self.encoder.tiles:
            problem = f"{self.encoder.tiles} do not divide images.size {size}"
            raise SettingError("encoder.tiles", problem, "change one of them")
        if self.needs_encoder:
            with _within("encoder"):
                found = self.encoder.grid
            if found != self.grid:
                wanted = self.grid * self.encoder.patch_size / self.encoder.tiles
                problem = (
                    f"the encoder gives a {found}x{found} grid but the texture latent is {self.grid}x{self.grid}"
                    f" (images.size {size} / factor {side})"
                )
                raise SettingError("encoder.image_size", problem, f"{wanted:g} would match")
        with _within("fid.encoder"):
            _ = self.fid.encoder.grid
        return self

    @model_validator(mode="after")
    def _models_match(self) -> Self:
        """What the transformers are trained for must be among what the latents hold."""
        for key, section in (("dit", self.dit), ("guide", self.guide)):
            if section is None:
                continue
            with _within(key):
                require_patches(self.grid, section.patch_size)
            if section.schedule == LEARNED and not self.schedule.learn:
                problem = f"{LEARNED!r}, but schedule.learn is false, so that none is learned"
                raise SettingError(f"{key}.schedule", problem, "set schedule.learn: true, or name a law")
            if section.repa == "stored" and not self.latents.store_features:
                problem = "'stored' needs latents.store_features: true"
                raise SettingError(f"{key}.repa", problem, "store them, or use repa: 'decoded'")
            if self.semvae.compressor == "none" and (section.semantics or section.repa == "decoded"):
                setting = "semantics: true" if section.semantics else "repa: decoded"
                problem = f"'none' leaves no semantic latent, but {key} has {setting}"
                raise SettingError("semvae.compressor", problem, "change one of them")
        elsewhere = self.paths.guide != Paths().guide
        if self.guide is None and self.sample.guidance == "autoguidance" and not elsewhere:
            problem = "'autoguidance' needs a guide, but guide is null"
            remedy = "give the section guide, or the path of a trained one as paths.guide"
            raise SettingError("sample.guidance", problem, remedy)
        return self


def load_settings(path: Path = DEFAULT_PARAMS, overrides: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Read `params.yaml`, lay the flags of `overrides[section][key]` over it, and validate.

    Where the working folder has no `params.yaml` the built-in defaults hold; another file must be there.

    Raises:
        UserError: the file is missing or not YAML, or a value is not acceptable; names the key, and the file where that
            has the value.
    """
    path = Path(path)
    if path != DEFAULT_PARAMS and not path.exists():
        raise UserError(path, "does not exist", "check the path")
    values = (read_yaml(path) if path.exists() else None) or {}
    if not isinstance(values, dict):
        raise UserError(path, f"holds a {type(values).__name__}", "give sections such as 'dit:' at the top level")
    for section, keys in (overrides or {}).items():
        present = values.get(section) or {}
        if not isinstance(present, dict):
            raise UserError(
                section, f"expected a section of keys in {path}, found {_SHORT.repr(present)}", "correct it"
            )
        values[section] = laid_over(present, keys)
    given = [f"{section}.{key}" for section, keys in (overrides or {}).items() for key in keys]
    return validate_settings(values, str(path), given)


def validate_settings(values: dict[str, Any], source: str, given: Collection[str] = ()) -> Settings:
    """Settings from plain values, which the file `source` holds, all but those `given` otherwise (`section.key`).

    Raises:
        UserError: a value is not acceptable; its subject is the key, its problem names `source` if that has the value.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        found = first_problem(error)
        mine = next((key for key in given if f"{found.subject}.".startswith(f"{key}.")), None)
        beside = f", with {', '.join(given)} given" if given else ""
        where = "" if mine else f" (in {source}{beside})"
        raise UserError(mine or found.subject, f"{found.problem}{where}", found.remedy) from None


def section_type(parent: type[Section], key: str) -> type[Section]:
    """The class of a nested section, which may be optional (`guide: null`)."""
    kind = parent.model_fields[key].annotation
    return next(part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, Section))


def first_problem(error: ValidationError, root: type[Section] = Settings) -> SettingError:
    """The first problem of a validation error of `root`, its key counted from there; says how many more there are."""
    first, *others = error.errors()
    cause = first.get("ctx", {}).get("error")
    more = f", and {len(others)} more problem{'s' if len(others) > 1 else ''}" if others else ""
    own, remedy = "", "correct it"
    if isinstance(cause, SettingError):
        own, problem, remedy = cause.subject, cause.problem, cause.remedy
    elif first["type"] == "extra_forbidden":
        problem, remedy = "no such setting", _nearest(root, first["loc"])
    elif cause is not None:
        problem = str(cause)
    else:
        problem = f"{first['msg'][0].lower()}{first['msg'][1:]}, found {_SHORT.repr(first['input'])}"
    key = ".".join(str(part) for part in (*first["loc"], own) if part != "")
    return SettingError(key, problem + more, remedy)


_SHORT = reprlib.Repr()
"""How values are shown that may be of any size, or refer to one another a billion times."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def _nearest(root: type[Section], loc: tuple[str | int, ...]) -> str:
    section = root
    for part in loc[:-1]:
        section = section_type(section, str(part))
    if elsewhere := called_here(str(loc[-1])):
        return f"it is called {' or '.join(elsewhere)} here"
    close = difflib.get_close_matches(str(loc[-1]), list(section.model_fields), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(section.model_fields)}"


@contextmanager
def _within(section: str) -> Iterator[None]:
    """Complete the keys of the errors of a section's own methods."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{section}.{error.subject}", error.problem, error.remedy) from None
