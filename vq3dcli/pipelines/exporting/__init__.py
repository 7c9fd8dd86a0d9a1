"""Scenes as files for other programs."""
