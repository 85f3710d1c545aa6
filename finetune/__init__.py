"""Adaptation of a backbone to a channel, its proof and its package."""
