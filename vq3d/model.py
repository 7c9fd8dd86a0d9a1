"""What turns photos into scenes and draws new ones: `Model`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from vq3d.photos import Photo, photo_focal_mm, photo_pixels
from vq3d.scene import Scene
from vq3d.words import in_own_words
from vq3dcli.errors import UnavailableError, UsageError
from vq3dcli.model.draw_codes import NO_CLASS
from vq3dcli.pipelines.device import pick_device
from vq3dcli.pipelines.geometry import GeometryName
from vq3dcli.pipelines.inputs import STDIN, Fit, Source, fitted_picture, open_codes, parse_sources, with_first_view
from vq3dcli.pipelines.push import push
from vq3dcli.pipelines.render import Detail, Look, check_fov
from vq3dcli.pipelines.sampling.record import SampleWish, pick_classes, shown_name
from vq3dcli.pipelines.sampling.sample import draw_samples, sharpening_of
from vq3dcli.remote.hub import local_weights, repository
from vq3dcli.scene_file import SUFFIX
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, load_prior, load_weights


class Model:
    """A trained model: `load` makes one.

    Attributes:
        weights: The autoencoder, its recipe, and what its file says of itself.
        device: Where it computes.
    """

    def __init__(self, weights: LoadedWeights, prior: str | Path | None = None) -> None:
        self.weights = weights
        self.device = weights.device
        self._prior_path = prior

    def __repr__(self) -> str:
        size = self.weights.recipe.model.image_size
        return f"Model({Path(self.weights.path).name!r}, {size} px, on {self.device})"

    @overload
    def reconstruct(  # type: ignore[overload-overlap]  # a path is text, and no sequence of photos
        self,
        photos: Photo,
        *,
        detail: Detail | None = None,
        geometry: GeometryName | None = None,
        fit: Fit | None = None,
        photo_fov: float | None = None,
    ) -> Scene: ...

    @overload
    def reconstruct(
        self,
        photos: Sequence[Photo],
        *,
        detail: Detail | None = None,
        geometry: GeometryName | None = None,
        fit: Fit | None = None,
        photo_fov: float | None = None,
    ) -> list[Scene]: ...

    @in_own_words
    def reconstruct(
        self,
        photos: Photo | Sequence[Photo],
        *,
        detail: Detail | None = None,
        geometry: GeometryName | None = None,
        fit: Fit | None = None,
        photo_fov: float | None = None,
    ) -> Scene | list[Scene]:
        """Make a scene of a photo, or of each of several.

        Args:
            photos: A path (or another input of the commands: `toyscene:CLASS`, `samples.json#NAME`, a saved scene), a
                PIL image, a uint8 array `[H, W, 3]`, a uint8 tensor `[3, H, W]`; or a list of them, or a batch, an
                array `[B, H, W, 3]` or a tensor `[B, 3, H, W]` (for type checkers: `list(batch)`).
            detail: `photo` carries the photo's own pixels to novel views, `none` shows the plain NeRF; default:
                `photo`, but for toy scenes and samples, which are none.
            geometry: Of photo detail: `nerf`, `teacher` (the embedded depth network), or `both`, that network at the
                NeRF's scale; default: the best there is.
            fit: `crop` takes the centre square, `squash` shows all of the photo; default: `squash` with photo detail.
            photo_fov: Field of view of the photos in degrees of their width; default: what their EXIF says, else the
                model's 40.

        Raises:
            UsageError: What is no photo, or options that contradict each other.
            InputMissingError, DataError: A file that is not there, is damaged or too large.

        >>> import vq3d
        >>> from PIL import Image
        >>> model = vq3d.load()
        >>> model.reconstruct(Image.new("RGB", (80, 60), "green"))
        Scene('image', photo detail)
        >>> len(model.reconstruct(["toyscene:snowman", "toyscene:tower"]))
        2
        """
        look = Look(detail, fit, photo_fov_deg=photo_fov)
        if isinstance(photos, list | tuple) or (isinstance(photos, np.ndarray | torch.Tensor) and photos.ndim == 4):
            return [self._reconstruct(photo, look, geometry) for photo in photos]
        return self._reconstruct(photos, look, geometry)

    def _reconstruct(self, photo: object, look: Look, geometry: GeometryName | None) -> Scene:
        picture = None
        if isinstance(photo, str | Path):
            (source,) = parse_sources([str(photo)])
        else:
            source = Source(STDIN, Path(str(getattr(photo, "filename", ""))).stem or "image")
            size_px, focal_mm = self.weights.recipe.model.image_size, photo_focal_mm(photo)
            picture = fitted_picture(photo_pixels(photo), size_px, fit=look.fit_of(source), focal_mm=focal_mm)
        check_fov(look, [source])
        opened = look.open(source, self.weights, self.device, picture)
        return Scene(opened, detail=look.detail_of(source), geometry=geometry, weights=self.weights, source=source)

    @property
    @in_own_words
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that `sample` draws unless told; empty for a prior without classes.

        Those whose samples a viewer recognises, as the prior's card says. Others are drawn where they are named.

        Raises:
            Vq3dError: See `sample`.

        >>> import vq3d
        >>> vq3d.load().classes[:3]
        ('sphere', 'box', 'cylinder')
        """
        names = self._prior.tokens.class_names
        return tuple(shown_name(names[index]) for index in self._prior.recognised)

    @in_own_words
    def sample(
        self,
        classes: str | int | None = None,
        n: int = 1,
        seed: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        detail: Detail = "none",
    ) -> list[Scene]:
        """Draw new scenes, `n` of each class; sample j of a class and a seed is the same whatever else is drawn.

        Args:
            classes: By name or number, a comma between them; default: those of `classes`.
            n: Scenes of each class.
            seed: Of all samples, at least 0.
            temperature: Above 1 more varied, below 1 safer; default, as of the others: the prior's own.
            top_k: Draw from so many codes; 0 for all.
            top_p: Draw from codes of this probability together.
            guidance: Above 1 more typical of the class.
            detail: `photo` carries the pixels of the first view to novel views, `none` shows the plain NeRF.

        Raises:
            UsageError: No such class (the nearest is named), or a value out of range.
            DataError: The prior is one of other weights.

        >>> import vq3d
        >>> vq3d.load().sample("torus", n=1, seed=0)
        [Scene('torus-0000', plain NeRF)]
        """
        prior = self._prior
        if n < 1 or not 0 <= seed < 2**63:
            raise UsageError(f"n is {n} and seed is {seed}", remedy="n of at least 1, and a seed of at least 0")
        sharpening = sharpening_of(prior, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        names = prior.tokens.class_names
        chosen = pick_classes(str(classes), names) if classes is not None else prior.recognised or [NO_CLASS]
        drawn = draw_samples(prior, SampleWish(chosen, n, seed, sharpening))
        facts = {"weights_sha256": self.weights.sha256, "prior_sha256": prior.sha256, "seed": seed}
        opened = [open_codes(one.codes[None], self.weights, {**facts, "sample": one.name}, one.name) for one in drawn]
        opened = [with_first_view(one) for one in opened] if detail == "photo" else opened
        return [Scene(one, detail=detail, weights=self.weights) for one in opened]

    @in_own_words
    def push_to_hub(self, address: str, *, private: bool = False, message: str = "") -> str:
        """Publish the weights, and the prior if `load` was given one, on the Hugging Face Hub, with a model card.

        `HF_TOKEN` has the token; needs the extra `hub`.

        Args:
            address: `hf://OWNER/NAME[@BRANCH]`; both are made where they are not there.
            private: Of a repository that is made.
            message: Of the commit.

        Returns:
            The address of the commit.

        Raises:
            UsageError: Another address.
            DataError: The prior is one over other codes.
            UnavailableError: huggingface_hub is missing, or the Hub refuses or cannot be reached.

        >>> import vq3d
        >>> vq3d.load().push_to_hub("me/my-scenes")
        Traceback (most recent call last):
        vq3dcli.errors.UsageError: no repository of the Hub (me/my-scenes); try: hf://OWNER/NAME or hf://OWNER/NAME@BRANCH
        """
        prior = None if self._prior_path is None else self._prior
        return push(self.weights, prior, address, private=private, message=message)

    @functools.cached_property
    def _prior(self) -> LoadedPrior:
        """Raises `DataError` unless it belongs to these weights."""
        prior = load_prior(self._prior_path and local_weights(self._prior_path, "stage2"), self.device)
        prior.check_stage1(self.weights)
        return prior


@in_own_words
def load(
    weights: str | Path | None = None,
    *,
    prior: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | str | torch.device = "auto",
) -> Model:
    """Load a model.

    Args:
        weights: A weights file, a run's folder, a checkpoint, or an address: `hf://OWNER/NAME@REVISION` of the Hub,
            `https://...`; default, or `embedded`: the embedded ones.
        prior: The same of the prior that `Model.sample` draws from, read when that is first called; of a repository
            of the Hub by default its own.
        device: Where to compute; `auto` takes CUDA where it works.

    Raises:
        InputMissingError: There is no such file.
        DataError, UnsafeFileError: It is damaged, or no weights of ours.
        UnavailableError: There is no such device, or an address cannot be fetched.

    >>> import vq3d
    >>> vq3d.load(device="cpu")
    Model('stage1.safetensors', 64 px, on cpu)
    """
    if prior is None and isinstance(weights, str) and repository(weights) is not None:
        prior = weights
    return Model(load_weights(weights and local_weights(weights, "stage1"), _device(device)), prior)


@in_own_words
def open_scene(path: str | Path, *, device: str | torch.device = "auto") -> Scene:
    """Open a saved scene, without the weights that made it.

    Args:
        path: `NAME.vq3d.safetensors`.
        device: Where to compute; `auto` takes CUDA where it works.

    Raises:
        UsageError: Another kind of file.
        InputMissingError, DataError, UnsafeFileError: There is no such file, or it is damaged.

    >>> import vq3d
    >>> vq3d.load().reconstruct("toyscene:box").save("box.vq3d.safetensors")
    PosixPath('box.vq3d.safetensors')
    >>> vq3d.open("box.vq3d.safetensors")
    Scene('box', plain NeRF)
    """
    if not str(path).endswith(SUFFIX):
        raise UsageError(f"not a saved scene, NAME{SUFFIX} ({path})", remedy="vq3d.load().reconstruct(path)")
    (source,) = parse_sources([str(path)])
    look = Look()
    opened = look.open(source, None, _device(device))
    return Scene(opened, detail=look.detail_of(source), source=source)


def _device(name: str | torch.device) -> torch.device:
    """Raises `UnavailableError`."""
    if name in ("auto", "cpu", "cuda", "mps"):
        return pick_device(str(name))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UnavailableError(f"no device {str(name)!r}: {error}", remedy='device="auto"') from error
    return device
