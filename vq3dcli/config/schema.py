"""What a recipe of either stage says. `model/build.py` turns it into a model; the parts take plain arguments.

Durations are counted in images seen, so that the batch size changes no schedule. Every number has a least and a most
value, some ten times beyond what anybody trains: what lies outside is a slip of the pen, and would eat memory or time.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Images seen: after how many something happens, and every how many.
_Images = Annotated[int, Field(ge=0, le=10**12)]
_Interval = Annotated[int, Field(ge=1, le=10**12)]
_Weight = Annotated[float, Field(ge=0, le=1e6)]
_Rate = Annotated[float, Field(gt=0, le=10)]
_Distance = Annotated[float, Field(ge=1e-3, le=1e4)]
_Width = Annotated[int, Field(ge=16, le=16384)]
_Heads = Annotated[int, Field(ge=1, le=256)]
_Layers = Annotated[int, Field(ge=1, le=256)]
_Channels = Annotated[int, Field(ge=4, le=4096)]
_Decoder = Annotated[int, Field(ge=4, le=1024)]


def _path(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a recipe holds only names that are text") from error
    return os.path.expanduser(name)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CameraSection(_Section):
    """The canonical camera and the depth range."""

    fov_deg: float = Field(gt=1, lt=150)
    radius: _Distance
    near: _Distance
    far: _Distance

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.near >= self.far:
            raise ValueError(f"near ({self.near}) must be less than far ({self.far})")
        return self


class ModelSection(_Section):
    """The autoencoder's shape."""

    image_size: int = Field(ge=16, le=1024)
    patch: int = Field(ge=2, le=1024)
    encoder_width: _Width
    encoder_heads: _Heads
    encoder_layers: _Layers
    decoder_width: _Width
    decoder_heads: _Heads
    decoder_layers: _Layers
    codebook_size: int = Field(ge=2, le=65536)
    code_dim: int = Field(ge=2, le=4096)
    space: Literal["frustum", "contracted"]
    plane_scale: float = Field(gt=0, le=4)
    plane_channels: int = Field(ge=1, le=1024)
    plane_head: Literal["linear", "residual", "convolution"]
    field_hidden: _Channels
    field_layers: int = Field(ge=1, le=8)
    auxiliary_head: bool
    depth_input: Literal["none", "depth-lite0"] = "none"  # weights files from before this key had none

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image_size % self.patch:
            raise ValueError(f"patch ({self.patch}) must divide image_size ({self.image_size})")
        for part, width, heads in (
            ("encoder", self.encoder_width, self.encoder_heads),
            ("decoder", self.decoder_width, self.decoder_heads),
        ):
            if width % heads:
                raise ValueError(f"{part}_heads ({heads}) must divide {part}_width ({width})")
        if (self.patch * self.plane_scale) % 1:
            raise ValueError(
                f"patch x plane_scale ({self.patch} x {self.plane_scale}) must be a whole number of texels"
            )
        return self


class RenderingSection(_Section):
    """How training renders."""

    samples: int = Field(ge=2, le=4096)
    importance_samples: int = Field(ge=0, le=4096)
    rays_per_image: int = Field(ge=2, le=1024 * 1024)


class LossSection(_Section):
    """Weights of the losses and the treatment of disparity labels."""

    l2: _Weight
    l1: _Weight
    auxiliary: _Weight
    codebook: _Weight
    commitment: _Weight
    depth: _Weight
    depth_kind: Literal["pointwise", "pointwise_l1", "accumulated", "none"]
    depth_order: _Weight = 0.0  # weights files from before this key had none
    alignment: Literal["canonical", "least_squares"]
    alignment_mean: float = Field(gt=0, lt=1)
    alignment_std: float = Field(gt=0, lt=1)
    perceptual: _Weight
    perceptual_network: Literal["none", "lpips-vgg", "lpips-alex", "efficientnet-lite0"]
    perceptual_patch_px: int = Field(ge=32, le=1024)
    # Of exact pictures from other cameras; weights files from before these keys saw none.
    novel_l2: _Weight = 0.0
    novel_l1: _Weight = 0.0
    novel_depth: _Weight = 0.0
    novel_perceptual: _Weight = 0.0

    @property
    def novel(self) -> bool:
        """Whether pictures from other cameras are trained on."""
        return max(self.novel_l2, self.novel_l1, self.novel_depth, self.novel_perceptual) > 0

    @property
    def any_perceptual(self) -> bool:
        """Whether the perceptual network is needed."""
        return self.perceptual > 0 or self.novel_perceptual > 0

    @model_validator(mode="after")
    def _has_a_network(self) -> Self:
        for name, weight in (("perceptual", self.perceptual), ("novel_perceptual", self.novel_perceptual)):
            if weight > 0 and self.perceptual_network == "none":
                raise ValueError(
                    f"{name} ({weight}) needs a perceptual_network: lpips-vgg, lpips-alex or efficientnet-lite0"
                )
        return self


