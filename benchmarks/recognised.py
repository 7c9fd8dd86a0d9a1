"""Which share of samples a classifier names as asked, beside rendered scenes and their reconstructions.

The classifier is linear, over the features of a network with ImageNet's weights, and learns from the first of the
scenes and from what Stage 1 makes of half of these; the last scenes measure it.

Example:
    vq3d prepare-data meshscenes models/ scenes/ --count 16000 --size 64 --alone
    vq3d sample --class car,horse,ship -n 24 --seed 0 -o samples/
    python benchmarks/recognised.py --scenes scenes/ --samples samples/
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data.images import decode_image, read_file, resize
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.metrics.features import FeatureNetwork, load_feature_network
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.weights_file import LoadedWeights, load_weights

LEARNT, MEASURED = 6000, 1000
_STEPS, _AT_ONCE, _DECAY = 400, 512, 0.3


def scenes(folder: ShardFolder, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, S, S]` of a folder and their classes int64 `[N]`."""
    images = [folder.image(i) for i in range(first, first + count)]
    return torch.stack(images), folder.class_index[first : first + count]


@torch.inference_mode()
def reconstructed(weights: LoadedWeights, images: Tensor) -> Tensor:
    """The same images as the weights see them."""
    parts = []
    for part in images.split(32):
        camera = build_canonical_camera(weights.recipe, images.shape[-1], len(part))
        parts.append(reconstruct_scene(weights.model, part).render(camera, samples=48).rgb.cpu())
    return torch.cat(parts)


@torch.inference_mode()
def features(network: FeatureNetwork, images: Tensor) -> Tensor:
    """Float32 `[N, D]`."""
    return torch.cat([network(part) for part in images.split(64)])


def main() -> None:
    """Print a row a class: samples, rendered scenes, reconstructions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    folder, weights = ShardFolder(options.scenes), load_weights(options.weights)
    network = load_feature_network("efficientnet-lite1", weights=None, device=weights.device)
    images, classes = scenes(folder, 0, LEARNT)
    images = torch.cat([images, reconstructed(weights, images[: LEARNT // 2])])
    classes = torch.cat([classes, classes[: LEARNT // 2]])
    known = features(network, images)
    mean, scale = known.mean(0), known.std(0) + 1e-5
    linear = torch.nn.Linear(known.shape[1], len(folder.class_names))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=2e-3, weight_decay=_DECAY)
    for _ in range(_STEPS):
        rows = torch.randint(len(known), (_AT_ONCE,))
        loss = functional.cross_entropy(linear((known[rows] - mean) / scale), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def named(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return linear((features(network, pictures) - mean) / scale).argmax(1)

    held_out, truth = scenes(folder, folder.num_samples - MEASURED, MEASURED)
    right = [named(held_out) == truth, named(reconstructed(weights, held_out)) == truth]
    print("| class | samples | named as asked | of rendered scenes | of reconstructions |\n|---|---|---|---|---|")
    every: list[Tensor] = []
    for number, name in enumerate(folder.class_names):
        files = sorted(options.samples.glob(f"{name}-[0-9]*[0-9].png"))
        if files:
            side = images.shape[-1]
            drawn = [resize(decode_image(read_file(file), name=file.name), side, side) for file in files]
            every.append(named(torch.stack(drawn)) == number)
            shares = [each[truth == number].float().mean() for each in right]
            print(f"| {name} | {len(files)} | {every[-1].float().mean():.3f} | {shares[0]:.3f} | {shares[1]:.3f} |")
    total = torch.cat(every)
    print(
        f"| all | {len(total)} | {total.float().mean():.3f} | " + " | ".join(f"{r.float().mean():.3f}" for r in right),
        "|",
    )


if __name__ == "__main__":
    main()
