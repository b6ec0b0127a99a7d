"""A training run: options, trainer, validation, ranks and snapshots."""
