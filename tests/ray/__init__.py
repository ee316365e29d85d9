"""Tests on a real Ray: run by an interpreter that has it (make ray-tests)."""
