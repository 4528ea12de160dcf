"""Keys of rows: those of fp32 are the ones that stores have from before there were other precisions."""

from __future__ import annotations

from sfd_cli.config import Features, Latents, Settings, identity
from sfd_cli.data.kept_rows import row_keys
from sfd_cli.files import fingerprint
from sfd_cli.pipeline import taking_over
from sfd_cli.pipeline.taking_over import feature_keys

CONTENTS = [b"a" * 16, b"b" * 16]


def test_tokens_of_another_precision_are_not_taken_over_and_those_of_before_are(monkeypatch) -> None:
    settings = Settings()
    monkeypatch.setattr(taking_over, "encoder_fingerprint", lambda encoder: "the encoder")
    before = {"tokens": "the encoder", "image_size": settings.images.size, "flips": 2, "pass": 1}
    assert feature_keys(settings, CONTENTS, 1, "fp32") == row_keys(fingerprint(before), CONTENTS)
    keys = {key for precision in ("fp32", "tf32", "bf16") for key in feature_keys(settings, CONTENTS, 1, precision)}
    assert len(keys) == 6


def test_an_identity_names_a_precision_only_where_one_is_chosen() -> None:
    assert "precision" not in identity(Features()) | identity(Latents())
    assert identity(Features(precision="fp32"))["precision"] == "fp32"
    assert identity(Latents(precision="tf32"))["precision"] == "tf32"
