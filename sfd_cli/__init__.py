"""Train, sample and score Semantic-First Diffusion (arXiv 2512.04926) as a chain of cached artifacts."""

__version__ = "0.1.0"
