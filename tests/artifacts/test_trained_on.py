"""A latent store is told apart by its statistics, or by the record of the model that was trained on it."""

from __future__ import annotations

from pathlib import Path

from refusals import refusal
from training_project import write_latents

from sfd_cli.artifacts.trained_on import other_latents
from sfd_cli.data.latent_space import space_of_store
from sfd_cli.data.store import Store
from sfd_cli.files import write_json


def model_of(folder: Path, latents: str) -> Path:
    record = {"fingerprint": "dit", "complete": True, "settings": {}, "inputs": {"latents": latents}}
    write_json(folder / "settings.json", record)
    return folder


def test_a_model_with_inherited_statistics_is_known_by_its_record(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents")
    store = Store(tmp_path / "latents")
    own = space_of_store(store)
    inherited = own.scaled([0.5] * own.channels, [2.0] * own.channels)
    (tmp_path / "dit").mkdir()
    for model in (None, tmp_path / "nowhere", model_of(tmp_path / "dit", "another")):
        assert other_latents(model, own, store) is None
        assert other_latents(model, inherited, store) == "other statistics"
    assert other_latents(model_of(tmp_path / "dit", "latents"), inherited, store) is None


def test_a_record_does_not_make_another_layout_fit(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents", grid=4)
    write_latents(tmp_path / "smaller")
    (tmp_path / "dit").mkdir()
    model = model_of(tmp_path / "dit", "latents")
    other = other_latents(model, space_of_store(Store(tmp_path / "smaller")), Store(tmp_path / "latents"))
    assert other == "grid 4 instead of 2"


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents")
    store = Store(tmp_path / "latents")
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "settings.json").write_text("{")
    with refusal(tmp_path / "dit" / "settings.json"):
        other_latents(tmp_path / "dit", space_of_store(store), store)
