"""Fixtures of the journeys: one small world, pretrained and adapted once per session."""

from tests.journeys.daily_world import daily_world
from tests.journeys.small_world import adapted, world

__all__ = ["adapted", "daily_world", "world"]
