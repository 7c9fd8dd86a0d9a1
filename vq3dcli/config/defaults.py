"""Defaults that a command shows in its help and a library function shares; nothing here imports anything."""

from __future__ import annotations

# Samples a ray (of training: `rendering.samples` of a recipe). Figures and pictures that a metric sees:
EVALUATION_SAMPLES = 96
# Videos: two thirds of the time, and no difference that a video shows. Of 32, views from 20 degrees to the side show
# slices (37.3 dB against 192 samples; 64 reach 47.2 dB).
VIDEO_SAMPLES = 64
# Sheets of a training run.
SHEET_SAMPLES = 48

VIDEO_FRAMES = 60
VIDEO_FPS = 24.0
VIDEO_SIZE_PX = 128

# Shards.
SHARD_SIZE = 1000
MAX_BAD = 0.05
MAX_VIEWS = 64  # exact pictures from other cameras beside a sample
# Room around a car, as a fraction of the longer side of its box.
BOX_MARGIN = 0.05
