"""Rendered garments and how they are sampled: cuts for some of DeepFashion's categories."""

import dataclasses
from typing import Any

import numpy as np

from glefld.synthetic.render.body import HIP_Y, WAIST_Y, Body
from glefld.synthetic.render.canvas import Colour, Points
from glefld.synthetic.render.scene import COLOUR_SHARES, COLOURS, FABRICS, PATTERNS, dye

#: Sleeve lengths: 1 reaches the elbow, 2 the wrist.
SLEEVE_LENGTHS = {
    "none": 0.0,
    "cap": 0.36,
    "short": 0.64,
    "elbow": 0.98,
    "three_quarter": 1.5,
    "long": 1.94,
}


@dataclasses.dataclass(frozen=True)
class Garment:
    """One garment. Lengths are in head heights, and heights are the figure's y."""

    category: str
    code: int  # clothes_type: 1 upper, 2 lower, 3 full body
    colour: Colour
    accent: Colour
    sleeve: str
    cuff: float  # half width of the sleeve's end
    neckline: str
    neck_width: float
    neck_depth: float
    back_depth: float
    strap: float  # where the shoulder ends, relative to the body's
    closure: str
    opening: float  # half width of the gap of an open front, 0 for none
    edge: float  # brightness of outlines, relative to the cloth's
    graphic: int  # number of the print on the chest, 0 for none
    ease: float  # width relative to the body's
    waisted: bool  # follows the waist
    flare: float  # increase of the half width per head height downwards
    hem: float
    top: float  # height of a lower garment's waistband, or of a full-body garment's waist
    legs: float  # length of trouser legs: 1 reaches the knee, 2 the ankle, 0 for no trousers
    leg_width: float  # half width of a leg's end
    belt: bool
    pleats: int

    def half_width(self, body: Body, y: Points) -> Points:
        """Return the half width of torso and skirt at each height."""
        width = body.half_width(y) * self.ease
        fitted = self.waisted or self.code == 2
        if not fitted:
            width = np.maximum(width, body.chest * self.ease)
        start = self.top if fitted else HIP_Y - 0.6
        return width + self.flare * np.maximum(y - start, 0)


@dataclasses.dataclass(frozen=True)
class Cut:
    """The ranges that a category's garments are sampled from; lengths as in ``Garment``."""

    category: str
    code: int
    sleeves: tuple[str, ...] = ("none",)
    necklines: tuple[str, ...] = ("crew",)
    closures: tuple[str, ...] = ("none",)
    hem: tuple[float, float] = (2.1, 3.1)
    flare: tuple[float, float] = (-0.18, 0.08)
    ease: tuple[float, float] = (1.02, 1.25)
    legs: tuple[float, float] = (0.0, 0.0)
    leg_width: tuple[float, float] = (0.0, 0.0)
    waisted: bool = False
    fabrics: tuple[str, ...] = FABRICS


