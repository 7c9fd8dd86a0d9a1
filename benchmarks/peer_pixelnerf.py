"""pixelNeRF and vq3d trained on the same scenes for the same CPU time, and measured by the same figures.

pixelNeRF (Yu et al., CVPR 2021) runs from a checkout of sxyu/pixel-nerf and needs pyhocon, dotmap and opencv. Its
encoder starts from nothing, as ours does, and its network is narrower than as published, so that minutes are enough.
Both learn from a photo's own colours (`single`), or from those of all stored views too (`multiview`, pixelNeRF's own
regime), with exact disparity of the same pictures or without (`+depth`, the pointwise loss).

Budgets are CPU seconds of the process, with the loading of data and without a few steps that tell how many images ours
are scheduled for; pixelNeRF, whose rate of learning is constant, stops by the clock. Both train in bfloat16 where the
processor multiplies it fast. Figures are those of docs/evaluation.md, of held-out photos and one stored view of each.

Example:
    vq3d prepare-data toyscenes toys/ --count 2000 --size 64 --views 3 && vq3d depth-labels toys/ --model exact
    vq3d prepare-data toyscenes held/ --count 64 --size 64 --views 1 --seed 777 && vq3d depth-labels held/ --model exact
    python benchmarks/peer_pixelnerf.py --peer pixel-nerf/ --data toys/ --held-out held/ --out peer/ --cpu-seconds 600

Legend: B scenes, V target pictures of each, N rays, S samples, H = W side in pixels.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.config.defaults import EVALUATION_SAMPLES, MAX_VIEWS
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch, TrainingLoader
from vq3dcli.losses.depth import depth_loss
from vq3dcli.metrics.image import psnr
from vq3dcli.model.scene import to_model_range
from vq3dcli.pipelines.evaluation.geometry import Figures, Predictor, add_rendered, model_predictor
from vq3dcli.pipelines.studies.toy_runs import measured_rate, with_budget
from vq3dcli.rendering.cameras import FAR, NEAR, Camera, Rays, canonical_camera, image_rays, s_from_z_depth
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.rendering.scene import SceneView, as_view, joined
from vq3dcli.training.arithmetic import flush_denormals, resolve_precision
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights

SIZE, SCENES_AT_ONCE = 64, 16
BFLOAT16 = resolve_precision("auto", torch.device("cpu")) == torch.bfloat16
# What differs from its conf for images of this size.
PEER_CONF = "conf/exp/sn64.conf"
PEER_NETWORK = {"n_blocks": 3, "d_hidden": 128}
PEER_SETTINGS = {
    "model.encoder.pretrained": False,
    **{f"model.mlp_{part}.{name}": value for part in ("coarse", "fine") for name, value in PEER_NETWORK.items()},
    "renderer.white_bkgd": False,
    # a ray's samples: as many as ours, and half of them again where it found a surface
    **{"renderer.n_coarse": 24, "renderer.n_fine": 12, "renderer.n_fine_depth": 6},
}
PEER_PHOTOS, PEER_RAYS = 4, 128  # a step, as its trainer has them
PEER_LEARNING_RATE = 1e-3  # its 1e-4 is for days: after 95 steps its loss was 0.099 and not 0.071
# Against colours in [0, 1], whose squares are a quarter of ours: the same ratio as in our recipe.
PEER_DEPTH = 0.75
SUPERVISIONS = {  # what a recipe of ours is told; the peer is told by the names
    "single": ("loss.depth=0", "loss.depth_kind=none"),
    "single+depth": (),
    "multiview": ("loss.depth=0", "loss.depth_kind=none", "loss.novel_l2=0.3"),
    "multiview+depth": ("loss.novel_l2=0.3", "loss.novel_depth=0.5"),
}
COLUMNS = {"psnr": 2, "novel_psnr": 2, "gain": 2, "spearman": 3, "ssi_error": 3}
COLUMNS |= {"cpu_seconds_a_view": 3, "images": 0, "cpu_seconds": 0}  # and decimals that are shown


class Pass(NamedTuple):
    """What one of the peer's two networks sees; what passes through all samples ends at far."""

    rgb: Tensor  # `[B, N, 3]` in [0, 1]
    weights: Tensor  # `[B, N, S]`, summing to 1
    s: Tensor  # of the samples `[B, N, S]`


