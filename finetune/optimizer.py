"""The optimizer, its schedule, and clipping."""

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from finetune.recipe import Recipe

Tree = Any  # a nested dictionary of arrays, as mlx has them


def make_optimizer(recipe: Recipe) -> optim.Optimizer:
    """The recipe's optimizer. Adam and its kin correct their bias: without it the first step is 3.2 times too long."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    match recipe.optimizer:
        case "adamw":
            return optim.AdamW(rate, betas=list(recipe.betas), weight_decay=decay, bias_correction=True)
        case "adam":
            return optim.Adam(rate, betas=list(recipe.betas), bias_correction=True)
        case "sgd":
            return optim.SGD(rate, momentum=recipe.betas[0], weight_decay=decay)
        case "adafactor":
            return optim.Adafactor(rate, relative_step=False, scale_parameter=False, weight_decay=decay)
        case "lion":
            return optim.Lion(rate, betas=list(recipe.betas), weight_decay=decay)
        case "muon":
            return optim.Muon(rate, momentum=recipe.betas[0], weight_decay=decay)


def learning_rate(recipe: Recipe, step: int, n_steps: int) -> float:
    """The rate of update ``step`` (from 0): a linear warm-up, then the schedule down to a tenth, or to nothing."""
    n_warmup = round(recipe.warmup * n_steps)
    if step < n_warmup:
        return recipe.learning_rate * (step + 1) / (n_warmup + 1)
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    match recipe.schedule:
        case "cosine":
            return recipe.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
        case "linear":
            return recipe.learning_rate * (1 - done)
        case "constant":
            return recipe.learning_rate


def clip(gradients: Tree, max_norm: float) -> tuple[Tree, mx.array]:
    """Gradients scaled down to a global norm of at most ``max_norm`` (0: left alone), and the norm they had."""
    norm = mx.sqrt(sum((mx.square(g.astype(mx.float32)).sum() for _, g in tree_flatten(gradients)), mx.array(0.0)))
    if not max_norm:
        return gradients, norm
    factor = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return tree_map(lambda g: g * factor.astype(g.dtype), gradients), norm
