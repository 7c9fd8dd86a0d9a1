"""Builds models from recipes: the only module of the model that sees a config."""

from __future__ import annotations

import math
from typing import cast

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import DepthRecipe, Stage1Recipe, Stage2Recipe
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.backbone import Backbone
from vq3dcli.model.depth_network import DepthNetwork, EfficientNetLite, EncoderName
from vq3dcli.model.field import FieldMLP, FieldModel
from vq3dcli.model.planes import PlaneHead
from vq3dcli.model.prior import Prior
from vq3dcli.model.quantizer import Quantizer
from vq3dcli.model.vit import Transformer
from vq3dcli.rendering.cameras import Camera, DepthRange, canonical_camera
from vq3dcli.rendering.space import ContractedSpace, Frustum


def build_frustum(recipe: Stage1Recipe) -> Frustum:
    """What the camera sees that took the input photo."""
    camera = recipe.camera
    return Frustum(camera.radius, math.radians(camera.fov_deg), DepthRange(camera.near, camera.far))


def build_autoencoder(recipe: Stage1Recipe) -> Autoencoder:
    """A freshly initialised autoencoder; the weights are a function of the recipe alone."""
    model = recipe.model
    grid = model.image_size // model.patch
    tokens = grid**2
    plane_patch = round(model.patch * model.plane_scale)
    side = grid * plane_patch
    frustum = build_frustum(recipe)
    shown = None if model.depth_input == "none" else load_recipe(model.depth_input, DepthRecipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return Autoencoder(
            patch=model.patch,
            encoder=Transformer(tokens, model.encoder_width, model.encoder_layers, model.encoder_heads),
            decoder=Transformer(tokens, model.decoder_width, model.decoder_layers, model.decoder_heads),
            quantizer=Quantizer(model.codebook_size, model.code_dim),
            plane_head=PlaneHead(model.decoder_width, plane_patch, model.plane_channels, model.plane_head, side),
            field=FieldModel(
                FieldMLP(model.plane_channels, model.field_hidden, model.field_layers),
                frustum if model.space == "frustum" else ContractedSpace(),
                frustum,
            ),
            auxiliary_head=model.auxiliary_head,
            depth_network=None if shown is None else build_depth_network(shown),
        )


def build_prior(recipe: Stage2Recipe, *, codebook_size: int, length: int, classes: int) -> Prior:
    """A freshly initialised prior over images of `length` codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return Prior(codebook_size=codebook_size, length=length, classes=classes, **recipe.model.model_dump())


def build_canonical_camera(recipe: Stage1Recipe, size_px: int, batch: int = 1) -> Camera:
    """The camera that took the input photo, at `size_px` x `size_px`."""
    camera = recipe.camera
    return canonical_camera(
        batch, height_px=size_px, width_px=size_px, radius=camera.radius, fov_rad=math.radians(camera.fov_deg)
    )


def build_depth_network(recipe: DepthRecipe) -> DepthNetwork:
    """A depth network with a random encoder, too. Raises as `Backbone`."""
    model = recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        encoder = Backbone(model.backbone) if model.backbone else EfficientNetLite(cast(EncoderName, model.encoder))
        return DepthNetwork(encoder, model.widths, model.frozen_blocks, model.input_px)
