"""Nothing for Python; ``actors.pxd`` is what other extensions see of the actor calls of this process."""
