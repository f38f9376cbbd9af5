"""Which garments there are to render: a cut for each of a choice of the benchmark's categories, and its random details."""

import dataclasses

import numpy as np

from glefld.render_canvas import Colour, darker
from glefld.render_garment import Garment
from glefld.render_scene import COLOURS, FABRICS, PATTERNS


@dataclasses.dataclass(frozen=True)
class Cut:
    """The ranges that a category's garments are drawn from; lengths as in ``Garment``."""

    category: str
    code: int
    sleeves: tuple[str, ...] = ("none",)
    necklines: tuple[str, ...] = ("crew",)
    closures: tuple[str, ...] = ("none",)
    hem: tuple[float, float] = (2.2, 2.8)
    flare: tuple[float, float] = (0.0, 0.08)
    ease: tuple[float, float] = (1.06, 1.22)
    legs: tuple[float, float] = (0.0, 0.0)
    leg_width: tuple[float, float] = (0.0, 0.0)
    waisted: bool = False
    fabrics: tuple[str, ...] = FABRICS


PLAIN = ("cotton", "chiffon", "knit")
CUTS = (
    Cut("Tee", 1, ("short", "short", "cap", "elbow"), ("crew", "crew", "v", "scoop"), fabrics=PLAIN),
    Cut("Tank", 1, ("none",), ("scoop", "v", "square"), hem=(2.0, 2.7), fabrics=PLAIN),
    Cut("Top", 1, ("none", "short", "three_quarter"), ("scoop", "square", "crew"), hem=(1.75, 2.4), flare=(0.0, 0.4), fabrics=PLAIN),
    Cut("Blouse", 1, ("long", "three_quarter", "short"), ("v", "scoop", "shirt"), ("none", "buttons"), flare=(0.05, 0.3), fabrics=("cotton", "chiffon")),
    Cut("Button-Down", 1, ("long", "long", "short"), ("shirt",), ("buttons",), hem=(2.4, 2.9), fabrics=("cotton", "denim")),
    Cut("Sweater", 1, ("long", "long", "three_quarter"), ("crew", "v", "turtle"), ease=(1.12, 1.35), fabrics=("knit", "wool")),
    Cut("Turtleneck", 1, ("long",), ("turtle",), fabrics=("knit", "wool", "cotton")),
    Cut("Hoodie", 1, ("long",), ("hood",), ("none", "zip"), hem=(2.35, 2.75), ease=(1.15, 1.35), fabrics=("cotton", "wool")),
    Cut("Cardigan", 1, ("long", "three_quarter"), ("v",), ("buttons",), hem=(2.3, 3.0), ease=(1.1, 1.3), fabrics=("knit", "wool")),
    Cut("Jacket", 1, ("long",), ("shirt",), ("zip", "buttons"), hem=(2.0, 2.7), ease=(1.15, 1.32), fabrics=("denim", "leather", "wool")),
    Cut("Jeans", 2, legs=(1.75, 1.97), leg_width=(0.15, 0.26), ease=(1.04, 1.12), fabrics=("denim",)),
    Cut("Leggings", 2, legs=(1.6, 1.95), leg_width=(0.125, 0.15), ease=(1.02, 1.04), fabrics=("cotton", "leather", "knit")),
    Cut("Sweatpants", 2, legs=(1.8, 1.95), leg_width=(0.17, 0.24), ease=(1.1, 1.25), fabrics=("cotton", "wool")),
    Cut("Culottes", 2, legs=(1.15, 1.7), leg_width=(0.34, 0.46), ease=(1.08, 1.18), fabrics=("cotton", "chiffon", "denim")),
    Cut("Shorts", 2, legs=(0.3, 0.75), leg_width=(0.30, 0.42), ease=(1.05, 1.2), fabrics=("cotton", "denim", "leather")),
    Cut("Skirt", 2, hem=(3.3, 4.1), flare=(0.0, 0.5), ease=(1.04, 1.1)),
    Cut("Skirt", 2, hem=(4.3, 5.5), flare=(-0.02, 0.32), ease=(1.04, 1.1), fabrics=("cotton", "chiffon", "wool")),
    Cut("Dress", 3, ("none", "none", "short", "cap", "long"), ("scoop", "v", "crew", "square"), hem=(3.3, 4.2), flare=(0.05, 0.55), ease=(1.04, 1.1), waisted=True),
    Cut("Dress", 3, ("none", "short", "three_quarter", "long"), ("crew", "v", "scoop", "shirt"), hem=(3.4, 4.6), flare=(0.0, 0.15)),
    Cut("Dress", 3, ("none", "cap", "long"), ("v", "scoop"), hem=(4.9, 5.6), flare=(0.06, 0.3), ease=(1.04, 1.1), waisted=True),
    Cut("Coat", 3, ("long",), ("shirt",), ("buttons",), hem=(3.4, 4.6), flare=(0.0, 0.15), ease=(1.2, 1.35), fabrics=("wool", "leather", "cotton")),
    Cut("Kaftan", 3, ("elbow", "three_quarter"), ("v", "scoop"), hem=(3.6, 5.4), flare=(0.1, 0.25), ease=(1.2, 1.4), fabrics=("cotton", "chiffon")),
    Cut("Jumpsuit", 3, ("none", "short", "long"), ("v", "scoop", "shirt"), ("none", "buttons"), legs=(1.6, 1.95), leg_width=(0.16, 0.36), ease=(1.05, 1.12), waisted=True),
    Cut("Romper", 3, ("none", "cap", "short"), ("v", "scoop", "crew"), legs=(0.3, 0.6), leg_width=(0.32, 0.42), ease=(1.05, 1.14), waisted=True),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Product:
    """A garment and its cloth: what several photos of one product have in common."""

    garment: Garment
    colour: str
    pattern: str
    fabric: str
    texture_seed: int


def sample_product(rng: np.random.Generator, code: int | None = None) -> Product:
    """A product at random; of one clothes_type if its code is given, else 45 % upper, 20 % lower, 35 % full body."""
    if code is None:
        code = int(rng.choice((1, 2, 3), p=(0.45, 0.2, 0.35)))
    cuts = [cut for cut in CUTS if cut.code == code]
    cut = cuts[rng.integers(len(cuts))]
    name, accent_name = rng.choice(list(COLOURS), 2, replace=False)
    pattern = "solid" if rng.random() < 0.45 else PATTERNS[rng.integers(1, len(PATTERNS))]
    fabric = cut.fabrics[rng.integers(len(cut.fabrics))]
    if fabric == "denim":
        name, pattern = ("navy", "blue", "sky", "black")[rng.integers(4)], "solid"
    colour = _tinted(rng, COLOURS[name])
    sleeve = cut.sleeves[rng.integers(len(cut.sleeves))]
    neckline = cut.necklines[rng.integers(len(cut.necklines))]
    closure = cut.closures[rng.integers(len(cut.closures))]
    cuff = rng.uniform(0.12, 0.17) if sleeve in ("long", "three_quarter") else rng.uniform(0.19, 0.25)
    if sleeve in ("long", "three_quarter", "elbow") and rng.random() < 0.15:
        cuff = rng.uniform(0.22, 0.34)
    low = {"v": (0.45, 0.95), "scoop": (0.35, 0.6), "square": (0.3, 0.55), "shirt": (0.15, 0.5)}.get(
        neckline, (0.1, 0.22)
    )
    if cut.category == "Cardigan":
        low = (0.9, 1.4)
    garment = Garment(
        category=cut.category,
        code=code,
        colour=colour,
        accent=_tinted(rng, COLOURS[accent_name]),
        sleeve=sleeve,
        cuff=float(cuff),
        neckline=neckline,
        neck_width=float(
            rng.uniform(0.25, 0.30) if neckline in ("shirt", "hood") else rng.uniform(0.25, 0.38)
        ),
        neck_depth=float(rng.uniform(*low)),
        back_depth=float(rng.uniform(0.04, 0.14) if rng.random() < 0.7 else rng.uniform(0.2, 0.5)),
        strap=float(rng.uniform(0.72, 0.98)) if sleeve == "none" else 1.0,
        closure=closure,
        graphic=int(rng.integers(1, 4)) if pattern == "solid" and code == 1 and rng.random() < 0.3 else 0,
        ease=float(rng.uniform(*cut.ease)),
        waisted=cut.waisted,
        flare=float(rng.uniform(*cut.flare)),
        hem=float(rng.uniform(*cut.hem)),
        top=float(rng.uniform(1.6, 2.0)),
        legs=float(rng.uniform(*cut.legs)),
        leg_width=float(rng.uniform(*cut.leg_width)),
        belt=bool(rng.random() < 0.3),
        pleats=int(rng.integers(5, 11)) if rng.random() < 0.3 else 0,
    )
    return Product(garment, str(name), pattern, fabric, int(rng.integers(2**32)))


def _tinted(rng: np.random.Generator, colour: Colour) -> Colour:
    return darker(colour, rng.uniform(0.85, 1.1))
