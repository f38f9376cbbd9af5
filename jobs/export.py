"""Export a model as one file for other programs: a photo's pixels and boxes in, landmarks in the photo out."""

import dataclasses
from pathlib import Path
from typing import Literal

from rich.console import Console

from glefld import storage
from glefld.errors import UserError
from glefld.temporary import temporary_folder
from jobs.cli import Root, main, resolve_checkpoint, resolve_url

Format = Literal["onnx", "torch"]
#: The endings of the files.
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the export."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one): path, URL or MLflow model (models:/NAME@ALIAS, runs:/ID)."""
    format: Format = "onnx"
    """onnx: for ONNX Runtime and others. torch: a program of torch.export, for PyTorch without this project."""
    output: str | None = None
    """File to write, path or URL, ending in .onnx or .pt2. Default: model.onnx or model.pt2 in this folder."""
    mirror: bool = False
    """Average each answer with that for the mirror image, at twice the time."""
    root: Root = None


def run(options: Options) -> None:
    """Write the file, and print what it holds. UserError if an option is wrong or the model cannot be exported."""
    ending = ENDINGS[options.format]
    name = f"model{ending}"
    output = resolve_url(options.output or name, "--output")
    if not output.lower().endswith(ending):
        raise UserError(f"--output {output}: a file of --format {options.format} must end in {ending}")
    storage.require_writable(output, "--output", folder=False)
    checkpoint = resolve_checkpoint(options.checkpoint, "--checkpoint", options.root)

    from glefld.export import export

    with temporary_folder() as folder:
        local = Path(folder, name)
        done = export(checkpoint, local, options.format, options.mirror)
        megabytes = local.stat().st_size / 1e6
        storage.put(local, output)
    console = Console()
    for key in ("model", "checkpoint", "training_data", "input_size", "licence"):
        console.print(f"{key:14} {done.facts[key]}", soft_wrap=True, highlight=False)
    console.print(
        f"{'checked':14} differs from PyTorch by at most {done.difference:.2g} pixels",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"{'written':14} {output} ({megabytes:.1f} MB)", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main(Options, run)
