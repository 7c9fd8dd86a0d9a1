"""Scenes with other things in them, and photos seen from the side."""
