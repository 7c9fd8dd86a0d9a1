"""Reading images beside Pillow and webdataset.

Photos are noise that falls with frequency as smooth photos do: as JPEGs of 500 x 375 they have 67 kB, in shards of 256
pixels 31 kB, as those of ImageNet have there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vq3dcli.data.images import centre_square, decode_square
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.errors import UnavailableError
from vq3dcli.pipelines.bench.measure import Gate, Work, psnr_db

PHOTOS, SIZE_PX = 64, 256
LEAST_PSNR_DB = 60.0
_FALL = 1.4


def works(device: torch.device) -> Iterator[Work]:
    """Photos to squares, and shards to a batch; on a CPU."""
    del device
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = write_photos(folder / "photos", PHOTOS)
        ours, theirs = partial(squares, photos), partial(pillow_squares, photos)
        yield Work(f"photos of 500 x 375 to {SIZE_PX} px", ours, PHOTOS, "images", "Pillow", theirs, _agree)
        shards = write_shards(folder / "photos", folder / "shards", SIZE_PX)
        images = image_loader(shards, PHOTOS, SIZE_PX)
        ours, theirs = partial(batch_by_key, images), partial(webdataset_batch, shards)
        yield Work(f"shards of {SIZE_PX} px", ours, PHOTOS, "images", "webdataset + Pillow", theirs, _agree)


def _agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Gate:
    assert ours.keys() == theirs.keys(), (list(ours)[:3], list(theirs)[:3])
    a, b = (torch.stack([images[key] for key in sorted(ours)]) / 255.0 for images in (ours, theirs))
    return Gate("psnr_db", psnr_db(a, b), LEAST_PSNR_DB)


def write_photos(folder: Path, count: int, height_px: int = 375, width_px: int = 500) -> list[Path]:
    """JPEGs of noise whose amplitude falls with frequency."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height_px)[:, None], np.fft.rfftfreq(width_px))
    frequency[0, 0] = np.inf
    paths = []
    for i in range(count):
        noise = np.fft.rfft2(generator.standard_normal((3, height_px, width_px)))
        grey = np.fft.irfft2(noise / frequency**_FALL, (height_px, width_px))
        picture = 128.0 + 50.0 * (0.9 * grey[:1] + 0.3 * grey) / grey.std()
        paths.append(folder / f"{i:04d}.jpg")
        pixels = picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(paths[-1], quality=92)
    return paths


def squares(photos: list[Path]) -> dict[str, Tensor]:
    """Ours, by file name."""
    return {path.stem: decode_square(path.read_bytes(), SIZE_PX, name=path.name).image for path in photos}


def pillow_squares(photos: list[Path]) -> dict[str, Tensor]:
    """The same with Pillow alone: decode, cut the centre, resize by its bicubic filter."""
    images = {}
    for path in photos:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        top, left, side = centre_square(image.height, image.width)
        square = image.crop((left, top, left + side, top + side)).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
        images[path.stem] = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    return images


def write_shards(photos: Path, out: Path, size_px: int) -> Path:
    """Shards of a folder of photos."""
    prepare(out, image_job("folder", open_source("folder", photos, out), Options(size_px)))
    return out


def image_loader(shards: Path, batch_size: int, size_px: int) -> TrainingLoader:
    """The loader of Stage 1, which decodes anew each time, as with data sets that no memory holds."""
    return TrainingLoader(
        [shards], labels=None, batch_size=batch_size, size=size_px, seed=0, flip=False, crop=False, cache_bytes=0
    )


def batch_by_key(loader: TrainingLoader) -> dict[str, Tensor]:
    """A batch's images by key."""
    batch = loader.batch_at(0)
    return {key.rpartition(" ")[2]: image for key, image in zip(batch.keys, batch.image, strict=True)}


def webdataset_batch(shards: Path) -> dict[str, Tensor]:
    """The same by webdataset, whose decoder is Pillow. Raises `UnavailableError` without it."""
    try:
        import webdataset
    except ImportError as error:
        raise UnavailableError("webdataset is not installed", remedy="pip install webdataset") from error
    tars = sorted(map(str, shards.glob("*.tar")))
    samples = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil")
    return {each["__key__"]: torch.from_numpy(np.array(each["jpg"])).permute(2, 0, 1) for each in samples}
