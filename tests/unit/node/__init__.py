"""Tests of the node: its decision machines alone, and ``ftrayd`` as a real process with fake workers."""
