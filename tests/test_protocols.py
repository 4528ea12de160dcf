"""Protocols by name: what each gives the section `sample`, and what goes over it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from sfd_cli.config import Sample, load_settings
from sfd_cli.pipeline.arguments import as_sample
from sfd_cli.pipeline.protocol import differences, effective_settings, protocol_record
from sfd_cli.protocols import PROTOCOL_KEYS, SIT
from sfd_cli.tables import PROTOCOLS

PRESETS = sorted((Path(__file__).parents[1] / "sfd_cli" / "presets").glob("*.yaml"))
# Read off the public code once more, not off the records.
PUBLISHED: dict[str, dict[str, Any]] = {
    "sfd": {"class_labels": "balanced", "solver": "dopri5", "rtol": 1e-3, "atol": 1e-6, "images_at_once": 4}
    | {"time_grid": "one-span", "guidance_channels": None, "interval_start": 0, "to_uint8": "round"},
    "lightningdit": {"class_labels": "random", "solver": "euler", "steps": 249, "shift": 0.3, "guidance_channels": 3}
    | {"interval_start": 0.125, "interval_end": 1, "to_uint8": "round"},
    "sit": {"class_labels": "random", "solver": "euler_maruyama", "steps": 250, "last_step": 0.04}
    | {"guidance_channels": 3, "interval_start": 0, "interval_end": 1, "to_uint8": "round"},
    "repa": {"class_labels": "random", "solver": "euler_maruyama", "steps": 250, "last_step": 0.04}
    | {"guidance_channels": None, "interval_start": 0.3, "interval_end": 1, "to_uint8": "truncate"},
    "redi": {"class_labels": "random", "solver": "euler_maruyama", "steps": 250, "last_step": 0.04}
    | {"guidance_channels": None, "scale_semantic": 1, "scale_texture": None, "to_uint8": "round"},
}


def test_every_protocol_gives_what_its_code_does() -> None:
    assert list(PROTOCOLS) == list(PUBLISHED)
    for name, expected in PUBLISHED.items():
        sample, protocol = Sample(protocol=name), PROTOCOLS[name]
        assert {key: getattr(sample, key) for key in expected} == expected
        assert (sample.precision, sample.weights, sample.num_images) == ("fp32", "ema", 50_000)
        assert (protocol.images, protocol.reference) == (50_000, "adm_imagenet256")
        assert "/" in protocol.source.split(":")[0]
        assert ".py" in protocol.source


def test_a_record_is_frozen_and_decides_keys_that_there_are() -> None:
    with pytest.raises(FrozenInstanceError):
        SIT.steps = 10  # type: ignore[misc]
    assert set(PROTOCOL_KEYS) < Sample.model_fields.keys()
    assert Sample(protocol="sit").scale == Sample().scale, "how strongly is guided is the figure's"


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_beside_it_goes_over_it_and_nothing_else_moves(name: str) -> None:
    own = {
        "class_labels": "random" if name == "sfd" else "balanced",
        "solver": "heun",
        "steps": 7,
        "time_grid": "one-span",
        "shift": 0.5,
        "rtol": 0.1,
        "atol": 0.2,
        "images_at_once": 3,
        "last_step": 0.1,
        "guidance_channels": 2,
        "scale_semantic": 1.25,
        "interval_start": 0.05,
        "interval_end": 0.9,
        "to_uint8": "truncate" if name != "repa" else "round",
        "precision": "bf16",
    }
    assert own.keys() == set(PROTOCOL_KEYS)
    plain = Sample(protocol=name)
    for key, value in own.items():
        sample = Sample.model_validate({"protocol": name, key: value})
        assert getattr(sample, key) == value
        assert sample.model_copy(update={key: getattr(plain, key)}) == plain
    assert Sample.model_validate({"protocol": name} | own) == Sample(**own).model_copy(update={"protocol": name})


def test_null_that_is_written_is_written() -> None:
    assert Sample.model_validate({"protocol": "sit", "guidance_channels": None}).guidance_channels is None
    assert Sample.model_validate({"protocol": None, "steps": 9}) == Sample(steps=9)


def test_settings_that_were_resolved_stay_as_they_are() -> None:
    sample = Sample.model_validate({"protocol": "sit", "guidance_channels": None, "steps": 30})
    assert Sample.model_validate(sample.model_dump()) == sample
    assert Sample.model_validate_json(sample.model_dump_json()) == sample


@pytest.mark.parametrize(("wrong", "nearest"), [("sitt", "sit"), ("lightning", "lightningdit")])
def test_an_unknown_protocol_is_refused_with_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ValidationError, match=f"did you mean '{nearest}'"):
        Sample(protocol=wrong)
    with pytest.raises(ValidationError):
        Sample.model_validate({"protocol": ["sit"]})


def test_a_flag_takes_the_place_of_what_the_file_says_of_the_protocol_and_of_nothing_else(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    written = {"protocol": "sfd", "time_grid": "phases", "steps": 12, "scale": 2.5, "num_images": 30, "seed": 4}
    params.write_text(yaml.safe_dump({"sample": written}))
    by_file = load_settings(params).sample
    assert (by_file.solver, by_file.steps, by_file.time_grid) == ("dopri5", 12, "phases")
    by_flag = load_settings(params, {"sample": {"protocol": "repa", "last_step": 0.02}}).sample
    assert by_flag == Sample(protocol="repa", last_step=0.02, scale=2.5, num_images=30, seed=4)
    other = load_settings(params, {"sample": {"steps": 13}}).sample
    assert other == by_file.model_copy(update={"steps": 13})


def test_a_call_of_the_pipeline_goes_over_its_own_settings_likewise() -> None:
    own = Sample(protocol="sit", guidance="cfg", scale=1.5, to_uint8="truncate").model_dump()
    assert as_sample(own, {"protocol": "repa"}) == Sample(protocol="repa", guidance="cfg", scale=1.5)
    assert as_sample(own, {"steps": 20}).steps == 20
    assert as_sample(own, {"steps": 20}).to_uint8 == "truncate"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_with_a_protocol_samples_as_it_did_when_it_named_the_solver(path: Path) -> None:
    written = yaml.safe_load(path.read_text())["sample"]
    sample = load_settings(path).sample
    if "protocol" not in written:
        assert sample.protocol is None
        return
    beside = {key: value for key, value in written.items() if key not in {"time_grid", "images_at_once", "protocol"}}
    before = beside | {"solver": "dopri5", "precision": "fp32"}  # which went without saying then
    assert effective_settings(sample) == effective_settings(Sample.model_validate(before))
    assert sample.protocol == "sfd"


def _rank(key: str) -> int:
    return PROTOCOL_KEYS.index(key.removeprefix("sample."))


def _told(sample: Sample, name: str, images: int = 50_000, reference: str = "adm_imagenet256") -> list[str]:
    return differences(name, protocol_record(effective_settings(sample)), images, reference)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("guidance", ["none", "cfg"])
def test_samples_by_a_protocol_differ_from_it_in_nothing(name: str, guidance: str) -> None:
    sample = Sample.model_validate({"protocol": name, "guidance": guidance, "scale": 2.4})
    assert _told(sample, name) == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"steps": 100}, ["sample.steps"]),
        ({"class_labels": "balanced", "to_uint8": "round"}, ["sample.class_labels", "sample.to_uint8"]),
        ({"interval_start": 0.0}, ["sample.interval_start"]),
        ({"guidance_channels": 3}, ["sample.guidance_channels"]),
        ({"precision": "bf16"}, ["sample.precision"]),
        # What one of both does not read is no difference beside that of the solvers.
        ({"solver": "dopri5"}, ["sample.solver"]),
        ({"guidance": "none", "guidance_channels": 3, "interval_start": 0.0}, []),
        ({"num_images": 10, "seed": 3, "batch_size": 2, "delta_t": 0.1}, []),
    ],
)
def test_a_difference_is_one_sentence(changes: dict[str, Any], keys: list[str]) -> None:
    sample = Sample.model_validate({"protocol": "repa", "guidance": "cfg", "scale": 1.8} | changes)
    sentences = _told(sample, "repa")
    assert len(sentences) == len(keys)
    for sentence, key in zip(sentences, sorted(keys, key=_rank), strict=True):
        assert key in sentence
        assert sentence.endswith(".")


def test_number_of_images_and_reference_are_of_the_protocol_too() -> None:
    few = _told(Sample(protocol="sit"), "sit", images=900, reference="the training images")
    assert [("adm_imagenet256" in few[0], "the training images" in few[0])] == [(True, True)]
    assert "50000" in few[1]
    assert "900" in few[1]
    assert len(few) == 2


def test_a_presets_departures_from_the_paper_are_told() -> None:
    by_preset = load_settings(next(path for path in PRESETS if path.stem == "imagenet256-xl"))
    sentences = _told(by_preset.sample, "sfd", reference=str(by_preset.fid.reference))
    assert len(sentences) == 2
    assert "one-span" in sentences[0]
    assert "images_at_once is 4; here it is 16" in sentences[1]


def test_a_protocol_from_outside_is_a_name_like_the_others() -> None:
    PROTOCOLS.add("quick", replace(SIT, source="here: nowhere.py", solver="euler", steps=5, last_step=None))
    try:
        assert (Sample(protocol="quick").solver, Sample(protocol="quick").steps) == ("euler", 5)
    finally:
        PROTOCOLS.remove("quick")
