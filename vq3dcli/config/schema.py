"""What a Stage 1 recipe says. `model/build.py` turns it into a model; the parts of a model take plain arguments.

Durations are counted in images seen, so that the batch size changes no schedule.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CameraSection(_Section):
    """The canonical camera and the depth range."""

    fov_deg: float = Field(gt=1, lt=150)
    radius: float = Field(gt=0)
    near: float = Field(gt=0)
    far: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.near >= self.far:
            raise ValueError(f"near ({self.near}) must be less than far ({self.far})")
        return self


class ModelSection(_Section):
    """The autoencoder's shape."""

    image_size: int = Field(ge=16, le=1024)
    patch: int = Field(ge=2)
    width: int = Field(ge=16)
    heads: int = Field(ge=1)
    encoder_layers: int = Field(ge=1)
    decoder_layers: int = Field(ge=1)
    codebook_size: int = Field(ge=2, le=65536)
    code_dim: int = Field(ge=2)
    space: Literal["frustum", "contracted"]
    plane_scale: float = Field(gt=0, le=4)
    plane_channels: int = Field(ge=1)
    plane_head: Literal["linear", "residual", "convolution"]
    field_hidden: int = Field(ge=4)
    field_layers: int = Field(ge=1, le=8)
    auxiliary_head: bool

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image_size % self.patch:
            raise ValueError(f"patch ({self.patch}) must divide image_size ({self.image_size})")
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if (self.patch * self.plane_scale) % 1:
            raise ValueError(
                f"patch x plane_scale ({self.patch} x {self.plane_scale}) must be a whole number of texels"
            )
        return self


class RenderingSection(_Section):
    """How training renders."""

    samples: int = Field(ge=2)
    importance_samples: int = Field(ge=0)
    rays_per_image: int = Field(ge=1)


class LossSection(_Section):
    """Weights of the losses and the treatment of disparity labels."""

    l2: float = Field(ge=0)
    l1: float = Field(ge=0)
    auxiliary: float = Field(ge=0)
    codebook: float = Field(ge=0)
    commitment: float = Field(ge=0)
    depth: float = Field(ge=0)
    depth_kind: Literal["pointwise", "accumulated", "none"]
    alignment: Literal["canonical", "least_squares"]
    alignment_mean: float = Field(gt=0, lt=1)
    alignment_std: float = Field(gt=0, lt=1)


class TrainingSection(_Section):
    """The schedule."""

    images: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_images: int = Field(ge=0)
    final_learning_rate_factor: float = Field(ge=0, le=1)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    ema_half_life_images: float = Field(gt=0)
    quantize_from_images: int = Field(ge=0)
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int = Field(ge=0)
    flip: bool
    crop: bool
    log_every_images: int = Field(ge=1)
    sheet_every_images: int = Field(ge=1)
    checkpoint_every_images: int = Field(ge=1)
    keep_checkpoints: int = Field(ge=1)


class Stage1Recipe(_Section):
    """A complete Stage 1 recipe."""

    kind: Literal["stage1"]
    camera: CameraSection
    model: ModelSection
    rendering: RenderingSection
    loss: LossSection
    training: TrainingSection
