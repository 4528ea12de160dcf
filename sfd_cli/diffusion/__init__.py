"""The method as pure tensors: schedule, objective, solver, guidance. Knows no network and no file."""
