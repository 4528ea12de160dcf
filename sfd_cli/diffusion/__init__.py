"""The method as pure tensors: schedule, latents, conditions, objective, guidance, solver. No network, no file."""
