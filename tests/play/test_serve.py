"""Ports, a missing Gradio, a missing browser; what can be played with."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import empty_folder, refusal_of
from latent_stores import normal, store_of
from refusals import refusal, require_refusal
from tiny_project import SEMANTIC, TEXTURE

from sfd_cli.config import Settings
from sfd_cli.files import write_json
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.play import serve
from sfd_cli.play.opening import Sources, open_studio, training_palette
from sfd_cli.play.studio import Studio
from sfd_cli.report.palette import Palette


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind((serve.HOST, 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_in_use_is_refused_if_it_was_asked_for_and_else_passed_over(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusal("--port", taken):
        serve.free_port(taken)
    monkeypatch.setattr(serve, "PORT", taken)
    assert taken < serve.free_port(None) < taken + serve.PORTS
    monkeypatch.setattr(serve, "PORTS", 1)
    with refusal("--port", taken):
        serve.free_port(None)


def test_the_command_refuses_a_port_in_use_before_it_loads_a_model(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "require_gradio", lambda: None)
    empty_folder(tmp_path, monkeypatch)
    require_refusal(refusal_of("play", "--port", taken), "--port", taken)


def test_without_gradio_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_folder(tmp_path, monkeypatch)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    require_refusal(refusal_of("play"), "sfd play", 'pip install "sfd-cli[play]"')


@pytest.mark.parametrize(
    ("arguments", "subject", "named"),
    [
        ((), "sfd play", "models/dit"),
        ((), "sfd play", "dvc repro"),
        (("missing",), "missing", ""),
        (("--params", "other.yaml"), "--params", "other.yaml"),
        (("--device", "cuda:99"), "runtime.device", "cuda:99"),
    ],
)
def test_where_there_is_no_model_or_no_device_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], subject: str, named: str
) -> None:
    monkeypatch.setattr(serve, "require_gradio", lambda: None)
    empty_folder(tmp_path, monkeypatch)
    require_refusal(refusal_of("play", *arguments), subject, named)


@pytest.mark.parametrize("opens", [True, False])
def test_the_page_is_opened_in_a_browser_or_its_address_said(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opens: bool
) -> None:
    closed, tried = [], []

    class Page:
        def close(self, verbose: bool) -> None:
            closed.append(True)

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "start", lambda studio, port: (Page(), f"http://127.0.0.1:{port}/"))
    monkeypatch.setattr(webbrowser, "open", lambda url: tried.append(url) or opens)
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    serve.serve(studio, 7999, browser=True)
    said = capsys.readouterr().err
    assert "http://127.0.0.1:7999/" in said
    assert ("no browser" in said) == (not opens)
    assert (tried, closed) == (["http://127.0.0.1:7999/"], [True])
    serve.serve(studio, 7999, browser=False)
    assert len(tried) == 1


def test_a_project_a_saved_pipeline_and_a_transformer_by_itself_draw_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved, moved = tmp_path / "pipeline", tmp_path / "moved"
    SemanticFirstPipeline.from_settings(settings).save_pretrained(saved)
    shutil.copytree(settings.paths.dit, moved)
    project = open_studio(settings, Sources())
    vae = str(settings.paths.texture_vae)
    lost = settings.model_copy(
        update={"paths": settings.paths.model_copy(update={"dit": "none", "texture_vae": "none"})}
    )
    for other in (
        open_studio(lost, Sources(str(saved))),
        open_studio(lost, Sources(str(moved), texture_vae=vae)),
        open_studio(lost, Sources(str(moved), texture_vae=vae, guide=str(moved))),
    ):
        drawn, expected = (each.draw(each.picture(1, guidance="cfg", seed=3)) for each in (other, project))
        assert np.array_equal(drawn.image, expected.image)
        assert other.ahead is not None
        assert "offset of 0.3" in other.ahead.trained
        assert other.about["fingerprints"]["dit"]
    assert other.guidances == ["none", "cfg", "autoguidance"]
    with refusal("--texture-vae", saved):
        open_studio(settings, Sources(str(saved), texture_vae=vae))


def test_an_adaptive_solver_gives_way_to_one_with_steps(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    adaptive = settings.model_copy(update={"sample": settings.sample.model_copy(update={"solver": "dopri5"})})
    assert open_studio(adaptive, Sources()).sampler.sample.solver == "ab3"
    assert "dopri5" in capsys.readouterr().err


def test_what_training_was_like_is_read_from_the_models_record(settings: Settings) -> None:
    said = {"lead_jitter": 0.5, "label_dropout": 0.0}
    write_json(settings.paths.dit / "settings.json", {"fingerprint": "dit", "settings": said})
    opened = open_studio(settings, Sources())
    assert opened.guidances == ["none"]
    assert opened.ahead is not None
    assert "0.5" in opened.ahead.trained


def test_colours_are_of_the_latents_that_the_model_was_trained_on(settings: Settings, studio: Studio) -> None:
    space, folder = studio.sampler.space, settings.paths.latents
    assert training_palette(folder, space) is None
    texture, semantic = normal(24, TEXTURE), normal(24, SEMANTIC, seed=1)
    store_of(folder, texture, semantic, mean=0.1, std=0.9)
    found = training_palette(folder, space)
    assert found is not None
    raw = np.asarray(semantic, np.float64)
    assert found.mean == pytest.approx((raw.mean(axis=(0, 2, 3)) - 0.1) / 0.9, abs=1e-2)
    assert isinstance(found, Palette)
    shutil.rmtree(folder)
    store_of(folder, texture, semantic, mean=0.1, std=0.8)
    assert training_palette(folder, space) is None
