"""Nothing for Python; ``outcomes.pxd`` is what other extensions see of how tasks end."""
