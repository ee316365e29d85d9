"""Nothing for other extensions: `wait` is called from Python."""