class Peer:
    """pixelNeRF out of a checkout. Raises `SystemExit`: there is none, or what it needs is not installed."""

    def __init__(self, checkout: Path) -> None:
        source, conf = checkout / "src", checkout / PEER_CONF
        if not (source / "render" / "nerf.py").is_file() or not conf.is_file():
            raise SystemExit(f"no checkout of pixelNeRF ({checkout}); try: git clone github.com/sxyu/pixel-nerf")
        if str(source) not in sys.path:
            sys.path.insert(0, str(source))
        try:
            hocon, models, render = map(importlib.import_module, ("pyhocon", "model", "render"))
        except ImportError as error:
            needs = "pip install pyhocon dotmap opencv-python-headless"
            raise SystemExit(f"pixelNeRF cannot be imported: {error}; try: {needs}") from error
        settings = hocon.ConfigFactory.parse_file(conf)
        for name, value in PEER_SETTINGS.items():
            settings.put(name, value)
        with contextlib.redirect_stdout(sys.stderr):
            self.net = models.make_model(settings["model"])
        self.renderer = render.NeRFRenderer.from_conf(settings["renderer"], lindisp=True)
        self._distances: list[Tensor] = []
        composite = self.renderer.composite

        def recording(net: Any, rays: Tensor, distances: Tensor, **options: Any) -> Any:
            self._distances.append(distances)
            return composite(net, rays, distances, **options)

        self.renderer.composite = recording

    def look(self, images: Tensor, rays: Rays) -> list[Pass]:
        """What rays `[B, N]` see of photos uint8 `[B, 3, H, W]`: by the coarse network and by the fine one."""
        # Its cameras have y up and look along -z; its pixels are counted from their centres.
        camera = canonical_camera(len(images), height_px=SIZE, width_px=SIZE)
        pose = camera.cam_to_world * torch.tensor([1.0, -1.0, -1.0, 1.0])
        focal, centre = camera.intrinsics[0, 0, 0], camera.intrinsics[0, 0, 2] - 0.5
        metres = rays.direction.norm(dim=-1, keepdim=True)
        ends = torch.cat([rays.origin, rays.direction / metres, NEAR * metres, FAR * metres], -1)
        self._distances.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
            self.net.encode(to_model_range(images), pose, focal, c=centre)
            seen = self.renderer(self.net, ends, want_weights=True)
        passes = []
        for part, distances in zip((seen.coarse, seen.fine), self._distances, strict=True):
            s = s_from_z_depth(distances.reshape(part.weights.shape) / metres)
            rest = (1.0 - part.weights.sum(-1, keepdim=True)).clamp(min=0.0)
            passes.append(Pass(part.rgb, torch.cat([part.weights, rest], -1), functional.pad(s, (0, 1))))
        return passes


@dataclass(frozen=True)
class PeerScene:
    """What the peer makes of photos uint8 `[B, 3, H, W]`, as our evaluation looks at scenes."""

    peer: Peer
    images: Tensor

    def render(self, camera: Camera, *, samples: int) -> SceneView:
        """One view of each photo by the peer's own samples, scene by scene."""
        views = []
        for i in range(len(camera)):
            rgb, weights, where = self.peer.look(self.images[i : i + 1], image_rays(camera[i]))[-1]
            s = (weights * where).sum(-1)
            views.append(as_view(camera[i], rgb, s, (weights * (where - s[..., None]).square()).sum(-1)))
        return joined(views)


