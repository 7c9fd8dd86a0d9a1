"""Scenes of textured models with exact disparity, and the reading of meshes of other programs."""
