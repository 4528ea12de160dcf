"""Studies: rows of settings x seeds, run as pipelines that share what they can, and compared in pairs."""
