"""The pipeline: one module per stage, each reading artifacts and writing artifacts."""
