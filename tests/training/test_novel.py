"""Losses at exact novel views: closed forms, what they do to a scene, no dependence on how batches are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from vq3dcli.cli import run
from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import read_image
from vq3dcli.data.loader import Batch
from vq3dcli.data.views import View, Views, mirrored, novel_poses
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import InputMissingError, RecipeError
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.scene import Scene, reconstruct_scene
from vq3dcli.pipelines.train import open_loader
from vq3dcli.rendering.cameras import Camera, canonical_camera, image_rays, s_from_z_depth
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import NovelViews, Objective, Stage1Objective
from vq3dcli.training.stage1 import compute_gradients, train

Make = Callable[..., Stage1Recipe]

SIZE = 16
NOVEL = ("loss.novel_l2=1", "loss.novel_l1=0.1", "loss.novel_depth=2")


def _camera(pose: Tensor) -> Camera:
    base = canonical_camera(len(pose), height_px=SIZE, width_px=SIZE)
    return Camera(pose, base.intrinsics, SIZE, SIZE)


class _Toys:
    """Toy scenes as a stream without shards; each third one has no view."""

    class_names = ("toy",)
    metric_labels = True
    bad: ClassVar[dict[str, str]] = {}

    def __init__(self, batch_size: int = 8, *, without: int = 3) -> None:
        self.batch_size, self.without = batch_size, without
        scenes = sample_scenes(torch.arange(24), seed=0)
        self.main = render_scenes(scenes, canonical_camera(24, height_px=SIZE, width_px=SIZE))
        self.poses = novel_poses(0, "test", torch.arange(24), 1)[:, 0]
        self.novel = render_scenes(scenes, _camera(self.poses))

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            index = torch.arange(images_seen, images_seen + self.batch_size)
            rows = index % 24
            row = (rows % self.without > 0).nonzero()[:, 0]
            there = rows[row]
            yield Batch(
                image=self.main.rgb[rows],
                s=self.main.s[rows],
                label_kind=torch.ones(self.batch_size, dtype=torch.int8),
                class_index=torch.zeros(self.batch_size, dtype=torch.int64),
                index=index,
                keys=[f"{row:08d}" for row in rows.tolist()],
                views=Views(self.novel.rgb[there], self.novel.s[there], self.poses[there], row),
            )
            images_seen += self.batch_size


@pytest.fixture(scope="module")
def toys() -> _Toys:
    return _Toys()


def _wall(points: Tensor) -> tuple[Tensor, Tensor]:
    """An opaque coloured plane that stands askew behind the pivot."""
    x, y, z = points.unbind(-1)
    behind = z - 0.5 - 0.4 * x > 0
    colour = 0.5 + 0.3 * torch.stack([torch.sin(2 * x), torch.sin(1.5 * y + 1), torch.cos(x + y)], -1)
    return 1e6 * behind.float(), colour


def _wall_view(pose: Tensor) -> View:
    """The picture of it, by where rays meet the plane."""
    rays = image_rays(_camera(pose[None]))
    origin, direction = rays.origin[0], rays.direction[0]
    z_depth = (0.5 + 0.4 * origin[:, 0] - origin[:, 2]) / (direction[:, 2] - 0.4 * direction[:, 0])
    _, colour = _wall(origin + z_depth[:, None] * direction)
    image = (colour * 255).round().to(torch.uint8).T.reshape(3, SIZE, SIZE)
    return View(image, s_from_z_depth(z_depth).reshape(SIZE, SIZE), pose)


def _wall_terms(
    recipe: Stage1Recipe, field: Callable[[Tensor], tuple[Tensor, Tensor]], *views: View
) -> dict[str, float]:
    objective = Stage1Objective(build_autoencoder(recipe), recipe)
    objective.autoencoder.field = lambda planes: field  # type: ignore[method-assign]
    count = len(views)
    image, s, pose = (torch.stack(parts) for parts in zip(*views, strict=True))
    given = NovelViews(Views(image, s, pose, torch.arange(count)), torch.tensor(1.0))
    nothing = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    index = torch.arange(count)
    terms = objective(nothing, s, torch.zeros(count), index, torch.tensor(0.0), novel=given).terms
    return {name: float(value) for name, value in terms.items()}


def test_a_field_that_is_known_has_the_pictures_that_geometry_says(tiny_recipe: Make) -> None:
    recipe = tiny_recipe(*NOVEL, "loss.depth_kind=pointwise_l1", "rendering.samples=200")
    views = [_wall_view(pose) for pose in novel_poses(1, "wall", torch.arange(4), 1)[:, 0]]
    right = _wall_terms(recipe, _wall, *views)
    assert right["novel_l2"] < 2e-4 and right["novel_l1"] < 0.01
    assert right["novel_depth"] < 1.5 / 200  # a sample's distance
    # Given another's camera, neither colours nor depth are right.
    wrong = _wall_terms(
        recipe, _wall, *(a._replace(cam_to_world=b.cam_to_world) for a, b in zip(views, views[::-1], strict=True))
    )
    assert wrong["novel_l2"] > 20 * right["novel_l2"] and wrong["novel_depth"] > 3 * right["novel_depth"]
    # What depth is off by is what the loss says; so are colours, of the whole picture.
    off = _wall_terms(recipe, _wall, *(view._replace(s=view.s + 0.1) for view in views))
    assert off["novel_depth"] == pytest.approx(0.1, abs=0.005)
    black = _wall_terms(recipe, _wall, *(view._replace(image=torch.zeros_like(view.image)) for view in views))
    mean = torch.stack([view.image.double() / 127.5 for view in views]).square().mean()
    assert black["novel_l2"] == pytest.approx(float(mean), rel=0.05)


def test_the_mirror_image_has_the_same_losses(tiny_recipe: Make) -> None:
    recipe = tiny_recipe(*NOVEL, "rendering.samples=200", f"rendering.rays_per_image={SIZE**2}")
    view = _wall_view(novel_poses(1, "wall", torch.arange(1), 1)[0, 0])
    changed = view._replace(image=view.image // 2, s=view.s + 0.05 * torch.linspace(0, 1, SIZE))

    def flipped(points: Tensor) -> tuple[Tensor, Tensor]:
        return _wall(points * torch.tensor([-1.0, 1.0, 1.0]))

    plain, mirror = _wall_terms(recipe, _wall, changed), _wall_terms(recipe, flipped, mirrored(changed))
    for name in ("novel_l2", "novel_l1", "novel_depth"):
        assert mirror[name] == pytest.approx(plain[name], rel=0.02), name
    right = _wall_terms(recipe, flipped, mirrored(view))
    for other in (mirrored(view)._replace(cam_to_world=view.cam_to_world), view):
        wrong = _wall_terms(recipe, flipped, other)
        assert wrong["novel_l2"] > 20 * right["novel_l2"] and wrong["novel_depth"] > 3 * right["novel_depth"]


class _Planes(torch.nn.Module):
    """A scene's own planes instead of those of its codes."""

    def __init__(self, scenes: int, side: int) -> None:
        super().__init__()
        self.planes = torch.nn.Parameter(0.1 * torch.randn(scenes, 3, side, side, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.planes


def _fitted(recipe: Stage1Recipe, image: Tensor, s: Tensor, batch_views: Callable[[int], Views]) -> Scene:
    """Scenes whose planes and field are trained for themselves alone."""
    torch.manual_seed(0)
    model, count = build_autoencoder(recipe), len(image)
    model.plane_head = _Planes(count, recipe.model.image_size)  # type: ignore[assignment]
    objective = Stage1Objective(model, recipe)
    optimizer = torch.optim.Adam([*model.plane_head.parameters(), *model.field_mlp.parameters()], lr=0.02)
    steps, kind, share = 150, torch.ones(count), torch.tensor(1.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        novel = NovelViews(batch_views(step), share)
        optimizer.zero_grad()
        objective(image, s, kind, torch.arange(count) + count * step, share, novel=novel).loss.backward()
        optimizer.step()
    return reconstruct_scene(model, image)


def test_what_is_drawn_out_behind_objects_fades(tiny_recipe: Make) -> None:
    """On views that are not those trained on: colours are nearer the truth, and fewer rays end before it."""
    size, count, pool = 24, 3, 16
    scenes = sample_scenes(torch.tensor([0, 3, 7]), seed=0)
    base = canonical_camera(count, height_px=size, width_px=size)
    front = render_scenes(scenes, base)
    poses = novel_poses(0, "fit", torch.arange(count), pool + 6)
    cameras = [Camera(poses[:, k], base.intrinsics, size, size) for k in range(pool + 6)]
    truth = [render_scenes(scenes, camera) for camera in cameras]

    def views(step: int) -> Views:
        k = step % pool
        return Views(truth[k].rgb, truth[k].s, poses[:, k], torch.arange(count))

    def judged(*overrides: str) -> tuple[float, float, float]:
        common = (f"model.image_size={size}", "rendering.rays_per_image=160", "rendering.samples=24")
        scene = _fitted(tiny_recipe(*common, "loss.depth_kind=pointwise_l1", *overrides), front.rgb, front.s, views)
        seen = [scene.render(camera, samples=64) for camera in (base, *cameras[pool:])]
        off = torch.stack(
            [view.rgb.float() - exact.rgb for view, exact in zip(seen, (front, *truth[pool:]), strict=True)]
        )
        psnr = [-10 * float((part / 255).square().mean().log10()) for part in (off[0], off[1:])]
        before = torch.stack([view.s - exact.s for view, exact in zip(seen[1:], truth[pool:], strict=True)]) > 0.04
        return psnr[0], psnr[1], float(before.float().mean())

    main, novel, drawn_out = judged()
    with_main, with_novel, with_drawn_out = judged(*NOVEL)
    assert with_novel > novel + 2
    assert with_drawn_out < 0.6 * drawn_out
    assert with_main > main - 2


def _gradients(recipe: Stage1Recipe, batch: Batch, precision: str = "float32") -> tuple[Objective, list[Tensor]]:
    unclipped = recipe.training.model_copy(update={"gradient_clip": 1e9, "precision": precision})
    recipe = recipe.model_copy(update={"training": unclipped})
    model = build_autoencoder(recipe)
    if recipe.training.checkpoint_activations:
        model.checkpoint_activations()
    if recipe.training.compile:
        model.compile_parts(backend="eager")
    parameters = list(model.parameters())
    step, _ = compute_gradients(
        recipe, Stage1Objective(model, recipe), batch, parameters, 0, device=torch.device("cpu"), ranks=Ranks()
    )
    return step, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def test_micro_batches_add_up_to_the_batch(tiny_recipe: Make, toys: _Toys) -> None:
    """Also with views that are missing unevenly, in a micro-batch all of them."""
    batch = next(toys.batches(0))
    whole, of_whole = _gradients(tiny_recipe(*NOVEL), batch)
    assert float(whole.terms["novel_views"]) == len(batch.views.row) / 8 == 5 / 8  # type: ignore[union-attr]
    for accumulate in (2, 8):
        parts, of_parts = _gradients(tiny_recipe(*NOVEL, f"training.accumulate={accumulate}"), batch)
        torch.testing.assert_close(parts.loss, whole.loss)
        for name in ("novel_l2", "novel_l1", "novel_depth", "novel_views"):
            torch.testing.assert_close(parts.terms[name], whole.terms[name])
        for a, b in zip(of_parts, of_whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("importance", [0, 4])
def test_made_again_compiled_and_in_bfloat16_it_is_the_same_gradient(
    tiny_recipe: Make, toys: _Toys, importance: int
) -> None:
    batch, changes = next(toys.batches(0)), (*NOVEL, f"rendering.importance_samples={importance}")
    plain, of_plain = _gradients(tiny_recipe(*changes), batch)
    made, of_made = _gradients(tiny_recipe(*changes, "training.checkpoint_activations=true"), batch)
    assert torch.equal(plain.loss, made.loss)
    assert all(torch.equal(a, b) for a, b in zip(of_plain, of_made, strict=True))
    compiled, of_compiled = _gradients(tiny_recipe(*changes, "training.compile=true"), batch)
    torch.testing.assert_close(compiled.loss, plain.loss)
    for a, b in zip(of_compiled, of_plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    half, _ = _gradients(tiny_recipe(*changes), batch, "bfloat16")
    assert float(half.terms["novel_l2"]) == pytest.approx(float(plain.terms["novel_l2"]), rel=0.05)


def test_a_batch_without_views_has_the_gradient_of_the_other_losses(tiny_recipe: Make, tmp_path: Path) -> None:
    none = _Toys(without=1)
    recipe = tiny_recipe(*NOVEL, "training.images=24")
    batch = next(none.batches(0))
    assert batch.views is not None and len(batch.views.row) == 0
    step, gradients = _gradients(recipe, batch)
    other, of_other = _gradients(tiny_recipe(), batch)
    assert torch.equal(step.loss, other.loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, of_other, strict=True))
    # Records say so instead of a loss of 0.
    train(recipe, none, tmp_path)
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["novel_views"] == 0 and "novel_l2" not in record


def test_a_run_shows_novel_views_beside_the_truth(tiny_recipe: Make, toys: _Toys, tmp_path: Path) -> None:
    train(tiny_recipe(*NOVEL, "training.images=32"), toys, tmp_path)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert {"novel_l2", "novel_l1", "novel_depth"} <= record.keys() and 0.5 < record["novel_views"] < 0.8
    sheet = read_image(next((tmp_path / "sheets").iterdir()))
    gap, columns = 2, 8
    assert sheet.shape[1:] == (6 * (SIZE + gap) + gap, columns * (SIZE + gap) + gap)
    batch = next(toys.batches(0))
    assert batch.views is not None
    for row in range(3):
        top, left = ((SIZE + gap) * place + gap for place in (row, columns - 2))
        seen, true = sheet[:, top : top + SIZE, left:].unfold(2, SIZE, SIZE + gap).unbind(2)
        if row:  # the first has none
            assert torch.equal(true, batch.views.image[row - 1]) and not torch.equal(seen, true)
        else:
            assert (seen == 128).all() and (true == 128).all()


def test_a_camera_that_saw_no_view_is_refused(tiny_recipe: Make, toys: _Toys, tmp_path: Path) -> None:
    recipe = tiny_recipe(*NOVEL, "camera.fov_deg=50", "camera.radius=2.5")
    with pytest.raises(RecipeError, match=r"camera\.radius 3, not 2\.5, camera\.fov_deg 40, not 50; try: --set cam"):
        train(recipe, toys, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_views_are_refused_with_what_to_do(
    tiny_recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, views in (("plain", 0), ("beside", 1)):
        prepare_toyscenes(tmp_path / name, count=8, size=SIZE, seed=0, views=views)
        label_exact(tmp_path / name)
    recipe = tiny_recipe(*NOVEL)
    with pytest.raises(InputMissingError, match=r"no sample has a view .*plain.*prepare-data toyscenes .*--views 1"):
        open_loader(recipe, [tmp_path / "plain"], "exact", Ranks())
    mixed = open_loader(recipe, [tmp_path / "plain", tmp_path / "beside"], "exact", Ranks())
    views = mixed.batch_at(0).views
    assert views is not None and 0 < len(views.row) < 8
    assert open_loader(tiny_recipe(), [tmp_path / "beside"], "exact", Ranks()).batch_at(0).views is None
    (tmp_path / "r.toml").write_text(dump_recipe(recipe))
    for more in ([], ["--dry-run"]):
        words = ["train-stage1", str(tmp_path / "r.toml"), "--data", str(tmp_path / "plain"), *more]
        assert run([*words, "--out", str(tmp_path / "run")]) == 66
        assert "--views 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
