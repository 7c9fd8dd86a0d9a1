"""VQ3D: one photo to a NeRF in one forward pass, and new scenes from a prior over its codes."""

__version__ = "0.1.0"
