"""The node of one machine: the ``ftrayd`` process, its decision machines, and what others need to reach it."""
