"""How published figures were sampled and scored, by the names of their code: `sample.protocol` takes the settings.

The facts are those of the public repositories, read off the files that each record names. All of these five sample with
float32 weights and TF32 products, with the averaged weights, 50,000 images, and quote ADM's evaluator and reference.
Times are those of this package, where data is at time 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A record; None is for what its solver does not read, and otherwise for the default of `sample`.

    Attributes:
        source: repository, and the files of it that say so.
        class_labels: balanced, or random.
        solver: a name of the table SOLVERS.
        steps: of the solver, which is as many calls of the transformer for the solvers here.
        time_grid: phases, or one-span.
        shift: time shift.
        rtol: relative tolerance.
        atol: absolute tolerance.
        images_at_once: images whose error decides the length of a step together, by the batch of its configuration.
        last_step: of its own time that a stream's last step covers.
        guidance_channels: how many channels are guided, the first ones.
        scale_semantic: guidance scale of the semantics, where it is not that of the textures.
        interval_start: guided from this time of a stream on.
        interval_end: guided up to this time.
        to_uint8: round, or truncate.
        precision: of the transformers.
        images: that are scored.
        reference: that they are scored against, as `fid.reference` has it.
    """

    source: str
    class_labels: str = "random"
    solver: str
    steps: int | None = None
    time_grid: str = "phases"
    shift: float | None = None
    rtol: float | None = None
    atol: float | None = None
    images_at_once: int | None = None
    last_step: float | None = None
    guidance_channels: int | None = None
    scale_semantic: float | None = None
    interval_start: float = 0.0
    interval_end: float = 1.0
    to_uint8: str = "round"
    precision: str = "fp32"
    images: int = 50_000
    reference: str = "adm_imagenet256"

    NO_SETTINGS: ClassVar = ("source", "images", "reference")
    """What is no key of the section `sample`."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of `sample` that it decides, and their values."""
        found = {key: getattr(self, key) for key in PROTOCOL_KEYS}
        return {key: value for key, value in found.items() if value is not None}


PROTOCOL_KEYS = tuple(field.name for field in fields(Protocol) if field.name not in Protocol.NO_SETTINGS)
"""The keys of the section `sample` that protocols decide."""

# configs/sfd/*/inference_*.yaml: balanced_sampling, dopri5, its tolerances, per_proc_batch_size 4, no interval.
# inference.py: the labels; run_inference.sh asks for bf16, of which inference.py makes no use: fp32 with TF32.
# models/lightningdit.py: forward_with_autoguidance guides all channels. transport/: one ODE over both streams' times.
# tokenizer/vavae.py: clamp(127.5 x + 128) to uint8, which rounds. run_eval_via_guided_diffusion.sh: the reference.
SFD = Protocol(
    source="yuemingPAN/SFD: configs/sfd/lightningdit_xl/inference_4m.yaml, inference.py, models/lightningdit.py",
    class_labels="balanced",
    solver="dopri5",
    time_grid="one-span",
    rtol=1e-3,
    atol=1e-6,
    images_at_once=4,
)

# configs/reproductions/*_800ep_cfg.yaml: 250 points, which are 249 steps (transport/integrators.py), shift, guided from
# 0.125 on; for 64 epochs it is 0.10. models/lightningdit.py: forward_with_cfg guides three channels. inference.py.
LIGHTNINGDIT = Protocol(
    source="hustvl/LightningDiT: configs/reproductions/lightningdit_xl_vavae_f16d32_800ep_cfg.yaml, inference.py,"
    " models/lightningdit.py, transport/integrators.py",
    solver="euler",
    steps=249,
    shift=0.3,
    guidance_channels=3,
    interval_start=0.125,
)

# train_utils.py: parse_sde_args, Euler with the coefficient sigma, last step by the mean, 0.04. sample_ddp.py: 250
# steps, random labels, clamp(127.5 x + 128). models.py: forward_with_cfg guides three channels.
SIT = Protocol(
    source="willisma/SiT: sample_ddp.py, train_utils.py, models.py, transport/integrators.py",
    solver="euler_maruyama",
    steps=250,
    last_step=0.04,
    guidance_channels=3,
)

# README.md: --mode=sde --num-steps=250 --guidance-high=0.7, of a time that is 1 at noise: from 0.3 on here, by <=.
# samplers.py: euler_maruyama_sampler, whose last step is 0.04 without noise; all channels guided. generate.py: random
# labels, clamp(255 (x + 1) / 2) to uint8, which truncates.
REPA = Protocol(
    source="sihyun-yu/REPA: README.md, generate.py, samplers.py",
    solver="euler_maruyama",
    steps=250,
    last_step=0.04,
    interval_start=0.3,
    to_uint8="truncate",
)

# README.md: sample_ddp.py SDE --cfg-vae True, in models.py forward_with_cfg_vae, which guides the textures alone.
# The rest, sample_ddp.py and train_utils.py, is as SiT has it.
REDI = Protocol(
    source="zelaki/ReDi: README.md, sample_ddp.py, train_utils.py, models.py",
    solver="euler_maruyama",
    steps=250,
    last_step=0.04,
    scale_semantic=1.0,
)