#: Necklines that leave the shoulders bare.
BARE = ("strapless", "straps")
LIGHT = ("cotton", "chiffon", "knit")
WARM = ("knit", "wool")
FITTED: dict[str, Any] = {"ease": (1.0, 1.1), "waisted": True}
CUTS = (
    Cut("Tee", 1, ("short", "short", "cap", "elbow"), ("crew", "crew", "v", "scoop"), fabrics=LIGHT),
    Cut("Tank", 1, ("none",), ("scoop", "v", "square"), hem=(2.0, 2.7), fabrics=LIGHT),
    Cut(
        "Tank",
        1,
        ("none", "cap"),
        ("scoop", "crew"),
        hem=(1.6, 3.2),
        flare=(0.0, 0.3),
        ease=(1.0, 1.3),
        fabrics=LIGHT,
    ),
    Cut(
        "Top",
        1,
        ("none", "short", "three_quarter"),
        ("scoop", "square", "crew"),
        hem=(1.75, 2.4),
        flare=(0.0, 0.4),
        fabrics=LIGHT,
    ),
    Cut("Top", 1, ("none",), BARE, hem=(1.6, 2.4), flare=(0.0, 0.3), fabrics=LIGHT),
    Cut(
        "Blouse",
        1,
        ("long", "three_quarter", "short"),
        ("v", "scoop", "shirt"),
        ("none", "buttons"),
        flare=(0.05, 0.3),
        fabrics=("cotton", "chiffon"),
    ),
    Cut(
        "Button-Down",
        1,
        ("long", "long", "short"),
        ("shirt",),
        ("buttons",),
        hem=(2.4, 2.9),
        fabrics=("cotton", "denim"),
    ),
    Cut(
        "Sweater",
        1,
        ("long", "long", "three_quarter"),
        ("crew", "v", "turtle"),
        ease=(1.12, 1.35),
        fabrics=WARM,
    ),
    Cut("Turtleneck", 1, ("long",), ("turtle",), fabrics=(*WARM, "cotton")),
    Cut(
        "Hoodie",
        1,
        ("long",),
        ("hood",),
        ("none", "zip"),
        hem=(2.35, 2.75),
        ease=(1.15, 1.35),
        fabrics=("cotton", "wool"),
    ),
    Cut(
        "Cardigan",
        1,
        ("long", "three_quarter"),
        ("v",),
        ("buttons",),
        hem=(2.3, 3.0),
        ease=(1.1, 1.3),
        fabrics=WARM,
    ),
    Cut(
        "Jacket",
        1,
        ("long",),
        ("shirt",),
        ("zip", "buttons"),
        hem=(2.0, 2.7),
        ease=(1.15, 1.32),
        fabrics=("denim", "leather", "wool"),
    ),
    Cut("Jeans", 2, legs=(1.75, 1.97), leg_width=(0.15, 0.26), ease=(1.04, 1.12), fabrics=("denim",)),
    Cut(
        "Leggings",
        2,
        legs=(1.6, 1.95),
        leg_width=(0.13, 0.15),
        ease=(1.02, 1.04),
        fabrics=("cotton", "leather"),
    ),
    Cut("Sweatpants", 2, legs=(1.8, 1.95), leg_width=(0.17, 0.24), ease=(1.1, 1.25), fabrics=("cotton",)),
    Cut("Culottes", 2, legs=(1.15, 1.7), leg_width=(0.3, 0.42), ease=(1.06, 1.14), fabrics=LIGHT),
    Cut(
        "Shorts",
        2,
        legs=(0.42, 0.8),
        leg_width=(0.27, 0.33),
        ease=(1.04, 1.12),
        fabrics=("cotton", "denim", "leather"),
    ),
    Cut("Shorts", 2, legs=(0.3, 0.6), leg_width=(0.24, 0.33), ease=(1.02, 1.12), fabrics=("cotton", "denim")),
    Cut("Skirt", 2, hem=(2.9, 4.1), flare=(0.0, 0.4), ease=(1.04, 1.1)),
    Cut("Skirt", 2, hem=(2.8, 3.4), flare=(-0.05, 0.25), ease=(1.02, 1.08)),
    Cut("Skirt", 2, hem=(4.3, 5.5), flare=(-0.02, 0.3), ease=(1.04, 1.1), fabrics=(*LIGHT, "wool")),
    Cut(
        "Dress",
        3,
        ("none", "none", "short", "cap", "long"),
        ("scoop", "v", "crew", "square"),
        hem=(3.3, 4.2),
        flare=(0.05, 0.55),
        **FITTED,
    ),
    Cut(
        "Dress",
        3,
        ("none", "none", "cap"),
        ("scoop", "v", "crew", "square"),
        hem=(3.2, 4.4),
        flare=(-0.05, 0.3),
        ease=(1.0, 1.15),
        waisted=True,
    ),
    Cut(
        "Dress",
        3,
        ("none", "short", "three_quarter", "long"),
        ("crew", "v", "scoop", "shirt"),
        hem=(3.4, 4.6),
        flare=(0.0, 0.15),
    ),
    Cut("Dress", 3, ("none",), BARE, hem=(3.2, 5.6), flare=(0.0, 0.4), **FITTED),
    Cut("Dress", 3, ("none", "cap", "long"), ("v", "scoop"), hem=(4.9, 5.6), flare=(0.06, 0.3), **FITTED),
    Cut(
        "Coat",
        3,
        ("long",),
        ("shirt",),
        ("buttons",),
        hem=(3.4, 4.6),
        flare=(0.0, 0.15),
        ease=(1.2, 1.35),
        fabrics=("wool", "leather", "cotton"),
    ),
    Cut(
        "Kaftan",
        3,
        ("elbow", "three_quarter"),
        ("v", "scoop"),
        hem=(3.6, 5.4),
        flare=(0.1, 0.25),
        ease=(1.2, 1.4),
        fabrics=("cotton", "chiffon"),
    ),
    Cut(
        "Jumpsuit",
        3,
        ("none", "short", "long"),
        ("v", "scoop", "shirt"),
        ("none", "buttons"),
        legs=(1.6, 1.95),
        leg_width=(0.16, 0.34),
        **FITTED,
    ),
    Cut(
        "Romper",
        3,
        ("none", "cap", "short"),
        ("v", "scoop", "crew"),
        legs=(0.42, 0.65),
        leg_width=(0.28, 0.33),
        **FITTED,
    ),
)
OUTWEAR = ("Jacket", "Cardigan", "Coat")
NECK_DEPTHS = {
    "strapless": (0.65, 0.7),
    "straps": (0.65, 0.7),
    "v": (0.5, 0.95),
    "scoop": (0.4, 0.65),
    "square": (0.4, 0.6),
    "shirt": (0.25, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Product:
    """A garment and its fabric, shared by all photos of one product."""

    garment: Garment
    colour: str
    pattern: str
    fabric: str
    texture_seed: int


def sample_product(rng: np.random.Generator, code: int | None = None) -> Product:
    """Draw a random product, of a clothes_type if given; else 45 % are upper, 20 % lower and 35 % full-body."""
    if code is None:
        code = int(rng.choice((1, 2, 3), p=(0.45, 0.2, 0.35)))
    cuts = [cut for cut in CUTS if cut.code == code]
    cut = cuts[rng.integers(len(cuts))]
    name, accent = (str(v) for v in rng.choice(list(COLOURS), 2, replace=False, p=COLOUR_SHARES))
    pattern = "solid" if rng.random() < 0.45 else PATTERNS[rng.integers(1, len(PATTERNS))]
    fabric = cut.fabrics[rng.integers(len(cut.fabrics))]
    if fabric == "denim":
        name, pattern = ("navy", "blue", "sky", "black")[rng.integers(4)], "solid"
    sleeve = cut.sleeves[rng.integers(len(cut.sleeves))]
    neckline = cut.necklines[rng.integers(len(cut.necklines))]
    wrist = sleeve in ("long", "three_quarter")
    cuff = rng.uniform(0.12, 0.17) if wrist else rng.uniform(0.19, 0.24)
    if wrist and rng.random() < 0.15:
        cuff = rng.uniform(0.22, 0.32)
    open_front = cut.category == "Cardigan"
    opening = rng.uniform(0.06, 0.4) if cut.category in OUTWEAR and rng.random() < 0.5 else 0.0
    # Where arms are bare the back often is too.
    covered, bare = (0.5, 0.6) if sleeve == "none" else (0.85, 0.0)
    belt = rng.random() < 0.3
    # Belts and seams sit anywhere from below the chest to the hips. Without one annotators put the waist rather low.
    seen = belt or cut.waisted
    waist = np.clip(rng.normal(WAIST_Y + (0.1 if seen else 0.25), 0.15 if seen else 0.05), 1.2, 2.1)
    garment = Garment(
        category=cut.category,
        code=code,
        colour=dye(rng, name),
        accent=dye(rng, accent),
        sleeve=sleeve,
        cuff=float(cuff),
        neckline=neckline,
        neck_width=float(rng.uniform(0.25, 0.30 if neckline in ("shirt", "hood") else 0.38)),
        neck_depth=float(
            rng.uniform(*((0.9, 1.4) if open_front else NECK_DEPTHS.get(neckline, (0.2, 0.32))))
        ),
        back_depth=float(rng.uniform(0.05, 0.1) if rng.random() < covered else rng.uniform(0.15, 0.3 + bare)),
        strap=float(rng.uniform(0.76, 0.98)) if sleeve == "none" else 1.0,
        closure=cut.closures[rng.integers(len(cut.closures))],
        opening=float(opening),
        edge=float(rng.uniform(0.6, 0.95)),
        graphic=int(rng.integers(1, 4)) if pattern == "solid" and code == 1 and rng.random() < 0.5 else 0,
        ease=float(rng.uniform(*cut.ease)),
        waisted=cut.waisted,
        flare=float(rng.uniform(*cut.flare)),
        hem=float(rng.uniform(*cut.hem)),
        top=float(rng.uniform(1.5, 2.05) if code == 2 else waist),
        legs=float(rng.uniform(*cut.legs)),
        leg_width=float(rng.uniform(*cut.leg_width)),
        belt=bool(belt),
        pleats=int(rng.integers(5, 11)) if rng.random() < 0.3 else 0,
    )
    return Product(garment, name, pattern, fabric, int(rng.integers(2**32)))