Trained = tuple[Predictor, int, float]
"""A system that a budget was spent on: what it makes of photos, images seen, CPU seconds."""


def train_peer(checkout: Path, data: Path, supervision: str, seed: int, cpu_seconds: float) -> Trained:
    """Spend the budget on pixelNeRF."""
    torch.manual_seed(seed)
    peer = Peer(checkout)
    loader = _loader(data, PEER_PHOTOS, seed, views=MAX_VIEWS if "multiview" in supervision else 0)
    optimizer = torch.optim.Adam(peer.net.parameters(), lr=PEER_LEARNING_RATE)
    peer.net.train()
    started, images = time.process_time(), 0
    for batch in loader.batches(0):
        optimizer.zero_grad(set_to_none=True)
        _peer_loss(peer, batch, depth="depth" in supervision).backward()
        optimizer.step()
        images += PEER_PHOTOS
        if time.process_time() - started >= cpu_seconds:
            break
    spent = time.process_time() - started
    peer.net.eval()
    return lambda photos: PeerScene(peer, photos), images, spent


def _peer_loss(peer: Peer, batch: Batch, *, depth: bool) -> Tensor:
    """Its own loss on random rays of all target pictures, and ours of depth, of both its networks."""
    camera, count = canonical_camera(1, height_px=SIZE, width_px=SIZE), len(batch.image)
    images, s, poses = batch.image[:, None], batch.s[:, None], camera.cam_to_world.expand(count, 1, 4, 4)
    if batch.views is not None:
        views = batch.views
        images = torch.cat([images, views.image.reshape(count, -1, 3, SIZE, SIZE)], 1)
        s = torch.cat([s, views.s.reshape(count, -1, SIZE, SIZE)], 1)
        poses = torch.cat([poses, views.cam_to_world.reshape(count, -1, 4, 4)], 1)
    rays = image_rays(camera.at(poses.flatten(0, 1)))
    pixel = torch.randint(s[0].numel(), (count, PEER_RAYS))  # of any of the V pictures of its photo
    scene = torch.arange(count)[:, None]
    origin, direction = (part.reshape(count, -1, 3)[scene, pixel] for part in (rays.origin, rays.direction))
    rgb = images.transpose(2, 4).transpose(2, 3).reshape(count, -1, 3)[scene, pixel] / 255.0
    label = s.flatten(1).gather(1, pixel)
    loss = torch.zeros(())
    for seen in peer.look(batch.image, Rays(origin, direction)):
        loss = loss + functional.mse_loss(seen.rgb, rgb)
        if depth:
            loss = loss + PEER_DEPTH * depth_loss(seen.weights, seen.s, label, "pointwise").mean()
    return loss


def train_ours(data: Path, supervision: str, seed: int, cpu_seconds: float) -> Trained:
    """Spend the budget on `toy-cpu`, whose schedule is that of as many images as it is enough for."""
    recipe = load_recipe("toy-cpu", Stage1Recipe, [*SUPERVISIONS[supervision], f"training.seed={seed}"])
    batch = recipe.training.batch_size
    loader = _loader(data, batch, seed, views=int(recipe.loss.novel))
    with tempfile.TemporaryDirectory() as folder:
        scratch, run = Path(folder) / "calibration", Path(folder) / "run"
        rate = measured_rate(partial(train, recipe, loader), scratch, batch, clock=time.process_time)
        images = batch * max(1, int(cpu_seconds * rate / batch))
        started = time.process_time()
        train(with_budget(recipe, images, rate), loader, run)
        return model_predictor(load_weights(run)), images, time.process_time() - started


def _loader(data: Path, batch_size: int, seed: int, *, views: int, flip: bool = True) -> TrainingLoader:
    """Photos in random order with their labels and up to so many views. Raises `SystemExit`: they have none."""
    loader = TrainingLoader([data], batch_size=batch_size, size=SIZE, seed=seed, flip=flip, crop=False, views=views)
    if views and loader.num_with_views < loader.num_samples:
        raise SystemExit(f"not all scenes have views ({data}); try: vq3d prepare-data ... --views 3")
    return loader


