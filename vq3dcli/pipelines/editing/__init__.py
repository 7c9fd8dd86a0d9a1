"""Composing and interpolating scenes."""
