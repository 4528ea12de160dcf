"""`push_to_hub`: what is asked of the hub, of which there is none, and what becomes of its refusals."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from refusals import refusal
from tiny_project import CLASSES

from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline


class Hub:
    """Stands in for HfApi: notes what it is asked, and keeps what is uploaded."""

    def __init__(self, place: Path, refuses: str = "") -> None:
        self.place, self.refuses, self.asked = place, refuses, []  # type: ignore[var-annotated]

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self._note("create_repo", repo_id, private, exist_ok)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self._note("create_branch", repo_id, branch, exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> Any:
        self._note("upload_folder", repo_id, revision, commit_message)
        Path(folder_path).rename(self.place)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def _note(self, what: str, *arguments: Any) -> None:
        if what == self.refuses:
            raise OSError("401 Client Error.\nWho are you?")
        self.asked.append((what, *arguments))


def test_the_saved_pipeline_is_what_is_uploaded(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub")
    scores = {"fd_dinov2": 62.5}
    said = pipeline.push_to_hub(
        "me/emoji", api=hub, private=True, revision="v1", commit_message="Emoji", metrics=scores, licence="mit"
    )
    assert said == "https://hub/me/emoji/commit/1"
    assert hub.asked == [
        ("create_repo", "me/emoji", True, True),
        ("create_branch", "me/emoji", "v1", True),
        ("upload_folder", "me/emoji", "v1", "Emoji"),
    ]
    assert SemanticFirstPipeline.from_pretrained(hub.place, device="cpu").class_names == CLASSES
    text = (hub.place / "README.md").read_text()
    assert 'from_pretrained("me/emoji")' in text
    assert "| `fd_dinov2` | 62.5 |" in text
    assert "license: mit" in text


def test_it_asks_what_the_installed_hub_library_answers(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    """The stand-in has names and arguments of the real thing."""
    for name in ("create_repo", "create_branch", "upload_folder"):
        real = inspect.signature(getattr(HfApi, name)).parameters
        assert set(inspect.signature(getattr(Hub, name)).parameters) <= set(real)


@pytest.mark.parametrize("refuses", ["create_repo", "create_branch", "upload_folder"])
def test_a_refusal_of_the_hub_is_one_sentence(pipeline: SemanticFirstPipeline, tmp_path: Path, refuses: str) -> None:
    hub = Hub(tmp_path / "hub", refuses)
    with refusal("me/emoji", "Who are you?", "HF_TOKEN") as caught:
        pipeline.push_to_hub("me/emoji", api=hub, revision="v1", samples=0)
    assert "\n" not in str(caught.value)
    assert not hub.place.exists()


def test_without_a_network_it_says_so(pipeline: SemanticFirstPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with refusal("me/emoji"):
        pipeline.push_to_hub("me/emoji", samples=0)


def test_mistakes_are_found_before_the_hub_is_asked(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub")
    with refusal("emoji", "owner/name"):
        pipeline.push_to_hub("emoji", api=hub)
    with refusal("no.json"):
        pipeline.push_to_hub("me/emoji", api=hub, metrics="no.json")
    assert hub.asked == []


def test_the_token_is_handed_on(
    pipeline: SemanticFirstPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[str | None] = []

    def api(token: str | None = None) -> Hub:
        tokens.append(token)
        return Hub(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    pipeline.push_to_hub("me/emoji", token="hf_secret", samples=0)
    assert set(tokens) == {"hf_secret"}
