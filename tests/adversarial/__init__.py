"""Enemies: guests that lie, archives that lie, requests that are wrong."""
