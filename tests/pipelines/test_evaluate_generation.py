"""Figures of sets whose distance is known, with a feature network that needs no weights."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from vq3dcli.data_tools.part import Part
from vq3dcli.errors import DataError, UsageError
from vq3dcli.metrics.distribution import frechet_distance, kernel_distance, moments
from vq3dcli.metrics.features import FeatureNetwork, inception_features
from vq3dcli.model.build import build_prior
from vq3dcli.model.draw_codes import Sharpening
from vq3dcli.pipelines.evaluation.generation import (
    PROTOCOLS,
    Compared,
    evaluate_generation,
    protocol_of,
    published_moments,
    sample_sheet,
    table,
)
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, toy_set
from vq3dcli.pipelines.evaluation.measured_set import Classifier, OthersAtWorkError, measure_set, remembered
from vq3dcli.pipelines.evaluation.rendered_sets import Samples, reconstructed_set, sampled_set
from vq3dcli.pipelines.sampling.record import SampleWish
from vq3dcli.pipelines.sampling.sample import draw_samples
from vq3dcli.toyscenes import CLASS_NAMES
from vq3dcli.weights_file import TokenFacts, load_prior, load_weights, save_weights

SHARPENING = Sharpening(temperature=0.9)


def tiny_features():
    """Mean and mean square of the channels; `seen` counts the images."""
    network: FeatureNetwork

    def extract(images):
        network.seen += len(images)
        values = images.float() / 255.0
        return torch.cat([values.mean((-2, -1)), values.square().mean((-2, -1))], -1)

    network = FeatureNetwork("tiny-test", "none", 6, "none", extract)
    network.seen = 0
    return network


@contextmanager
def silent(what, unit):
    yield lambda done, total, status: None


def random_set(name, count, *, seed=0, darker=1, class_names=("ant", "bee")):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    pixels //= darker
    facts = {"kind": "test images", "seed": seed, "count": count, "darker": darker}
    return ImageSet(name, torch.arange(count) % 2, class_names, facts, lambda a, b: iter(pixels[a:b].split(7)), 7)


def bright_is_bee(images):
    return (images.float().mean((1, 2, 3)) > 100).long()


CLASSIFIER = Classifier(bright_is_bee, ("ant", "bee"), {"sha256": "classifier"})


def evaluate(sets, real, **options):
    return evaluate_generation(PROTOCOLS["offline-1"], tiny_features(), real, sets, counting=silent, **options)


def test_the_figures_are_those_of_the_metrics():
    real, samples = random_set("real", 40), random_set("samples", 30, seed=1, darker=2)
    result = evaluate([Compared("samples", samples)], real)
    network = tiny_features()
    a, b = (network(torch.cat(list(s.batches()))) for s in (real, samples))
    found = result.figures["samples"]
    assert found["frechet_tiny_test"] == pytest.approx(frechet_distance(moments([a]), moments([b])))
    assert found["kernel_tiny_test"] == pytest.approx(kernel_distance(a, b).mean)
    assert (found["precision"], found["recall"]) == (0.0, 0.0)
    assert found["images"] == 30
    assert result.conditions["sets"]["samples"]["images"] == samples.description
    assert result.conditions["features"]["sha256"] == "none"


def test_the_same_images_are_at_no_distance():
    real = random_set("real", 40)
    found = evaluate([Compared("samples", replace(real, name="samples"))], real).figures["samples"]
    assert found["frechet_tiny_test"] == pytest.approx(0.0, abs=1e-9)
    assert (found["precision"], found["recall"]) == (1.0, 1.0)


def test_a_set_may_have_real_images_of_its_own():
    real, dark = random_set("real", 40), random_set("dark", 40, seed=2, darker=3)
    samples = random_set("samples", 40, seed=1, darker=3)
    found = evaluate(
        [Compared("samples", samples), Compared("yaw 20", replace(samples, name="turned"), dark)], real
    ).figures
    assert found["yaw 20"]["frechet_tiny_test"] < 0.01 < found["samples"]["frechet_tiny_test"]


def test_classes_are_counted_side_by_side():
    real, samples = random_set("real", 10), random_set("samples", 8, seed=1, darker=4)
    result = evaluate([Compared("samples", samples)], real, classifier=CLASSIFIER)
    # All bright images are seen as bees and all dark ones as ants; each is half of its set.
    assert result.figures["real"]["recognised"] == {"all": 0.5, "ant": 0.0, "bee": 1.0}
    assert result.figures["samples"]["recognised"] == {"all": 0.5, "ant": 1.0, "bee": 0.0}
    rows = table(result, tiny_features())
    assert rows[0][2] == "frechet_tiny_test"
    assert ["ant", 0.0, 1.0] in rows
    _, height_px, width_px = sample_sheet(result.sets["samples"]).shape
    assert width_px == 2 + 8 * 10
    assert (height_px - 2 - 8 - 2) % 14 == 0  # labels take several lines
    unknown = random_set("samples", 8, class_names=("cat", "bee"))
    told = evaluate([Compared("samples", unknown)], real, classifier=CLASSIFIER).figures["samples"]["recognised"]
    assert told == {"all": 1.0, "bee": 1.0}


def test_statistics_are_kept_and_damaged_ones_made_again(tmp_path, caplog):
    real, network = random_set("real", 20), tiny_features()
    first = measure_set(real, network, CLASSIFIER, statistics=tmp_path)
    again = measure_set(real, network, CLASSIFIER, statistics=tmp_path)
    assert (network.seen, first.kept, again.kept) == (20, False, True)
    for name in ("features", "seen_class", "pictures", "picture_class"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.moments.covariance, again.moments.covariance)
    # Other images, another classifier and another network have statistics of their own.
    measure_set(random_set("real", 20, seed=1), network, CLASSIFIER, statistics=tmp_path)
    measure_set(real, network, None, statistics=tmp_path)
    assert network.seen == 60
    files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 3
    for path in files:
        path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(measure_set(real, network, CLASSIFIER, statistics=tmp_path).features, first.features)
    assert "damaged statistics" in caplog.text
    assert measure_set(real, network, CLASSIFIER, statistics=tmp_path).kept


def test_parts_measure_the_whole_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("vq3dcli.pipelines.evaluation.measured_set._BLOCK_IMAGES", 10)  # two steps of seven
    real, network = random_set("real", 40), tiny_features()
    whole = measure_set(real, network, CLASSIFIER)
    for part in (Part(1, 2), Part(0, 2), Part(1, 2)):
        if len(list(tmp_path.glob("*.safetensors"))) == 0:
            with pytest.raises(OthersAtWorkError):
                measure_set(real, network, CLASSIFIER, statistics=tmp_path, part=part)
            continue
        found = measure_set(real, network, CLASSIFIER, statistics=tmp_path, part=part)
        for name in ("features", "seen_class", "pictures", "picture_class"):
            assert torch.equal(getattr(found, name), getattr(whole, name)), name
        assert torch.equal(found.moments.mean, whole.moments.mean)
        assert torch.equal(found.moments.covariance, whole.moments.covariance)
        assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert network.seen == 80  # each image once more, whoever asks


def test_too_few_images_are_one_line():
    with pytest.raises(UsageError, match=r"too few images to measure \(samples\): 1"):
        evaluate([Compared("samples", random_set("samples", 1))], random_set("real", 10))
    with pytest.raises(UsageError, match="need more than 3 images"):
        evaluate([Compared("samples", random_set("samples", 3))], random_set("real", 10))


def test_protocols():
    assert protocol_of("adm", None) is PROTOCOLS["adm"] is protocol_of("adm", 50_000)
    assert protocol_of("adm", 100).name == "adm, 100 samples"
    with pytest.raises(UsageError, match="no protocol"):
        protocol_of("fid", None)


def test_published_moments(tmp_path):
    import numpy as np

    network = inception_features(torch.nn.Identity())
    np.savez(tmp_path / "a.npz", mu=np.ones(2048), sigma=np.eye(2048, dtype=np.float32))
    found = published_moments(tmp_path / "a.npz", network)
    assert found is not None
    assert torch.equal(found.covariance, torch.eye(2048).double())
    assert published_moments(tmp_path / "a.npz", tiny_features()) is None
    np.savez(tmp_path / "b.npz", mu=np.ones(3), sigma=np.eye(3))
    with pytest.raises(DataError, match="not Inception's statistics"):
        published_moments(tmp_path / "b.npz", network)


# --- what a model renders --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny_prior_recipe, tiny_weights, tmp_path_factory):
    """A tiny Stage 1 and an untrained prior over its codes."""
    recipe = tiny_prior_recipe()
    weights = load_weights(tiny_weights)
    names = ("ant", "bee", "cow")
    facts = TokenFacts(stage1_sha256=weights.sha256, codebook_size=32, length=16, class_names=names)
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_weights(path, build_prior(recipe, codebook_size=32, length=16, classes=3), recipe, {}, facts)
    return weights, load_prior(path)


def test_samples_are_those_of_vq3d_sample(models):
    weights, prior = models
    samples = Samples(prior, {2: 3, 0: 17}, seed=5, sharpening=SHARPENING)
    codes = torch.cat(list(samples.read(0, 20)))
    expected = [*draw_samples(prior, SampleWish([2], 3, 5, SHARPENING))]
    expected += draw_samples(prior, SampleWish([0], 17, 5, SHARPENING))
    assert torch.equal(codes, torch.stack([drawn.codes for drawn in expected]))
    assert samples.class_index.tolist() == [drawn.class_index for drawn in expected]
    found = sampled_set("samples", weights, samples)
    pictures = torch.cat(list(found.batches()))
    assert pictures.shape == (20, 3, 16, 16)
    assert next(samples.read(0, 20)) is next(samples.read(0, 20))  # they are drawn once
    turned = sampled_set("turned", weights, samples, yaw_deg=20.0)
    assert not torch.equal(torch.cat(list(turned.batches())), pictures)
    assert turned.description != found.description


def test_reconstructions(models):
    weights, _ = models
    toys = toy_set("toys", 3, seed=0, purpose="eval", size_px=16)
    found = reconstructed_set("reconstructions", weights, toys)
    assert torch.cat(list(found.batches())).shape == (3, 3, 16, 16)
    assert found.description["of"] == toys.description
    assert found.class_names == CLASS_NAMES


def test_features_beyond_a_number_are_not_kept_and_count_in_the_moments(monkeypatch):
    images = random_set("images", 30)
    whole = measure_set(images, tiny_features())
    monkeypatch.setattr("vq3dcli.pipelines.evaluation.measured_set.KEPT_FEATURES", 12)
    some = measure_set(images, tiny_features())
    assert len(some.features) == 12 and torch.isin(some.features, whole.features).all()
    torch.testing.assert_close(some.moments.covariance, whole.moments.covariance)


def test_statistics_of_something_else_under_a_name_are_measured_again(tmp_path):
    first, second = ({"kind": name} for name in ("first", "second"))
    remembered(tmp_path, "block", first, lambda: {"x": torch.ones(1)})
    (only,) = tmp_path.iterdir()
    remembered(tmp_path, "block", second, lambda: {"x": torch.zeros(1)})
    (other,) = set(tmp_path.iterdir()) - {only}
    only.replace(other)
    tensors, from_file = remembered(tmp_path, "block", second, lambda: {"x": torch.zeros(1)})
    assert not from_file and not tensors["x"].any()
