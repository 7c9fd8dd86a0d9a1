"""`import vq3d`: what the library's few names do is what the commands do, and every error says what to try."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import vq3d
from vq3dcli.cli import run
from vq3dcli.data.images import encode_png, read_image

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("vq3d.edits", "vq3d.model", "vq3d.photos", "vq3d.scene")
PAGE = ROOT / "docs" / "library.md"
EXAMPLES = [
    test for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples
]


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Path("photo.png").write_bytes(encode_png(pixels))
    return Path("photo.png")


@pytest.fixture
def model(tiny_weights: Path) -> vq3d.Model:
    return vq3d.load(tiny_weights, device="cpu")


def test_importing_it_imports_no_heavy_library() -> None:
    code = "import sys, vq3d; dir(vq3d); assert not {'torch', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_every_name_is_there_and_declared_for_type_checkers() -> None:
    block = next(node for node in ast.parse(Path(vq3d.__file__).read_text()).body if isinstance(node, ast.If))
    declared = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == vq3d._SOURCES
    assert sorted(declared) == vq3d.__all__
    for name in vq3d.__all__:
        assert getattr(vq3d, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        getattr(vq3d, "lod")  # noqa: B009


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_examples_in_docstrings_run(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner()
    assert runner.run(example, out=said.append).failed == 0, "".join(said)


def test_every_public_function_has_an_example() -> None:
    shown = {test.name for test in EXAMPLES}
    for public in (vq3d.load, vq3d.open, vq3d.interpolate, vq3d.compose):
        assert f"{public.__module__}.{public.__qualname__}" in shown
    for kind, names in ((vq3d.Model, "reconstruct classes sample"), (vq3d.Scene, "view export save save_video")):
        for name in names.split():
            member = kind.__dict__.get(name) or kind.__mro__[1].__dict__[name]
            function = member.fget if isinstance(member, property) else member
            assert f"{function.__module__}.{function.__qualname__}" in shown


def test_a_photo_is_taken_in_any_form(model: vq3d.Model, photo: Path) -> None:
    pixels = read_image(photo)
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.open(photo)
    with_alpha = np.dstack([array, np.full((24, 32), 255, np.uint8)])
    forms = [photo, str(photo), image, image.convert("RGBA"), array, with_alpha, pixels]
    scenes = model.reconstruct(forms)
    for scene in scenes:
        assert scene.detail == "photo"
        assert torch.equal(scene.nerf.codes, scenes[0].nerf.codes)
    assert [scene.name for scene in scenes] == ["photo", "photo", "photo", "image", "image", "image", "image"]
    grey = model.reconstruct(array[..., 0])
    assert torch.equal(grey.nerf.codes, model.reconstruct(np.repeat(array[..., :1], 3, 2)).nerf.codes)


def test_photos_are_turned_as_their_cameras_say(model: vq3d.Model, photo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).save("turned.png", exif=exif)
    read, opened = model.reconstruct(["turned.png", Image.open("turned.png")])
    assert torch.equal(read.nerf.codes, opened.nerf.codes)
    assert opened.view(size=32).image.size == (24, 32)


def test_a_photo_s_field_of_view_is_its_camera_s(model: vq3d.Model, photo: Path, tiny_weights: Path) -> None:
    """By EXIF, or as the caller says; what the first camera sees stays, and the world becomes as wide as it is."""
    exif = Image.Exif()
    exif[0x8769] = {0xA405: 26}
    for name, orientation in (("wide.png", 1), ("tall.png", 6)):
        exif[0x0112] = orientation
        Image.open(photo).save(name, exif=exif)
    wide, cropped, tall = (
        model.reconstruct("wide.png"),
        model.reconstruct("wide.png", fit="crop"),
        model.reconstruct("tall.png"),
    )
    fov_deg = [scene._opened.camera.fov_deg for scene in (wide, cropped, tall)]
    assert fov_deg == pytest.approx([67.3, 53.1, 53.1], abs=0.1)  # 4:3 of a diagonal of 43.3 mm
    assert model.reconstruct(Image.open("wide.png"))._opened.camera == wide._opened.camera
    own = model.reconstruct(photo)
    assert own._opened.camera.fov_deg == 40.0
    for seen in (wide.view(size=24), model.reconstruct(photo, photo_fov=20.0).view(size=24)):
        assert np.array_equal(np.asarray(seen.image), np.asarray(own.view(size=24).image))
    look = wide._opened.scene.render(wide._opened.frustum.camera(16, 16), samples=64)
    before = own._opened.scene.render(own._opened.frustum.camera(16, 16), samples=64)
    assert (look.s - before.s).abs().max() < 0.05
    assert vq3d.open(wide.save("wide.vq3d.safetensors"))._opened.camera == wide._opened.camera
    meshes = [scene.export(f"{number}.ply", size=24, max_depth=100) for number, scene in enumerate((own, wide))]
    width = [np.ptp(trimesh.load(path).vertices[:, 0]) for (path,) in meshes]
    assert width[1] > 1.5 * width[0]
    way = vq3d.interpolate(wide, own)  # its codes are decoded by the weights
    assert way.at(0.0)._opened.camera.fov_deg == 40.0
    options = ["--weights", str(tiny_weights), "--device", "cpu", "--yaw", "3", "--size", "24"]
    assert run(["render", str(photo), "--photo-fov", "67.3", *options, "-o", "a.png"]) == 0
    assert run(["render", "wide.png", *options, "-o", "b.png"]) == 0
    ours, theirs = (np.asarray(Image.open(name), int) for name in ("a.png", "b.png"))
    assert np.abs(ours - theirs).max() <= 2
    for arguments in (
        ["toyscene:box", "--photo-fov", "50"],
        [str(photo), "--photo-fov", "0"],
        [str(photo), "--photo-fov", "nan"],
    ):
        assert run(["render", *arguments, *options, "-o", "c.png"]) == 2
        assert not Path("c.png").exists()


def test_views_and_videos_are_those_of_the_command(model: vq3d.Model, photo: Path, tiny_weights: Path) -> None:
    scene, weights = model.reconstruct(photo), ["--weights", str(tiny_weights), "--device", "cpu"]
    assert run(["render", str(photo), *weights, "--yaw", "5", "--pitch", "2", "-o", "view.png"]) == 0
    view = scene.view(yaw=5, pitch=2)
    assert np.array_equal(np.asarray(view.image), np.asarray(Image.open("view.png").convert("RGB")))
    assert view.disparity.shape == (24, 32)
    assert view.disparity.dtype == np.float32
    assert 0.0 <= view.disparity.min() <= view.disparity.max() <= 1.0
    for arguments, options in (
        (["--swing", "--stereo", "anaglyph"], {"camera": "swing", "stereo": "anaglyph"}),
        (["--orbit", "--disparity", "--amplitude", "4"], {"disparity": True, "amplitude": 4.0}),
    ):
        assert run(["render", str(photo), *weights, *arguments, "--frames", "2", "-o", "theirs.gif"]) == 0
        paths = scene.save_video("ours.gif", frames=2, **options)  # type: ignore[arg-type]
        for path in paths:
            assert path.read_bytes() == Path(str(path).replace("ours", "theirs")).read_bytes()


def test_a_caller_is_told_of_each_frame(model: vq3d.Model, photo: Path) -> None:
    done: list[tuple[int, int]] = []
    model.reconstruct("toyscene:box").save_video(
        "a.gif", frames=2, size=16, samples=4, on_frame=lambda *at: done.append(at)
    )
    assert done == [(0, 2), (1, 2), (2, 2)]


def test_exports_are_those_of_the_command(model: vq3d.Model, photo: Path, tiny_weights: Path) -> None:
    assert run(["export", str(photo), "--weights", str(tiny_weights), "--device", "cpu", "-o", "theirs.ply"]) == 0
    assert model.reconstruct(photo).export("ours.ply") == [Path("ours.ply")]
    assert Path("ours.ply").read_bytes() == Path("theirs.ply").read_bytes()


def test_the_way_between_is_that_of_the_command(model: vq3d.Model, photo: Path, tiny_weights: Path) -> None:
    arguments = ["--weights", str(tiny_weights), "--device", "cpu", "--frames", "3", "--size", "16", "-o", "theirs.gif"]
    assert run(["interpolate", str(photo), "toyscene:box", *arguments]) == 0
    a, b = model.reconstruct([photo, "toyscene:box"], detail="none")
    way = vq3d.interpolate(a, b)
    way.save_video("ours.gif", camera="still", frames=3, size=16)
    assert Path("ours.gif").read_bytes() == Path("theirs.gif").read_bytes()
    assert torch.equal(way.at(0.0).nerf.planes, a.nerf.planes)
    assert torch.equal(way.at(1.0).nerf.planes, b.nerf.planes)
    middle = vq3d.interpolate(a, b, mix="planes").at(0.5).nerf.planes
    assert torch.allclose(middle, 0.5 * (a.nerf.planes + b.nerf.planes))


def test_compositions_are_those_of_the_command(photo: Path) -> None:
    options = ["--device", "cpu", "--frames", "2", "--size", "24", "--samples", "16"]
    edits = ["--insert", "toyscene:snowman", "--at", "0.3,0.8", "--delete", "0.6,0.5,0.9,0.9"]
    assert run(["compose", "toyscene:box", *edits, *options, "-o", "theirs.gif"]) == 0
    room, other = vq3d.load(device="cpu").reconstruct(["toyscene:box", "toyscene:snowman"])
    emptied = vq3d.compose(room, delete=[(0.6, 0.5, 0.9, 0.9)])
    both = vq3d.compose(emptied, insert=other, at=(0.3, 0.8))
    both.save_video("ours.gif", frames=2, size=24, samples=16)
    assert Path("ours.gif").read_bytes() == Path("theirs.gif").read_bytes()
    assert repr(both) == "Scene('toyscene-box', plain NeRF, composed)"
    assert repr(room) == "Scene('toyscene-box', plain NeRF)"
    with pytest.raises(vq3d.Vq3dError, match="try: save_video or export"):
        both.save("both.vq3d.safetensors")


def test_saved_scenes_look_the_same(model: vq3d.Model, photo: Path) -> None:
    scene = model.reconstruct(photo)
    opened = vq3d.open(scene.save("a.vq3d.safetensors"), device="cpu")
    assert opened.detail == "photo"
    assert torch.equal(opened.nerf.codes, scene.nerf.codes)
    assert np.array_equal(np.asarray(opened.view(size=24).image), np.asarray(scene.view(size=24).image))
    again = vq3d.open(opened.save("b.vq3d.safetensors"), device="cpu")
    assert torch.equal(again.nerf.planes, opened.nerf.planes)
    assert model.reconstruct("b.vq3d.safetensors").weights is model.weights
    with pytest.raises(vq3d.Vq3dError, match="codes are mixed by the weights"):
        vq3d.interpolate(opened, again, mix="codes")
    assert vq3d.interpolate(opened, again).at(0.5).weights is None


PIXELS = np.zeros((8, 12, 3), np.uint8)
WRONG: list[tuple[Callable[[vq3d.Model, vq3d.Scene], object], str]] = [
    (lambda model, _: model.reconstruct("none.jpg"), "no such file"),
    (lambda model, _: model.reconstruct(None), "a photo is no NoneType; try: a path, a PIL image"),  # type: ignore[call-overload]
    (lambda model, _: model.reconstruct([3]), "a photo is no int"),  # type: ignore[list-item]
    (lambda model, _: model.reconstruct(PIXELS / 255), r"not float64; try: \(photo \* 255\)"),  # type: ignore[call-overload]
    (lambda model, _: model.reconstruct(torch.zeros(3, 8, 8)), r"not torch.float32; try: .*to\(torch.uint8\)"),
    (lambda model, _: model.reconstruct(PIXELS.transpose(2, 0, 1)), r"\[3, 8, 12\]; try: photo.transpose\(1, 2, 0\)"),
    (lambda model, _: model.reconstruct(torch.from_numpy(PIXELS)), r"try: photo.permute\(2, 0, 1\)"),
    (lambda model, _: model.reconstruct([PIXELS[None]]), r"try: a list of single photos"),
    (lambda model, _: model.reconstruct(PIXELS[:0]), r"not \[0, 12, 3\]"),
    (lambda model, _: model.reconstruct(Image.new("F", (8, 8))), "cannot decode image"),
    (lambda model, _: model.reconstruct("toyscene:box", geometry="nerf"), "geometry is for photo detail"),
    (lambda model, _: model.sample("box"), "a prior over the codes of another Stage 1"),
    (lambda model, _: vq3d.load("none/"), "no such"),
    (lambda model, _: vq3d.load(3), "weights cannot be 3; try: a text or a path"),  # type: ignore[arg-type]
    (lambda model, _: vq3d.load(device="gpu"), "no device 'gpu'.*try: device"),
    (lambda model, _: vq3d.open("photo.jpg"), r"not a saved scene.*try: vq3d.load\(\).reconstruct"),
    (lambda model, _: vq3d.open("none.vq3d.safetensors"), "no such scene file"),
    (lambda model, scene: scene.view(yaw=300), "^yaw is 300, must be"),
    (lambda model, scene: scene.save_video("a.mov"), "mov"),
    (lambda model, scene: scene.save_video("a.mp4", frames=3, seconds=1), "^frames and seconds both say"),
    (lambda model, scene: scene.save_video("a.gif", quality="small"), "a quality is for mp4 and webm"),
    (lambda model, scene: scene.export("a.ply", max_depth=0.2), "try: a larger max_depth"),
    (lambda model, scene: model.reconstruct("toyscene:box", photo_fov=50), "^photo_fov is for photos"),
    (lambda model, scene: vq3d.load("hf://nobody/nothing@"), "no address of the Hub"),
    (lambda model, scene: scene.save_video("a.mp4", camera="circle"), "no camera path 'circle'; try: orbit"),
    (lambda model, scene: scene.save_video("a.mp4", camera="still", amplitude=3), "has no amplitude"),
    (lambda model, scene: scene.save_video("a.mp4", camera="none.json"), "no such file"),
    (lambda model, scene: scene.export("a.xyz"), "cannot tell the format"),
    (lambda model, scene: scene.export("a.ply", views=3), "^views has no meaning for ply; try: format npz"),
    (lambda model, scene: scene.save("a.safetensors"), "a saved scene is called NAME.vq3d.safetensors"),
    (
        lambda model, scene: vq3d.compose(scene, insert="cat.jpg"),
        r"a mesh \(cat.jpg\); try: model.reconstruct",
    ),
    (lambda model, scene: vq3d.compose(scene, insert=scene, at=(9, 9)), "at: "),
    (lambda model, scene: vq3d.interpolate(scene, scene).at(2), "from 0 to 1, not 2"),
    (lambda model, scene: scene.nerf.query(torch.zeros(3)), r"a tensor \[N, 3\], not \[3\]; try: torch.tensor"),
    (lambda model, scene: vq3d.compose(scene, scale=-1, insert=scene), r"try: help\(vq3d.compose\)$"),
    (lambda model, scene: scene.save_video("a.xyz"), r"try: .mp4, .webm, .gif, .png$"),
    (
        lambda model, scene: vq3d.compose(scene, insert=scene, at=(0.3, 0.8), move={(0, 0, 1, 1): 3}),
        "a place is two numbers, not 3",
    ),  # type: ignore[dict-item]
]
# What a type checker tells, and a notebook does not: the call, and what is said of it.
MISTYPED: list[tuple[str, str]] = [
    ("model.reconstruct('toyscene:box', detail='foto')", "detail cannot be 'foto'; try: photo, none$"),
    ("model.reconstruct('toyscene:box', geometry='depth')", "geometry cannot be 'depth'; try: nerf, teacher, both"),
    ("model.reconstruct('toyscene:box', fit='fill')", "fit cannot be 'fill'; try: crop, squash"),
    ("model.sample('box', detail='foto')", "detail cannot be 'foto'"),
    ("scene.save_video('a.gif', disparity='left')", "disparity cannot be 'left'; try: True or beside"),
    ("scene.save_video('a.gif', stereo='red')", "stereo cannot be 'red'; try: sbs, anaglyph"),
    ("scene.save_video('a.mp4', quality='high')", "quality cannot be 'high'; try: small, good, best"),
    ("scene.save_video('a.gif', frames='2')", "frames cannot be '2'; try: a whole number"),
    ("scene.save_video('a.gif', frames=2.5)", "frames cannot be 2.5; try: a whole number"),
    ("scene.save_video('a.gif', on_frame=3)", "on_frame cannot be 3; try: a function"),
    ("scene.export('a.glb', mesh='hull')", "mesh cannot be 'hull'; try: relief, solid"),
    ("scene.export('a.ply', axes='y-up')", "axes cannot be 'y-up'; try: opencv, opengl"),
    ("scene.export('a', 'gltf')", "format cannot be 'gltf'; try: viewer, ply"),
    ("scene.view(yaw='a')", "yaw cannot be 'a'; try: a number"),
    ("scene.view(size=[32])", "size cannot be a list; try: a whole number"),
    ("vq3d.interpolate('a.jpg', 'b.jpg')", r"a cannot be 'a.jpg'; try: a scene, as model.reconstruct\(path\)"),
    ("vq3d.interpolate(scene, scene, mix='tokens')", "mix cannot be 'tokens'; try: codes, planes"),
    ("vq3d.interpolate(scene, scene).at('half')", "progress cannot be 'half'"),
    ("vq3d.compose('a.jpg', insert=scene)", r"scene cannot be 'a.jpg'; try: a scene, as model.reconstruct\(path\)"),
    ("vq3d.compose(scene, insert=scene, at=0.5)", "at cannot be 0.5; try: a few numbers"),
    ("vq3d.compose(scene, move=[(0, 0, 1, 1)])", "move cannot be a list"),
]


@pytest.mark.parametrize(("call", "said"), MISTYPED)
def test_misspelt_words_and_other_types_are_refused(call: str, said: str, model: vq3d.Model) -> None:
    scene = model.reconstruct("toyscene:snowman")
    with pytest.raises(vq3d.Vq3dError, match=said):
        eval(call, {"vq3d": vq3d, "model": model, "scene": scene})


def test_numbers_of_numpy_are_numbers(model: vq3d.Model) -> None:
    scene = model.reconstruct("toyscene:snowman")
    assert scene.view(yaw=np.float32(3), size=np.int64(16)).image.size == (16, 16)  # type: ignore[arg-type]
    vq3d.compose(scene, insert=scene, at=np.array([0.3, 0.8]))  # type: ignore[arg-type]


def test_a_batch_is_several_photos(model: vq3d.Model) -> None:
    batch = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    scenes = model.reconstruct(list(batch))
    for given in (batch, batch.permute(0, 2, 3, 1).numpy()):
        again = model.reconstruct(given)
        assert isinstance(again, list)
        assert all(torch.equal(one.nerf.codes, other.nerf.codes) for one, other in zip(again, scenes, strict=True))


def test_the_embedded_weights_have_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = vq3d.load("embedded", prior="embedded", device="cpu")
    assert loaded.weights.sha256 == vq3d.load(device="cpu").weights.sha256 and loaded.classes
    assert run(["classes", "--weights", "embedded", "--prior", "embedded"]) == 0
    assert capsys.readouterr().out.split()[1] == loaded.classes[0]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_errors_say_what_to_try(
    call: Callable[[vq3d.Model, vq3d.Scene], object], said: str, model: vq3d.Model, photo: Path
) -> None:
    scene = model.reconstruct("toyscene:snowman")
    with pytest.raises(vq3d.Vq3dError, match=said) as caught:
        call(model, scene)
    assert not re.search(r"(^|[ '(])(--[a-z]|-o\b)", str(caught.value))  # which are of the command line


def test_an_output_never_replaces_its_input(model: vq3d.Model, photo: Path) -> None:
    before = photo.read_bytes()
    with pytest.raises(vq3d.Vq3dError, match="would overwrite the input"):
        model.reconstruct(photo).save_video("photo.png")
    assert photo.read_bytes() == before


def test_cameras_of_a_file_film_it(model: vq3d.Model, photo: Path) -> None:
    Path("path.json").write_text('[{"yaw_deg": 5, "pitch_deg": 2}]')
    scene = model.reconstruct(photo)
    scene.save_video("frames", camera="path.json")
    (frame,) = Path("frames").iterdir()
    view = scene.view(yaw=5, pitch=2, fov=40)  # the model's own; without it views come as close as covers the picture
    assert np.array_equal(np.asarray(Image.open(frame).convert("RGB")), np.asarray(view.image))


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each snippet has five lines at most; only sizes and lengths are small here."""
    data = pytest.importorskip("skimage.data")
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "other", "photos/a", "photos/b"):
        Path(f"{name}.jpg").parent.mkdir(exist_ok=True)
        Image.fromarray(data.chelsea()).resize((60, 40)).save(f"{name}.jpg")
    names: dict[str, object] = {"torch": torch}
    for block in snippets():
        assert len(block.strip().splitlines()) <= 5
        small = re.sub(r"(save_video\([^)]*)\)", r"\1, frames=2, size=24, samples=8)", block.replace(", frames=60", ""))
        exec(small.replace("vq3d.load()", 'vq3d.load(device="cpu")'), names)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"orbit.mp4", "orbit_disparity.mp4", "scene.html", "scene.glb", "morph.mp4", "both.mp4", "a.ply"}


@pytest.mark.slow
def test_the_page_passes_a_strict_type_checker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import torch\n" + "\n".join(snippets()) + "\nvq3d.lod()\nmodel.reconstruct(3)\n")
    # With the settings of the linters, which are strict, and so with what these have checked already.
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    found = [line for line in ended.stdout.splitlines() if ": error:" in line]
    assert len(found) == 2, ended.stdout + ended.stderr
    assert 'Module has no attribute "lod"' in found[0]
    assert "No overload variant" in found[1]
