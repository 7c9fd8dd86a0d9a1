"""Labels by a tiny ONNX file that is made here, and what of onnxruntime a label depends on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.data.images import decode_image
from vq3dcli.data_tools.depth.models import find_model, open_model, to_disparity
from vq3dcli.errors import DataError, UnavailableError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")


def test_classes_are_no_disparity(tmp_path: Path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["image"], ["classes"], axis=1, keepdims=0)],
        "segments",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("classes", TensorProto.INT64, ["n", 32, 32])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "segments.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"its first output classes is tensor\(int64\)"):
        open_model(find_model(str(tmp_path / "segments.onnx")), CPU)


def test_onnxruntime_without_cuda_computes_on_the_cpu_if_it_may(
    archives: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    files = find_model(str(archives.onnx_file(tmp_path / "net.onnx", ["n", 3, 32, 32])))
    assert open_model(files, torch.device("cuda"), or_cpu=True).facts["provider"] == "CPUExecutionProvider"
    with pytest.raises(UnavailableError, match="no CUDA here"):
        open_model(files, torch.device("cuda"))


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:5", 5)])
def test_each_rank_computes_on_its_own_gpu(
    archives: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, number: int
):
    import onnxruntime

    class Opened(Exception):
        pass

    def opened(path: str, options: object, *, providers: list[object]) -> object:
        raise Opened(providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with pytest.raises(DataError) as error:
        open_model(find_model(str(archives.onnx_file(tmp_path / "net.onnx", ["n", 3, 32, 32]))), torch.device(device))
    assert isinstance(error.value.__cause__, Opened)
    assert error.value.__cause__.args == ([("CUDAExecutionProvider", {"device_id": number})],)


@pytest.mark.parametrize("how", ["doctor", "depth model"])
def test_nothing_is_reported_to_the_makers_of_onnxruntime(archives: ModuleType, tmp_path: Path, how: str):
    model = archives.onnx_file(tmp_path / "net.onnx", ["n", 3, 32, 32])
    script = (
        "from vq3dcli.__main__ import main; sys.argv = ['vq3d', 'doctor', '-q']; code = main(); assert code == 0, code"
        if how == "doctor"
        else f"import torch; from vq3dcli.data_tools.depth.models import find_model, open_model\n"
        f"files, images = find_model({str(model)!r}), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)\n"
        "open_model(files, torch.device('cpu')).predict(images)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    # As installed: neither the test's own settings nor its modules.
    subprocess.run([sys.executable, "-c", f"import sys\n{script}"], env=environment, check=True, capture_output=True)
    assert not [path for path in home.rglob("*") if "icrosoft" in str(path) or "onnx" in str(path)]


@pytest.mark.parametrize("shape", [["n", 3, 32, 32], ["n", 3, "h", "w"], [2, 3, 32, 32]])
def test_an_onnx_file_gets_normalised_images_in_any_batch(archives: ModuleType, shape, fresh: Path, tmp_path: Path):
    path = archives.onnx_file(tmp_path / "net.onnx", shape, mean=5.0)
    network = open_model(find_model(str(path)), CPU, input_px=32)
    images = archives.images_of(fresh)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)).mean(1) + 5.0
    assert torch.allclose(network.predict(images), expected, atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    network = open_model(find_model(str(path)), CPU, input_px=32, meaning="depth")
    prediction = network.predict(images)
    assert torch.allclose(prediction, (images / 255 * 2 - 1).mean(1) + 5.0, atol=1e-5)
    assert torch.allclose(to_disparity(prediction, network.meaning), 1 / prediction)


def test_from_photos_to_a_preview(
    archives: ModuleType, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = archives.onnx_file(tmp_path / "my net.onnx", ["n", 3, "h", "w"])
    sheet = tmp_path / "sheets" / "labels.png"
    arguments = ["--model", str(path), "--input-size", "64", "--preview", str(sheet), "--device", "cpu", "--json"]
    assert run(["depth-labels", str(fresh), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["labels"] == 11
    assert result["outputs"] == [str(fresh / "disparity" / "my-net"), str(sheet)]
    assert decode_image(sheet.read_bytes(), name="sheet").shape[2] > 4 * 256
    assert run(["depth-labels", str(fresh), *arguments, "--part", "1/2", "--size", "16"]) == 2
    assert "size was 32, is 16" in capsys.readouterr().err
