"""How good a model is and how fast: perplexity, divergence from its source, agreement, tokens a second."""
