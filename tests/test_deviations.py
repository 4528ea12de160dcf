"""Every number of the reference fixtures against ours, and the page that states how far apart they are."""

from __future__ import annotations

import re

import pytest
from deviations import CONDITIONED, ILL_CONDITIONED, INPUTS, OURS, PAGE, Deviation, every, of_file, outputs
from reference_files import FOLDER, contents

STATED = {
    "dit_sfd": 17,
    "dit_sync": 11,
    "dit_plain": 9,
    "semvae": 4,
    "texture_vae_f16": 3,
    "dinov2_reg": 2,
    "center_crop": 4,
}
# Two dozen convolutions in a row.
COARSER_THAN_USUAL = "texture_vae_f16"


def deviations(file: str) -> list[Deviation]:
    return [deviation for deviation in every() if deviation.file == file]


@pytest.mark.parametrize("file", OURS)
def test_every_quantity_is_the_references_within_its_tolerance(file: str) -> None:
    beyond = [deviation for deviation in deviations(file) if not deviation.within and not deviation.ill_conditioned]
    assert beyond == []


def test_the_one_sample_outside_its_tolerance_is_within_once_the_reference_step_is_given() -> None:
    by_name = {deviation.quantity: deviation for deviation in deviations(ILL_CONDITIONED[0])}
    assert by_name[CONDITIONED].largest < 1e-4
    assert by_name[ILL_CONDITIONED[1]].largest < 0.1


def test_networks_and_losses_agree_ten_times_better_than_they_must() -> None:
    networks = [deviation for deviation in every() if not deviation.quantity.startswith(("sample.", "kl"))]
    assert [d for d in networks if d.file != COARSER_THAN_USUAL and d.largest > 1e-5] == []


def test_every_file_is_compared_with_all_that_it_states() -> None:
    assert set(OURS) == {path.stem for path in FOLDER.iterdir()}
    assert {file: len(outputs(file)) for file in OURS} == STATED
    for file in OURS:
        compared = {deviation.quantity for deviation in deviations(file)}
        assert compared - {CONDITIONED} == set(outputs(file))


@pytest.mark.parametrize("file", OURS)
def test_what_is_listed_as_an_input_is_there(file: str) -> None:
    inputs = {key for key in contents(file) if re.fullmatch(INPUTS[file], key)}
    assert inputs
    assert not inputs & set(outputs(file))


def test_a_quantity_that_we_do_not_compute_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OURS, "semvae", dict)
    with pytest.raises(KeyError):
        list(of_file("semvae"))


def test_the_page_lists_every_file_and_quantity() -> None:
    summary, details = PAGE.read_text().split("## All quantities")
    assert re.findall(r"^\| `([^`]+)` \|", summary, re.MULTILINE) == list(OURS)
    sections = re.split(r"^### `([^`]+)`$", details, flags=re.MULTILINE)[1:]
    listed = {
        file: re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
        for file, section in zip(sections[::2], sections[1::2], strict=True)
    }
    assert listed == {file: [deviation.quantity for deviation in deviations(file)] for file in OURS}
