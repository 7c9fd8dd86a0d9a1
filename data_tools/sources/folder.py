"""Any folder or tar of images: class folders, or one class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_tools.sources.entry import Entry, Source
from data_tools.sources.listing import list_folder
from data_tools.sources.tars import is_compressed_name, is_tar_name, list_tar
from vq3dcli.errors import InputMissingError

Classes = Literal["auto", "folders", "none"]
ONLY_CLASS = "all"


def folder_source(source: Path, *, leave_out: Path, classes: Classes = "auto") -> Source:
    """The files of a folder, or of a tar, in the order of their paths.

    Args:
        leave_out: The output, which may lie in the folder.
        classes: `folders`: the top-level folder names the class, a file outside is rejected; `none`: one class;
            `auto`: folders where any file lies in one.

    Raises:
        InputMissingError: There is no such folder, or no file in it.
    """
    is_tar = source.is_file() and (is_tar_name(source.name) or is_compressed_name(source.name))
    found = sorted(list_tar(source)) if is_tar else list_folder(source, leave_out=leave_out)
    if not found:
        raise InputMissingError(f"no files in folder ({source})", remedy="a folder with images")
    by_folder = classes == "folders" or (classes == "auto" and any("/" in file.path for file in found))
    names = sorted({file.path.split("/")[0] for file in found if "/" in file.path}) if by_folder else [ONLY_CLASS]
    number = {name: index for index, name in enumerate(names)}
    entries = []
    for file in found:
        class_index = number.get(file.path.split("/")[0]) if "/" in file.path else None
        reject = file.problem
        if not by_folder:
            class_index = 0
        elif class_index is None and not reject:
            reject = "lies beside the class folders, so it has no class"
        entries.append(Entry(file.path, file.place, file.size, class_index, reject))
    return Source(entries, names, options={"classes": "folders" if by_folder else "none"})
