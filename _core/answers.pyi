"""Nothing for Python; ``answers.pxd`` is what other extensions see of answers to calls."""
