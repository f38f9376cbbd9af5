"""Categories and attributes of the rendered data sets.

The 50 categories and their clothes types are DeepFashion's. The attributes are invented, with as many of each type as
in the benchmark: 1,000 in the coarse layout, 26 in the fine one.
"""

from collections.abc import Iterable
from itertools import islice, product

from glefld.schema import Attribute
from glefld.synthetic.render.scene import COLOURS, FABRICS, PATTERNS
from glefld.synthetic.render.wardrobe import Product

_UPPER = (
    "Anorak Blazer Blouse Bomber Button-Down Cardigan Flannel Halter Henley Hoodie Jacket Jersey Parka "
    "Peacoat Poncho Sweater Tank Tee Top Turtleneck"
)
_LOWER = (
    "Capris Chinos Culottes Cutoffs Gauchos Jeans Jeggings Jodhpurs Joggers Leggings Sarong Shorts Skirt "
    "Sweatpants Sweatshorts Trunks"
)
_FULL = (
    "Caftan Cape Coat Coverup Dress Jumpsuit Kaftan Kimono Nightdress Onesie Robe Romper Shirtdress Sundress"
)
#: (name, clothes_type) in the benchmark's order. A category's number is its 1-based position here.
CATEGORIES: tuple[tuple[str, int], ...] = tuple(
    (name, code) for code, names in ((1, _UPPER), (2, _LOWER), (3, _FULL)) for name in names.split()
)
CATEGORY_NUMBERS = {name: i + 1 for i, (name, _) in enumerate(CATEGORIES)}

SLEEVES = {
    "none": "sleeveless",
    "cap": "short sleeve",
    "short": "short sleeve",
    "elbow": "short sleeve",
    "three_quarter": "long sleeve",
    "long": "long sleeve",
}
NECKLINES = {
    "crew": "crew neckline",
    "scoop": "crew neckline",
    "v": "v neckline",
    "square": "square neckline",
    "shirt": "shirt collar",
    "turtle": "roll neck",
    "hood": "hooded",
    "strapless": "strapless",
    "straps": "thin straps",
}
_TREATMENTS = (
    "washed", "brushed", "faded", "coated", "pressed", "light", "heavy", "soft", "fine", "coarse", "stretch",
    "raw", "bonded", "lined", "quilted", "sheer", "woven", "twill", "ribbed", "slub", "boucle", "waffle",
    "crinkled", "pleated", "crushed", "glazed", "combed", "felted", "slubbed", "dyed", "printed",
    "perforated", "textured", "recycled", "matte", "shiny",
)  # fmt: skip
_MOODS = (
    "city", "coast", "garden", "festival", "office", "travel", "studio", "campus", "weekend", "evening",
    "holiday", "market", "harbour", "meadow", "summer", "winter", "autumn", "spring", "vintage", "modern",
    "classic", "retro",
)  # fmt: skip
_STYLES = (
    "boxy", "casual", "layered", "minimal", "romantic", "sporty", "tailored", "utility", "western", "folk",
)  # fmt: skip
_CUFFS = (
    "plain", "rolled", "buttoned", "gathered", "split", "banded", "flared", "tied", "frilled", "scalloped",
)  # fmt: skip
_EDGES = (
    "curved", "straight", "raw", "stepped", "rounded", "side-slit", "lettuce", "tulip", "handkerchief",
)  # fmt: skip


def _listed(type_: int, count: int, *groups: Iterable[str]) -> list[Attribute]:
    names = list(islice((name for group in groups for name in group), count))
    assert len(set(names)) == count, f"attribute type {type_} needs {count} different names"
    return [Attribute(name, type_) for name in names]


def _joined(*words: Iterable[str]) -> list[str]:
    return [" ".join(parts) for parts in product(*words)]


_FITS = ("tight", "regular fit", "loose")
_LENGTHS = ("mini", "midi", "maxi", "cropped")
_SHAPES = (
    _joined(_FITS, _LENGTHS),
    _joined(_EDGES, _LENGTHS),
    _joined(_EDGES, _FITS, _LENGTHS),
    _joined(_CUFFS, _LENGTHS),
)
_PARTS = sorted(
    {*SLEEVES.values(), *NECKLINES.values(), "button front", "zip front", "belted", "graphic print"}
)

