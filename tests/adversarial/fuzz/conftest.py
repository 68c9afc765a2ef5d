"""The real agent beside the lying ones: what a neighbour notices."""

from __future__ import annotations

from tests.unit.guest.conftest import agent_process, agent_program, anyio_backend

__all__ = ["agent_process", "agent_program", "anyio_backend"]
