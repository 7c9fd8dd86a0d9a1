"""Measuring: what is measured, on which sets of images, and the pages that tell of it."""
