"""Sets of images: what they hold, and how what is wrong with them is said."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from vq3dcli.data import arrays as arrays_module
from vq3dcli.data.arrays import read_npz
from vq3dcli.data.images import encode_jpeg, encode_png
from vq3dcli.data.stream import spread
from vq3dcli.errors import DataError, InputMissingError, Vq3dError
from vq3dcli.pipelines.evaluation.image_sets import folder_set, npz_set, toy_set
from vq3dcli.pipelines.evaluation.rendered_sets import class_counts
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.sealed import write_sealed_json
from vq3dcli.seeding import generator
from vq3dcli.toyscenes import CLASS_NAMES, render_scenes, sample_scenes


def images(count, side_px=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side_px, side_px), dtype=torch.uint8, generator=random)


def joined(found):
    return torch.cat(list(found.batches()))


def test_toy_scenes_are_the_scenes_of_their_numbers():
    found = toy_set("toys", 3, seed=4, purpose="eval", size_px=16, first=2)
    index = torch.arange(2, 5)
    scenes = sample_scenes(index, seed=4, purpose="eval")
    assert torch.equal(joined(found), render_scenes(scenes, canonical_camera(3, height_px=16, width_px=16)).rgb)
    assert torch.equal(found.class_index, scenes.class_index)
    assert found.class_names == CLASS_NAMES
    json.dumps(found.description)
    other = toy_set("toys", 3, seed=4, purpose="eval", size_px=16, first=2, yaw_deg=20.0)
    assert other.description != found.description
    assert not torch.equal(joined(other), joined(found))


def test_toy_scenes_of_some_classes():
    found = toy_set("toys", 5, seed=0, purpose="eval", size_px=8, classes=[4, 1])
    assert set(found.class_index.tolist()) <= {1, 4}
    later = toy_set("toys", 2, seed=0, purpose="eval", size_px=8, classes=[1, 4], first=3)
    assert torch.equal(joined(later), joined(found)[3:])


def test_a_folder_with_classes_by_folder_and_images_of_any_size(tmp_path):
    for number, (name, side) in enumerate((("bee", 16), ("ant", 16), ("ant", 24), ("wasp", 20))):
        (tmp_path / name).mkdir(exist_ok=True)
        encode = encode_jpeg if side == 24 else encode_png
        suffix = "jpg" if side == 24 else "png"
        (tmp_path / name / f"{number}.{suffix}").write_bytes(encode(images(1, side, number)[0]))
    (tmp_path / "notes.txt").write_text("no image")
    found = folder_set("folder", tmp_path, class_names=("Ant", "bee"))
    assert found.class_index.tolist() == [0, 0, 1, -1]
    pictures = joined(found)
    assert pictures.shape == (4, 3, 16, 16)
    assert torch.equal(pictures[2], images(1, 16, 0)[0])
    assert found.description["quantisation"] == "as stored: 1 .jpg, 3 .png"
    assert joined(folder_set("folder", tmp_path, size_px=8)).shape == (4, 3, 8, 8)


def test_a_folder_of_vq3d_sample_is_read_by_its_record(tmp_path):
    for name in ("ant-0000", "ant-0000_disparity", "sheet"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(images(1)[0]))
    row = {"file": "ant-0000.png", "class": "ant", "codes": "1"}
    write_sealed_json(tmp_path / "samples.json", {"stage1_sha256": "ab" * 32, "samples": [row]})
    found = folder_set("folder", tmp_path, class_names=("bee", "ant"))
    assert found.class_index.tolist() == [1]
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(DataError, match="damaged record"):
        folder_set("folder", tmp_path)


def test_adm_s_file(tmp_path):
    pictures = images(70)
    np.savez(tmp_path / "a.npz", pictures.permute(0, 2, 3, 1).numpy(), np.arange(70) % 4)
    found = npz_set("npz", tmp_path / "a.npz", class_names=("ant", "bee", "cow"))
    assert torch.equal(joined(found), pictures)
    assert found.class_index[:5].tolist() == [0, 1, 2, -1, 0]
    assert npz_set("npz", tmp_path / "a.npz").class_index.unique().tolist() == [-1]


def test_rows_of_adm_s_file_are_those_of_the_array_with_little_of_it_in_memory(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (90, 16, 16, 3), dtype=np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", pictures)
        chosen = npz_set("npz", tmp_path / "a.npz", count=13, seed=3)
        rows = torch.randperm(90, generator=generator(3, "npz-set/rows"))[:13].sort().values
        for _ in range(2):
            assert torch.equal(joined(chosen), torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2))
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((40, 1024, 1024, 3), np.uint8))  # 126 MB of 0.1
    tracemalloc.start()
    try:
        found = npz_set("npz", tmp_path / "bomb.npz", count=1)
        assert joined(found).shape == (1, 3, 1024, 1024)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_npz_files_that_are_not_as_they_say_are_one_line(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), mu=np.zeros(4096))
    whole = (tmp_path / "a.npz").read_bytes()
    encrypted = bytearray(whole)
    for at in (6, whole.index(b"PK\1\2") + 8):
        encrypted[at] |= 1
    (tmp_path / "b.npz").write_bytes(encrypted)
    with pytest.raises(DataError, match="encrypted"):
        npz_set("npz", tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(whole.replace(b"(3, 8, 8, 3)", b"(9, 8, 8, 3)"))
    with pytest.raises(DataError, match=r"c\.npz"):
        joined(npz_set("npz", tmp_path / "c.npz"))
    monkeypatch.setattr(arrays_module, "_MOST_BYTES", 1 << 14)
    with pytest.raises(DataError, match="mu is larger than"):
        read_npz(tmp_path / "a.npz", ["mu"])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros(3)}, "no arr_0"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"\[2, 3, 8, 8\]"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"\[0, 8, 8, 3\]"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(3, np.int64)}, "arr_1 is int64"),
        ({"arr_0": np.array([{}], dtype=object)}, "plain arrays"),
    ],
)
def test_another_npz_is_one_line(arrays, told, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=told) as error:
        npz_set("npz", tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_what_is_no_set_is_one_line(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    for call, kind in (
        (lambda: read_npz(tmp_path / "none.npz", []), InputMissingError),
        (lambda: read_npz(tmp_path / "text.npz", []), DataError),
        (lambda: read_npz(tmp_path / "single.npz", []), DataError),
        (lambda: folder_set("folder", tmp_path / "none"), InputMissingError),
        (lambda: folder_set("folder", tmp_path / "empty"), DataError),
        (lambda: folder_set("folder", tmp_path / "bad"), DataError),
    ):
        with pytest.raises(Vq3dError) as error:
            call()
        assert type(error.value) is kind
        assert "\n" not in str(error.value)


def test_archives_that_are_packed_oddly_are_one_line(tmp_path):
    np.save(tmp_path / "arr_0.npy", np.zeros((2, 8, 8, 3), np.uint8))
    data = (tmp_path / "arr_0.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", data)
    whole = (tmp_path / "a.npz").read_bytes()
    assert len(npz_set("npz", tmp_path / "a.npz")) == 2
    # In both headers: encrypted, packed by a method that nobody knows, and packed as it is not.
    local, central = whole.index(b"PK\3\4"), whole.index(b"PK\1\2")
    for at, value in ((6, 1), (8, 99), (8, 8), (8, 12), (8, 14)):
        damaged = bytearray(whole)
        damaged[local + at], damaged[central + at + 2] = value, value
        (tmp_path / "b.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="plain arrays") as error:
            npz_set("npz", tmp_path / "b.npz")
        assert "\n" not in str(error.value)
    claimed = bytearray(whole)
    claimed[central + 24 : central + 28] = (1 << 31).to_bytes(4, "little")
    (tmp_path / "c.npz").write_bytes(claimed)
    with pytest.raises(DataError, match="not as long as its shape"):
        npz_set("npz", tmp_path / "c.npz")


def test_counts_of_classes():
    assert spread(10, [1, 1, 1]) == [4, 3, 3]
    assert spread(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
    assert sum(spread(2048, [0.1, 0.7, 0.33, 0.0])) == 2048
    assert class_counts([2, 0], 5, ("ant", "bee", "cow")) == {2: 3, 0: 2}
    assert class_counts([-1], 5, ()) == {-1: 5}
    like = toy_set("toys", 40, seed=0, purpose="eval", size_px=8, classes=[0, 1])
    counted = torch.bincount(like.class_index, minlength=2).tolist()
    assert class_counts([0, 1], 40, CLASS_NAMES, like) == {0: counted[0], 1: counted[1]}
    with pytest.raises(Vq3dError, match="no image of the prior's classes"):
        class_counts([0], 4, ("ant",), like)