@exact_rendering()
@torch.inference_mode()
def measure(predict: Predictor, held_out: TrainingLoader, scenes: int) -> dict[str, float]:
    """Figures by name, of that many photos and one stored view of each."""
    figures, size = Figures(), held_out.batch_size
    camera = canonical_camera(size, height_px=SIZE, width_px=SIZE)
    for start in range(0, scenes, size):
        batch = held_out.batch_at(start)
        assert batch.views is not None
        beside = replace(camera, cam_to_world=batch.views.cam_to_world)
        main, (novel,) = add_rendered(figures, predict(batch.image), batch.image, batch.s, camera, [beside])
        figures.add("novel_psnr", psnr(novel.rgb, batch.views.image))
        figures.add("copy_psnr", psnr(main.rgb, batch.views.image))
    return figures.summary()


@torch.inference_mode()
def cpu_seconds_a_view(predict: Predictor, photo: Tensor) -> float:
    """Of one photo and one view of it, by the renderer that users have, once all is compiled."""
    camera = canonical_camera(1, height_px=SIZE, width_px=SIZE)
    times = []
    for _ in range(4):
        started = time.process_time()
        predict(photo).render(camera, samples=EVALUATION_SAMPLES)
        times.append(time.process_time() - started)
    return min(times)


def run(system: str, supervision: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train and measure one system once; what is finished is read from its file."""
    file: Path = options.out / f"{system}-{supervision}-{options.cpu_seconds:g}s-{seed}.json"
    if file.exists():
        known: dict[str, float] = json.loads(file.read_text())
        return known
    held_out = _loader(options.held_out, min(options.scenes, SCENES_AT_ONCE), 0, views=1, flip=False)
    budget = (options.data, supervision, seed, options.cpu_seconds)
    predict, images, spent = train_ours(*budget) if system == "ours" else train_peer(options.peer, *budget)
    figures = measure(predict, held_out, options.scenes) | {"images": images, "cpu_seconds": spent}
    figures["gain"] = figures["novel_psnr"] - figures["copy_psnr"]
    figures["cpu_seconds_a_view"] = cpu_seconds_a_view(predict, held_out.batch_at(0).image[:1])
    figures = {name: figures[name] for name in COLUMNS}
    file.write_text(json.dumps(figures))
    print(f"{file.stem}: {figures}", file=sys.stderr, flush=True)
    return figures


def cell(values: Sequence[float], digits: int) -> str:
    """A mean, and the range where there are several."""
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def main() -> None:
    """Run what is asked for, all of the first seed before the next, and print a table in Markdown and one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of sxyu/pixel-nerf")
    parser.add_argument("--data", type=Path, required=True, help="shards with exact labels and views, to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="others, to measure on")
    parser.add_argument("--out", type=Path, required=True, help="figures of each run; what is there is kept")
    parser.add_argument("--cpu-seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=["peer", "ours"], default=["peer", "ours"])
    parser.add_argument("--modes", nargs="+", choices=list(SUPERVISIONS), default=list(SUPERVISIONS))
    parser.add_argument("--scenes", type=int, default=64, help="held-out scenes, at best a multiple of 16")
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(1)
    if "peer" in options.systems:
        Peer(options.peer)  # what is missing is said before any training
    options.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for mode in options.modes:
            for system in options.systems:
                runs.setdefault(f"{system} {mode}", []).append(run(system, mode, seed, options))
    print(f"| trained | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, rows in runs.items():
        cells = [cell([row[column] for row in rows], digits) for column, digits in COLUMNS.items()]
        print(f"| {name} | {' | '.join(cells)} |")
    print(json.dumps({"cpu_seconds": options.cpu_seconds, "seeds": options.seeds, "runs": runs}))


if __name__ == "__main__":
    main()