class AdversarialSection(_Section):
    """The discriminators of main and novel views; weights of 0 turn them off."""

    main: _Weight
    novel: _Weight
    start_images: _Images
    ramp_images: _Images
    learning_rate: _Rate
    r1: _Weight
    r1_every_steps: int = Field(ge=1, le=10**6)
    base_channels: _Channels
    max_channels: _Channels
    minibatch_group: int = Field(ge=1, le=1024)
    class_conditional: bool
    augmentation: Literal["none", "differentiable", "adaptive"]
    adaptive_target: float = Field(gt=0, lt=1)
    novel_sees_disparity: bool
    size_px: int = Field(ge=16, le=256)
    main_patch: bool
    yaw_deg: float = Field(ge=0, le=180)
    pitch_deg: float = Field(ge=0, lt=90)

    @property
    def on(self) -> bool:
        """Whether there is any discriminator."""
        return self.main > 0 or self.novel > 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.base_channels > self.max_channels:
            raise ValueError(f"base_channels ({self.base_channels}) must be at most max_channels ({self.max_channels})")
        step = 1 << (self.size_px.bit_length() - 3)  # a discriminator halves the side until 4 to 7 pixels are left
        if self.size_px % step:
            raise ValueError(
                f"size_px ({self.size_px}) must be 4, 5, 6 or 7 times a power of two; the next below is "
                f"{self.size_px // step * step}"
            )
        if self.novel > 0 and self.yaw_deg == 0 and self.pitch_deg == 0:
            raise ValueError(f"novel ({self.novel}) needs views that are novel: yaw_deg or pitch_deg above 0")
        return self


class RunSection(_Section):
    """What the schedules of all trainings have in common."""

    images: _Interval
    batch_size: int = Field(ge=1, le=2**20)
    learning_rate: _Rate
    warmup_images: _Images
    final_learning_rate_factor: float = Field(ge=0, le=1)
    weight_decay: float = Field(ge=0, le=100)
    gradient_clip: float = Field(gt=0, le=1e6)
    ema_half_life_images: float = Field(ge=1e-3, le=1e12)
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int = Field(ge=0, le=2**63 - 1)
    log_every_images: _Interval
    sheet_every_images: _Interval
    checkpoint_every_images: _Interval
    keep_checkpoints: int = Field(ge=1, le=10**6)
    init: Annotated[str, AfterValidator(_path)]
    tracker: Literal["none", "tensorboard", "wandb"]


