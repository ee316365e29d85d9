"""Nothing for Python; ``pushes.pxd`` is what other extensions see of a task's frame."""
