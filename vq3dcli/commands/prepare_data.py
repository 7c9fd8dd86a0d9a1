"""`vq3d prepare-data`: ImageNet, CompCars, a folder of images, toy scenes, or scenes of meshes, to shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import Output, SeedOption
from vq3dcli.config.defaults import BOX_MARGIN, MAX_BAD, MAX_VIEWS, SHARD_SIZE
from vq3dcli.errors import UsageError

# What each source takes, beside --size, --shard-size and --force: options of others would change nothing.
_IN_PARTS = ("--workers", "--part", "--dry-run")
_SCENES = ("--count", "--seed", "--varied", "--photos", "--views", *_IN_PARTS)
_IMAGES = ("--preset", "--margin", "--dedup", "--max-bad", *_IN_PARTS)
_TAKES = {
    "toyscenes": _SCENES,
    "meshscenes": (*_SCENES, "--coats", "--clear", "--alone", "--max-bad"),
    "folder": (*_IMAGES, "--classes"),
    "imagenet": (*_IMAGES, "--split", "--devkit"),
    "compcars": (*_IMAGES, "--split", "--class-by", "--box-margin"),
}


def command(
    context: typer.Context,
    output: Output,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SRC",
            help="A folder or a tar of images, webdataset tars, Parquet files, `toyscenes`, or `meshscenes` and a "
            "folder of meshes; a folder of such a name is ./toyscenes.",
        ),
    ] = None,
    last: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder for the shards.")] = None,
    preset: Annotated[
        Literal["folder", "imagenet", "compcars"], typer.Option("--preset", help="What SRC holds.")
    ] = "folder",
    size: Annotated[int, typer.Option("--size", min=16, max=4096, help="Side of the training images in pixels.")] = 256,
    margin: Annotated[
        float, typer.Option("--margin", min=1.0, max=2.0, help="Stored side over --size; 1.125 leaves room for crops.")
    ] = 1.0,
    classes: Annotated[
        Literal["auto", "folders", "none"],
        typer.Option("--classes", help="What a class is; auto: labels beside the images, else folders."),
    ] = "auto",
    split: Annotated[
        Literal["auto", "train", "val", "test"],
        typer.Option(
            "--split", help="ImageNet: train or val, auto takes train first; CompCars: train, test, auto all."
        ),
    ] = "auto",
    devkit: Annotated[
        Path | None, typer.Option("--devkit", help="ImageNet's devkit, for the flat validation set; found beside SRC.")
    ] = None,
    class_by: Annotated[
        Literal["model", "make", "type", "viewpoint"], typer.Option("--class-by", help="What a class of CompCars is.")
    ] = "model",
    box_margin: Annotated[
        float, typer.Option("--box-margin", min=0.0, max=2.0, help="CompCars: room around the box, of its longer side.")
    ] = BOX_MARGIN,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out images with the bytes of an earlier one.")] = False,
    max_bad: Annotated[
        float, typer.Option("--max-bad", min=0.0, max=1.0, help="Fraction of the files that may be no images.")
    ] = MAX_BAD,
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=1024, help="Processes that make shards; 0 for one a core.")
    ] = 0,
    part: options.Part = "auto",
    count: Annotated[
        int | None, typer.Option("--count", min=1, max=10**7, help="Number of toy or mesh scenes.")
    ] = None,
    varied: Annotated[
        bool, typer.Option("--varied", help="Toy scenes of many kinds; mesh scenes of any field of view.")
    ] = False,
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="Shards, or a folder or tar of photos, for the surfaces of scenes."),
    ] = None,
    coats: Annotated[
        Path | None,
        typer.Option("--coats", help="The same, thrown over the models of varied mesh scenes."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Mesh scenes without haze and depth of field.")] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Clear mesh scenes of one model, whole in the picture, on even ground.")
    ] = False,
    views: Annotated[
        int, typer.Option("--views", min=0, max=MAX_VIEWS, help="Exact pictures from other cameras beside each scene.")
    ] = 0,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, max=10**6, help="Samples a shard.")] = SHARD_SIZE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, estimate the disk space, and write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace shards that were made with other options.")] = False,
    seed: SeedOption = 0,
    out: options.SameAsOut = None,
) -> None:
    """Make shards of ImageNet, CompCars, a folder of images, toy scenes, or scenes of meshes.

    Archives are read where they lie, never extracted. They become webdataset tars of square JPEGs, with an index, a
    manifest and a list of the files that were rejected. Run it again after an interruption: finished shards are kept.
    Several machines share the work with --part, into one folder.

    Example:
      vq3d prepare-data photos/ shards/ --size 128 --margin 1.125 --max-bad 0.2
      vq3d prepare-data ILSVRC2012_img_train.tar imagenet/train/ --preset imagenet --size 256
      vq3d prepare-data ILSVRC2012_img_val.tar imagenet/val/ --preset imagenet --devkit ILSVRC2012_devkit_t12.tar.gz
      vq3d prepare-data compcars/data/ cars/ --preset compcars --class-by viewpoint --part 2/8
      vq3d prepare-data toyscenes toy/ --count 10000 --size 64 --seed 0
      vq3d prepare-data toyscenes varied/ --count 10000 --size 64 --varied --photos photos/
      vq3d prepare-data meshscenes models/ scenes/ --count 10000 --size 128 --photos photos/
    """
    folders = [*(source or []), *([] if last is None else [str(last)]), *([] if out is None else [str(out)])]
    if len(folders) < 2:
        missing = "OUT, the folder for the shards, is" if folders else "SRC and OUT are"
        raise UsageError(f"{missing} missing", remedy="vq3d prepare-data SRC OUT")
    source, out = folders[:-1], Path(folders[-1])
    toy, meshes = source[0] == "toyscenes", source[0] == "meshscenes"
    kind = source[0] if toy or meshes else preset
    if len(source) != 1 + meshes:
        many = "too many" if not meshes or len(source) > 2 else "too few"
        raise UsageError(f"{many} folders ({' '.join(source)} {out})", remedy="SRC OUT, or meshscenes MODELS OUT")
    of_others = {name for names in _TAKES.values() for name in names} - {*_TAKES[kind]}
    options.refuse_given(context, of_others, f"is not for {kind}")
    if (toy or meshes) and count is None:
        raise UsageError("scenes need a number", remedy="--count 10000")
    if split in ("val", "test") and split != {"imagenet": "val", "compcars": "test"}[kind]:
        raise UsageError(f"no split {split} of the preset {kind}", remedy="--split auto")
    from vq3dcli.data_tools.prepare import Options, image_job, job_facts, open_source, prepare

    share = options.asked_part(part, output)
    most_bad = 1.0 if dry_run else max_bad
    facts: dict[str, Any] = {}
    if toy or meshes:
        from vq3dcli.data_tools.toyscenes import SceneOptions, toy_job

        assert count is not None
        wanted = SceneOptions(count, size, seed, varied, photos, coats, shard_size, views, clear, alone)
    if toy:
        job = toy_job(out, wanted)
    elif meshes:
        from vq3dcli.data_tools.meshscenes import scene_job

        with output.progress("reading", unit="models") as progress:
            how: dict[str, Any] = {"max_bad": most_bad, "workers": workers or None, "progress": progress}
            job = scene_job(Path(source[1]), out, wanted, **how)
        facts = {"models": len(job.plan["assets"]), "grounds": len(job.plan["grounds"])}
        facts["rejects"] = len(job.known_rejects)
    else:
        listed = open_source(
            preset, Path(source[0]), out, classes=classes, split=split, devkit=devkit, class_by=class_by
        )
        facts = listed.facts
        job = image_job(preset, listed, Options(size, margin, shard_size, dedup, box_margin), max_bad=most_bad)
    shown_seed = seed if toy or meshes else None
    if dry_run:
        would = job_facts(job, out, part=share)
        output.finish(count=would["images"], seed=shown_seed, metrics=would | facts)
        return
    with output.progress("preparing", unit="images") as progress:
        made = prepare(out, job, share, workers=workers or None, force=force, progress=progress)
        facts |= {"images_per_second": round(progress.per_second, 1) or None}
    if made is None:
        output.note(options.unfinished(share))
        output.finish(count=progress.done, metrics={"part": str(share), "images": progress.done} | facts, outputs=[out])
        return
    metrics = {
        "samples": made.num_samples,
        "rejects": made.num_rejects,
        "classes": len(made.class_names),
        "shards": len(made.shards),
        "bytes": sum(shard.size for shard in made.shards),
        **facts,
    }
    output.finish(count=made.num_samples, seed=shown_seed, metrics=metrics, outputs=[out])
