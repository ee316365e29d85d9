"""Nothing for Python; ``cancels.pxd`` is what other extensions see of cancellation."""
