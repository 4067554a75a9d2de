"""The one place that states the version."""

__version__ = "0.1.0"

WITHOUT_TORCH = (
    "this needs PyTorch, which is not installed: pip install torch (without a GPU, at a tenth of "
    "the size: pip install torch --index-url https://download.pytorch.org/whl/cpu)"
)
