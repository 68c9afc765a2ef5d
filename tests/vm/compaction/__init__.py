"""Compaction of deltas behind the backs of forks."""