#: The coarse layout's 1,000, sorted by name as in DeepFashion: 156 texture, 218 fabric, 180 shape, 216 part, 230 style.
COARSE_ATTRIBUTES: tuple[Attribute, ...] = tuple(
    sorted(
        [
            *_listed(1, 156, PATTERNS, _joined(COLOURS, PATTERNS)),
            *_listed(2, 218, FABRICS, _joined(_TREATMENTS, FABRICS)),
            *_listed(3, 180, _FITS, _LENGTHS, *_SHAPES),
            *_listed(4, 216, _PARTS, _joined(_CUFFS, _PARTS), _joined(_EDGES, _PARTS)),
            *_listed(5, 230, _STYLES, _joined(_MOODS, _STYLES)),
        ],
        key=lambda attribute: attribute.name,
    )
)  # fmt: skip
#: The fine layout's 26: 7 texture, 3 sleeve, 3 length, 4 neckline, 6 fabric, 3 fit.
FINE_ATTRIBUTES: tuple[Attribute, ...] = (
    *(Attribute(name, 1) for name in PATTERNS),
    *(Attribute(name, 2) for name in ("long_sleeve", "short_sleeve", "sleeveless")),
    *(Attribute(name, 3) for name in ("maxi_length", "mini_length", "no_dress")),
    *(Attribute(name, 4) for name in ("crew_neckline", "v_neckline", "square_neckline", "no_neckline")),
    *(Attribute(name, 5) for name in FABRICS),
    *(Attribute(name, 6) for name in ("tight", "loose", "regular_fit")),
)
_COARSE_INDEX = {attribute.name: i for i, attribute in enumerate(COARSE_ATTRIBUTES)}
_FINE_INDEX = {attribute.name: i for i, attribute in enumerate(FINE_ATTRIBUTES)}


def _fit(item: Product) -> str:
    ease = item.garment.ease
    return "tight" if ease < 1.07 else "loose" if ease > 1.2 else "regular fit"


def coarse_attributes(item: Product) -> list[int]:
    """Return the ascending 0-based indices of a product's attributes among COARSE_ATTRIBUTES."""
    garment = item.garment
    length = "maxi" if garment.hem > 4.6 else "midi" if garment.hem > 3.9 else "mini"
    if garment.code == 1:
        length = "cropped"
    pick = item.texture_seed
    names = {
        item.pattern,
        f"{item.colour} {item.pattern}",
        item.fabric,
        f"{_TREATMENTS[pick % len(_TREATMENTS)]} {item.fabric}",
        _fit(item),
        f"{_fit(item)} {length}",
        _STYLES[pick // 7 % len(_STYLES)],
        f"{_MOODS[pick // 97 % len(_MOODS)]} {_STYLES[pick // 7 % len(_STYLES)]}",
    }
    if not garment.legs and (garment.code != 1 or garment.hem < 2.1):
        names.add(length)
    if garment.code != 2:
        names |= {SLEEVES[garment.sleeve], NECKLINES[garment.neckline]}
        names |= {
            f"{closure[:-1] if closure == 'buttons' else closure} front"
            for closure in (garment.closure,)
            if closure != "none"
        }
        if garment.graphic:
            names.add("graphic print")
    if garment.belt and garment.code != 1:
        names.add("belted")
    return sorted(_COARSE_INDEX[name] for name in names if name in _COARSE_INDEX)


def fine_attributes(item: Product) -> list[int]:
    """Return the ascending 0-based indices of a product's attributes among FINE_ATTRIBUTES, one of each type."""
    garment = item.garment
    neckline = {"crew": "crew", "scoop": "crew", "v": "v", "square": "square"}.get(garment.neckline, "no")
    if garment.code == 2:
        neckline = "no"
    length = "maxi_length" if garment.hem > 4.6 else "mini_length"
    if garment.code == 1 or garment.legs:
        length = "no_dress"
    names = (
        item.pattern,
        SLEEVES[garment.sleeve].replace(" ", "_"),
        length,
        f"{neckline}_neckline",
        item.fabric,
        _fit(item).replace(" ", "_"),
    )
    return sorted(_FINE_INDEX[name] for name in names)