class ScheduleSection(RunSection):
    """What the schedules of both stages have in common."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # weights files from before this key had no other
    accumulate: int = Field(ge=1, le=2**20)
    compile: bool
    checkpoint_activations: bool
    shard: Literal["auto", "always", "never"] = "auto"  # weights files from before this key name none

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide batch_size ({self.batch_size})")
        return self


class TrainingSection(ScheduleSection):
    """The schedule of Stage 1."""

    max_bad: float = Field(0.001, ge=0, le=1)  # weights files from before this key name none
    quantize_from_images: _Images
    freeze_codes: bool = False  # weights files from before this key trained everything
    flip: bool
    crop: bool


class Stage1Recipe(_Section):
    """A complete Stage 1 recipe."""

    kind: Literal["stage1"]
    camera: CameraSection
    model: ModelSection
    rendering: RenderingSection
    loss: LossSection
    adversarial: AdversarialSection
    training: TrainingSection

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        """Checks across sections; parts that are turned off may say anything."""
        model, loss, adversarial, training = self.model, self.loss, self.adversarial, self.training
        micro_batch = training.batch_size // training.accumulate
        problems = []
        if loss.any_perceptual and loss.perceptual_patch_px > model.image_size:
            problems.append(
                f"loss.perceptual_patch_px ({loss.perceptual_patch_px}) must be at most model.image_size "
                f"({model.image_size})"
            )
        if adversarial.on and adversarial.size_px > model.image_size:
            problems.append(
                f"adversarial.size_px ({adversarial.size_px}) must be at most model.image_size ({model.image_size})"
            )
        if adversarial.on and adversarial.start_images >= training.images:
            problems.append(
                f"adversarial.start_images ({adversarial.start_images}) must be less than training.images "
                f"({training.images})"
            )
        if adversarial.on and micro_batch % adversarial.minibatch_group:
            problems.append(
                f"adversarial.minibatch_group ({adversarial.minibatch_group}) must divide training.batch_size / "
                f"training.accumulate ({micro_batch})"
            )
        if adversarial.novel > 0 and adversarial.novel_sees_disparity and loss.alignment == "least_squares":
            problems.append(
                "adversarial.novel_sees_disparity needs loss.alignment = canonical: fitted labels have no scale of "
                "their own, and the discriminator would judge the scale"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PriorSection(_Section):
    """The prior's shape; how many codes, tokens and classes there are is up to the tokens."""

    width: _Width
    layers: _Layers
    heads: _Heads
    dropout: float = Field(ge=0, lt=1)
    tied_head: bool

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % (4 * self.heads):  # rows and columns turn pairs of channels each
            raise ValueError(f"width ({self.width}) must be a multiple of 4 x heads ({self.heads})")
        return self


class PriorTrainingSection(ScheduleSection):
    """The schedule of Stage 2."""

    class_dropout: float = Field(ge=0, le=1)
    held_out: float = Field(ge=0, le=0.5)


class SamplingSection(_Section):
    """How samples are drawn where nothing else is said."""

    temperature: float = Field(ge=0, le=100)
    top_k: int = Field(ge=0, le=65536)
    top_p: float = Field(gt=0, le=1)
    guidance: float = Field(ge=0, le=100)


class Stage2Recipe(_Section):
    """A complete Stage 2 recipe."""

    kind: Literal["stage2"]
    model: PriorSection
    training: PriorTrainingSection
    sampling: SamplingSection


class DepthModelSection(_Section):
    """The depth network's shape."""

    encoder: str  # efficientnet-lite0, -lite1, -lite2, or the folder of a backbone of transformers
    backbone: dict[str, Any] = Field(default_factory=dict)  # what that folder says of it; training writes it here
    input_px: int = Field(ge=64, le=1024, multiple_of=32)
    widths: tuple[_Decoder, _Decoder, _Decoder, _Decoder, _Decoder]
    frozen_blocks: int = Field(ge=0, le=64)


class DepthLossSection(_Section):
    """Weights of the depth network's losses."""

    gradient: float = Field(ge=0, le=100)
    gradient_scales: int = Field(ge=1, le=5)


class AugmentationSection(_Section):
    """How images are changed before the depth network sees them; shares and strengths, 0 turns one off."""

    least_crop: float = Field(gt=0.1, le=1)
    aspect: float = Field(ge=0, le=1)
    colour: float = Field(ge=0, le=1)
    grey: float = Field(ge=0, le=1)
    blur: float = Field(ge=0, le=1)
    blur_sigma_px: float = Field(ge=0, le=8)
    noise: float = Field(ge=0, le=1)


class DepthTrainingSection(RunSection):
    """The schedule of the depth network."""

    encoder_learning_rate_factor: float = Field(ge=0, le=1)
    max_bad: float = Field(0.001, ge=0, le=1)  # weights files from before this key name none
    flip: bool


class DepthRecipe(_Section):
    """A complete recipe of a depth network."""

    kind: Literal["depth"]
    model: DepthModelSection
    loss: DepthLossSection
    augmentation: AugmentationSection
    training: DepthTrainingSection


Recipe = Stage1Recipe | Stage2Recipe | DepthRecipe
