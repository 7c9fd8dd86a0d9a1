"""Which classes a text means."""

from __future__ import annotations

from collections import Counter

import pytest

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.errors import UsageError
from vq3dcli.model.draw_codes import NO_CLASS
from vq3dcli.pipelines.sampling.record import classes_argument, pick_classes, shown_name, some_classes

NAMES = ["Torus", "snow_man", "box", "salt, and pepper", "7", "car", "Car", "car"]
WNIDS = ["n01443537", "n02099601", "n03126707", "n02012849"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("torus", [0]),
        ("TORUS, 2", [0, 2]),
        ("Snow Man", [1]),
        ("snow-man,snow_man,1", [1]),
        ("salt, and pepper", [3]),
        ("4", [4]),
        ("box,,torus", [2, 0]),
        ("7", [4]),
        ("07", [7]),
    ],
)
def test_names_and_numbers(text: str | None, wanted: list[int]) -> None:
    assert pick_classes(text, NAMES) == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tours", r"no class is called 'tours'; try: torus"),
        ("snow", r"no class is called 'snow'; try: snow man"),
        ("zebra", r"no class is called 'zebra'; try: Torus, snow_man"),
        ("9", r"no class of the number 9; try: 0 to 7"),
        ("-1", r"no class of the number -1"),
        ("9" * 5000, r"no class of the number 9{60}\.\.\.;"),
        ("-" + "0" * 5000, r"no class of the number"),
        ("x" * 5000, r"no class is called 'x{60}\.\.\.'"),
        ("car", r"2 classes are called 'car': 5 \(car\) and 07 \(car\); try: --class 5 or 07"),
        ("CAR", r"3 classes are called 'CAR': 5 \(car\), 6 \(Car\) and 07 \(car\)"),
        (" , ", "no class is named"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        pick_classes(text, NAMES)


def test_weights_without_classes() -> None:
    assert pick_classes(None, []) == pick_classes("all", []) == some_classes([NO_CLASS], 4) == [NO_CLASS]
    assert pick_classes(" All", NAMES) == pick_classes(None, NAMES) == some_classes(range(len(NAMES)), 1000)
    assert some_classes(range(1000), 4) == [0, 250, 500, 750]
    assert some_classes([], 4) == []
    assert pick_classes("all", ["none", "all"]) == [1]
    with pytest.raises(UsageError, match="these weights know no classes"):
        pick_classes("torus", [])


def test_imagenet_goes_by_names_and_by_wordnet_ids() -> None:
    assert pick_classes("goldfish,Golden Retriever,n03126707", WNIDS) == [0, 1, 2]
    assert pick_classes("Carassius auratus", WNIDS) == [0]
    with pytest.raises(UsageError, match="golden retriever"):
        pick_classes("golden retreiver", WNIDS)
    assert shown_name("n01443537") == "goldfish"
    assert shown_name("n99999999") == "n99999999"
    assert shown_name("torus") == "torus"


def test_imagenet_has_a_thousand_classes_in_order() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert names["n01440764"][0] == "tench"
    assert all(name.strip() == name and name for row in names.values() for name in row)


@pytest.mark.parametrize("names", [["1", "2", "10"], ["001", "002"], ["0", "00", "000"], ["car", "car", "1"], NAMES])
def test_an_own_name_beats_a_number_and_every_class_has_a_number(names: list[str]) -> None:
    for index, name in enumerate(names):
        if names.count(name) == 1:
            assert pick_classes(name, names) == [index]
        assert pick_classes(classes_argument([index], names), names) == [index]
    everything = list(range(len(names)))
    assert pick_classes(classes_argument(everything, names), names) == everything


def test_numbers_that_are_together_a_name_are_still_numbers() -> None:
    names = ["a", "b", "0,1"]
    assert pick_classes("0,1", names) == [2]
    assert pick_classes(classes_argument([0, 1], names), names) == [0, 1]


def test_a_name_of_several_imagenet_classes_is_refused_with_their_numbers() -> None:
    names = list(imagenet_names())
    with pytest.raises(
        UsageError,
        match=r"2 classes are called 'crane': 134 \(n02012849\) and 517 \(n03126707\); try: --class 134 or 517",
    ) as caught:
        pick_classes("crane", names)
    assert "\n" not in str(caught.value)
    for name in ("Cardigan", "cardigan", "maillot", "sus scrofa", "panda"):
        with pytest.raises(UsageError, match="2 classes are called"):
            pick_classes(name, names)
    assert pick_classes("n02963159,264,giant panda,Cardigan Welsh corgi", names) == [474, 264, 388]
    counts = Counter(lemma.casefold() for row in imagenet_names().values() for lemma in row)
    assert sum(count > 1 for count in counts.values()) == 19
    assert pick_classes("crane", WNIDS[:3]) == [2]  # of the classes of these weights only one is a crane
