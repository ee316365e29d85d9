"""Nothing for Python; ``channel.pxd`` is what other extensions see of the channels between processes."""
