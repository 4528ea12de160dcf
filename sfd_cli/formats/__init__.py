"""One module per format of weights and latents, read and write."""
