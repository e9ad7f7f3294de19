"""Learning: data, recipes, trainer, preference losses, adapters."""
