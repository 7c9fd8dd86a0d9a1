"""Defaults that a command shows in its help and a library function shares; nothing here imports anything."""

from __future__ import annotations

# Samples a ray (of training: `rendering.samples` of a recipe). Figures and pictures that a metric sees:
EVALUATION_SAMPLES = 96
# Videos: 64 show slices from the side, 47 dB against 192.
VIDEO_SAMPLES = 192
# Sheets of a training run.
SHEET_SAMPLES = 48

VIDEO_FRAMES = 60
VIDEO_FPS = 24.0
VIDEO_SIZE_PX = 256

# Shards.
SHARD_SIZE = 1000
MAX_BAD = 0.05
MAX_VIEWS = 64  # exact pictures from other cameras beside a sample
# Room around a car, as a fraction of the longer side of its box.
BOX_MARGIN = 0.05
