"""The node of one machine: the ``ftrayd`` process, its decision machines, and the way to reach it."""
