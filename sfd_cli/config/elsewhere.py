"""What other code of the field calls the settings here, for those who bring a name from there."""

from __future__ import annotations

ELSEWHERE = {
    # the reference code, LightningDiT, REPA, SiT, DiT
    "proj_coeff": ("dit.repa_weight",),
    "enc_type": ("encoder.name",),
    "encoder_depth": ("dit.repa_depth",),
    "semfirst_delta_t": ("dit.delta_t", "sample.delta_t"),
    "semantic_weight_beta": ("dit.semantic_weight",),
    "cfg_scale": ("sample.scale",),
    "cfg_interval_start": ("sample.interval_start",),
    "guidance_low": ("sample.interval_start",),
    "guidance_high": ("sample.interval_end",),
    "num_sampling_steps": ("sample.steps",),
    "sampling_method": ("sample.solver",),
    "timestep_shift": ("sample.shift",),
    "last_step_size": ("sample.last_step",),
    "balanced_sampling": ("sample.class_labels",),
    "per_proc_batch_size": ("sample.batch_size",),
    "num_fid_samples": ("sample.num_images",),
    "fid_num": ("sample.num_images",),
    "global_batch_size": ("dit.batch_size",),
    "gradient_accumulation_steps": ("dit.accumulate",),
    "max_train_steps": ("dit.steps",),
    "max_steps": ("dit.steps",),
    "ckpt_every": ("dit.checkpoint_every",),
    "lr": ("dit.learning_rate",),
    "max_grad_norm": ("dit.clip_norm",),
    "class_dropout_prob": ("dit.label_dropout",),
    "hidden_size": ("dit.width",),
    "num_heads": ("dit.heads",),
    "data_path": ("images.folder",),
    # diffusers
    "guidance_scale": ("sample.scale",),
    "num_inference_steps": ("sample.steps",),
    "num_images_per_prompt": ("sample.num_images",),
    "generator": ("sample.seed",),
    "mask_image": ("sample.mask",),
    "init_image": ("sample.image",),
    "strength": ("sample.start_time",),
}
"""Name there -> settings here."""


def called_here(name: str) -> tuple[str, ...]:
    """The settings, `section.key`, that other code calls `name`, a key or a flag; none where it is not known."""
    return ELSEWHERE.get(name.lstrip("-").replace("-", "_"), ())
