"""How a pipeline is loaded, saved and published; what it does then is `semantic_first`'s."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from sfd_cli.config import Settings, load_settings
from sfd_cli.devices import choose_device
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline import hub, loading, saving
from sfd_cli.pipeline.card import Card, make_card
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.weights.models import SemanticCompressor


class StoredPipeline:
    """The parts of a pipeline, from wherever they are, and back to a folder or a repository."""

    semantic: SemanticCompressor | None
    encoder: VisualEncoder | None
    _sampler: Sampler

    def __init__(
        self, sampler: Sampler, semantic: SemanticCompressor | None = None, encoder: VisualEncoder | None = None
    ) -> None:
        self._sampler, self.semantic, self.encoder = sampler, semantic, encoder

    @classmethod
    def from_settings(
        cls,
        settings: Settings | str | Path = "params.yaml",
        device: str = "auto",
        encoder: bool = False,
        torch_dtype: torch.dtype | None = None,
    ) -> Self:
        """The models that settings name: folders made here, checkpoints of the reference code, registered weights.

        Args:
            settings: or the params.yaml that holds them; its section `sample` gives the defaults of calls.
            device: auto, or a name of the table DEVICES, such as cpu, cuda or cuda:N.
            encoder: also load what `encode` needs.
            torch_dtype: as of `from_pretrained`.

        Raises:
            UserError: a model is missing, or models and settings do not fit together.
        """
        if not isinstance(settings, Settings):
            settings = load_settings(Path(settings))
        return cls(*loading.held_in(loading.from_settings(settings, choose_device(device), True, encoder), torch_dtype))

    @classmethod
    def from_checkpoints(
        cls,
        dit: str | Path,
        texture_vae: str | Path | None = None,
        guide: str | Path | None = None,
        semvae: str | Path | None = None,
        *,
        sections: Mapping[str, Any] | None = None,
        device: str = "auto",
        torch_dtype: torch.dtype | None = None,
        **sampling: Any,
    ) -> Self:
        """Models by themselves, each a folder made here, a checkpoint of the reference code, or a registered name.

        Args:
            dit: the transformer.
            texture_vae: of the latents it was trained on; without it there are latents only, and no statistics of
                them are needed.
            guide: the weaker model; AutoGuidance is the default of calls then.
            semvae: the semantic compressor, for `encode`; the section `encoder` tells of its visual encoder.
            sections: what the files do not tell, as in `params.yaml`: `foreign` (statistics, heads, semantic_channels,
                delta_t), `semvae` (channels, width, depth, heads) and `encoder`.
            device: auto, or a name of the table DEVICES, such as cpu, cuda or cuda:N.
            torch_dtype: as of `from_pretrained`.
            **sampling: defaults of calls, settings of the section `sample`; `weights` and `compile` too.

        Raises:
            UserError: a model is missing or damaged, or they do not fit together.
        """
        sources = {"dit": dit, "texture_vae": texture_vae, "guide": guide, "semvae": semvae}
        parts = loading.from_checkpoints(sources, sections or {}, sampling, choose_device(device))
        return cls(*loading.held_in(parts, torch_dtype))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str = "auto",
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> Self:
        """A pipeline that `save_pretrained` wrote: a local folder, or a repository of the Hugging Face hub.

        Reads safetensors and JSON only.

        Args:
            source: the folder, or the repository's name.
            device: auto, or a name of the table DEVICES, such as cpu, cuda or cuda:N.
            revision: of the repository.
            torch_dtype: of the transformers' weights, float32 unless it is given; bfloat16 halves their memory.
                Latents, solver, guidance and the decoded images stay float32 in any case.

        Raises:
            UserError: it is neither, cannot be fetched, or is damaged or incomplete; or a dtype of another kind.
        """
        parts = loading.from_folder(source, cls.__name__, choose_device(device), revision)
        return cls(*loading.held_in(parts, torch_dtype))

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        metrics: str | Path | Mapping[str, Any] | None = None,
        licence: str | None = None,
        samples: int = 8,
    ) -> None:
        """Write the pipeline as safetensors and JSON, a folder for each model, with a model card.

        `model_index.json` comes last; diffusers opens the folder too, see `pipeline.py` in it.

        Args:
            folder: new or empty.
            metrics: scores for the card: the `fid.json` of `sfd fid`, or what is in it.
            licence: of the weights, for the card, by the hub's name of it: `mit`, `cc-by-sa-4.0`, ...
            samples: how many to draw for the card, of the classes in turn; 0 for none.

        Raises:
            UserError: the folder holds something already, or there are no such metrics.
        """
        saving.require_empty(Path(folder))
        self._save(Path(folder), make_card(self._sampler, Path(folder).name, metrics, licence, samples))

    def push_to_hub(
        self,
        repository: str,
        *,
        metrics: str | Path | Mapping[str, Any] | None = None,
        licence: str | None = None,
        samples: int = 8,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "A pipeline of sfd",
        token: str | None = None,
        api: Any = None,
    ) -> str:
        """Save the pipeline to a repository of the Hugging Face hub, which is made where there is none.

        Args:
            repository: owner/name.
            metrics: as of `save_pretrained`.
            licence: as of `save_pretrained`.
            samples: as of `save_pretrained`.
            private: of a new repository; None is the owner's default.
            revision: the branch; None is the main one.
            commit_message: of the upload.
            token: of the hub; None is the one of `hf auth login` or HF_TOKEN.
            api: a `huggingface_hub.HfApi` to use instead of one with this token.

        Returns:
            The address of the commit.

        Raises:
            UserError: the hub refuses or cannot be reached; or as `save_pretrained`.
        """
        upload = hub.Upload(repository, private, revision, commit_message, token, api)
        card = make_card(self._sampler, repository, metrics, licence, samples)
        upload.require_repository()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "pipeline"
            self._save(folder, card)
            return upload.send(folder)

    def _save(self, folder: Path, card: Card) -> None:
        saving.save(folder, self._sampler, self.semantic, self.encoder, card)
