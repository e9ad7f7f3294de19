"""The ground floor: paths, settings, errors, model store, conversations, privacy.

Everything above (``quant``, ``finetune``, ``serve``, ``app``) imports from here; nothing here imports from above.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
