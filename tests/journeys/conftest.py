"""Fixtures of the journeys: one small world, pretrained and adapted once per session."""

from tests.journeys.small_world import adapted, world

__all__ = ["adapted", "world"]
