"""Tests of the agent and of its client."""
