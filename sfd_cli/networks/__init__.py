"""The modules that hold weights: diffusion transformer, Semantic VAE, texture VAE, visual encoder."""
