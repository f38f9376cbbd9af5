"""Left and right in landmarks' names: which two change places in a mirror image."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from glefld.datasets.lists import shown
from glefld.errors import UserError

#: Names are cut at everything that is no letter or digit, between letters and digits, and at capitals.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_SIDES = {"left": "<", "l": "<", "right": ">", "r": ">"}
_SIDE = re.compile("left|right")
_TURNED = str.maketrans("<>", "><")
#: Names that only number points, as annotation tools give them.
_NUMBERED = re.compile(r"(?:new)?(?:point|keypoint|landmark|kp|pt|p|k)?\d*")


class Mirror(NamedTuple):
    """The mirror of each of K landmarks, and what to tell the user of it."""

    mirror: tuple[int, ...]
    notes: list[str]


def mirror_pairs(names: Sequence[str], told: str | None, known: Iterable[Sequence[str]] = ()) -> Mirror:
    """Return the landmarks that change places in a mirror image.

    told: of --pairs, ``a:b,c:d`` or ``none``. known: pairs that the annotations name. Without both they are found by
    ``left`` and ``right`` in the names, or ``l`` and ``r``. UserError for pairs that do not fit.
    """
    place = {name: i for i, name in enumerate(names)}
    mirror = list(range(len(names)))
    lonely: list[str] = []
    if told is not None:
        pairs = [] if told.strip().lower() in ("", "none") else [_pair(text) for text in told.split(",")]
        source = "--pairs"
    elif known := list(known):
        pairs, source = [(a, b) for a, b in known], "the file's pairs"
    else:
        pairs, lonely = _sided(names)
        source = "the names"
    for a, b in pairs:
        for name in (a, b):
            if name not in place:
                raise UserError(f"{source}: {shown(name)} is no landmark: they are {', '.join(names)}")
        if a == b or mirror[place[a]] != place[a] or mirror[place[b]] != place[b]:
            raise UserError(f"{source}: {shown(a)} and {shown(b)}: a landmark is in one pair with another")
        mirror[place[a]], mirror[place[b]] = place[b], place[a]
    both = [f"{names[i]} - {names[m]}" for i, m in enumerate(mirror) if i < m]
    alone = [name for i, name in enumerate(names) if mirror[i] == i]
    notes = []
    if both:
        notes.append(
            f"mirror pairs, from {source}: {some(both)}" + (f"; alone: {some(alone)}" if alone else "")
        )
    elif len(names) > 1 and told is None:
        notes.append(
            "warning: no mirror pairs found in the landmarks' names. Training mirrors photos: if any landmarks are of "
            "the left and the right, name them with --pairs LEFT:RIGHT,..., else confirm with --pairs none"
        )
    if told is None and (likely := _differ_by_l_and_r(alone)):
        found = [(names[i], names[m]) for i, m in enumerate(mirror) if i < m]
        text = ",".join(f"{a}:{b}" for a, b in found + likely)
        notes.append(
            f"warning: {some([f'{a} and {b}' for a, b in likely])} may be left and right, and are taken for no pairs. "
            f"If they are: --pairs {text}"
        )
    if lonely:
        notes.append(
            f"warning: landmarks of a side without a partner: {some(lonely)}. Training mirrors photos, and will take "
            "both sides for one: name the pairs with --pairs LEFT:RIGHT,..."
        )
    return Mirror(tuple(mirror), notes)


def _differ_by_l_and_r(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that differ in one letter alone, an l and an r, such as lh and rh."""
    return [
        (name, other)
        for name in names
        for i, letter in enumerate(name)
        if letter in "lL"
        and (other := name[:i] + chr(ord(letter) + ord("r") - ord("l")) + name[i + 1 :]) in names
    ]


def some(names: Sequence[str], most: int = 24) -> str:
    """Return names with commas, shortened if they are many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _pair(text: str) -> tuple[str, str]:
    a, colon, b = text.partition(":")
    if not colon or not a.strip() or not b.strip() or ":" in b:
        raise UserError(f"--pairs: {shown(text)} is not LEFT:RIGHT; several are divided by commas")
    return a.strip(), b.strip()


def _sided(names: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the pairs that differ in their side alone, and names of a side without a partner."""
    by_key: dict[str, list[str]] = defaultdict(list)
    keys = {name: _key(name) for name in names}
    for name in names:
        by_key[keys[name]].append(name)
    pairs: list[tuple[str, str]] = []
    paired: set[str] = set()

    def join(a: str, b: str) -> None:
        pairs.append((a, b))
        paired.update((a, b))

    for name in names:
        turned = keys[name].translate(_TURNED)
        if turned != keys[name] and name not in paired and len(by_key[keys[name]]) == 1:
            match by_key.get(turned, []):
                case [other]:
                    join(name, other)
    # Without anything between: lshoulder and rshoulder. Names without a partner may begin with an l for other reasons.
    lower = {name.lower(): name for name in names if name not in paired}
    for small, name in lower.items():
        if small.startswith("l") and len(small) > 3 and (right := lower.get(f"r{small[1:]}")) is not None:
            join(name, right)
    lonely = [name for name in names if name not in paired and _SIDES.keys() & _words(name)]
    return pairs, lonely


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORDS.findall(name)}


def _key(name: str) -> str:
    """Return a name without its spelling: words joined, sides as ``<`` and ``>``."""

    def sided(word: str) -> str:
        return _SIDES.get(word) or _SIDE.sub(lambda m: _SIDES[m[0]], word)

    return "".join(sided(word.lower()) for word in _WORDS.findall(name))


def numbered(name: str) -> bool:
    """Return whether a landmark's name says no more than a number: ``3``, ``kp_3``, ``new-point-3``."""
    return _NUMBERED.fullmatch(re.sub(r"[-_ .]", "", name.lower())) is not None
