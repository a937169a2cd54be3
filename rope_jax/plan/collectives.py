"""The communication of a compiled program, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"\}')
# The forms of a list of groups: {{0,1},{2,3}}; [4,2]<=[8]; mesh['a'=2,'b'=4] {'b'}.
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of a program: their number per device, and the bytes that it sends."""

    kind: str
    count: int
    bytes: float


def collectives(text: str) -> tuple[Collective, ...]:
    """Counts the collectives of a program, times the trip counts of the loops around them.

    A device sends the bytes of ring algorithms among n devices: (n - 1) / n of the result of an all-gather or
    all-to-all, n - 1 times the result of a reduce-scatter, and 2 (n - 1) / n of the result of an all-reduce. A loop
    without a known trip count counts once. The text is HLO, `compiled.as_text()`; kinds come in the order of `KINDS`.
    """
    found, calls, entry = defaultdict(list), defaultdict(list), None
    name = None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            entry = name if start[1] else entry
            continue
        if " = " not in line:
            continue
        if match := _COLLECTIVE.search(line):
            found[name].append((match[2], _sent(match[2], _size(match[1]), _group_size(line))))
        trips = int(known[1]) if " while(" in line and (known := _TRIPS.search(line)) else 1
        called = _CALLED.findall(line) + [n.strip(" %") for group in _BRANCHES.findall(line) for n in group.split(",")]
        calls[name] += [(other, trips) for other in called]

    counts, sent = defaultdict(int), defaultdict(float)

    def visit(computation: str, times: int) -> None:
        for kind, size in found[computation]:
            counts[kind] += times
            sent[kind] += times * size
        for other, trips in calls[computation]:
            visit(other, times * trips)

    if entry:
        visit(entry, 1)
    return tuple(Collective(kind, counts[kind], sent[kind]) for kind in KINDS if counts[kind])


def _size(types: str) -> int:
    """Bytes of an array, or of all of a tuple."""
    sizes = (math.prod(map(int, filter(None, dims.split(",")))) * _BYTES.get(t, 4) for t, dims in _ARRAY.findall(types))
    return sum(sizes)


def _group_size(line: str) -> int:
    if not (match := _GROUPS.search(line)):
        return 1
    listed, iota, axes, chosen = match.groups()
    if listed:
        return listed.count(",") + 1
    if iota:
        return int(iota)
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes))
    # Part of an axis is written 'a':(1)2, whose last number is its size.
    return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", chosen))


def _sent(kind: str, size: int, devices: int) -> float:
    share = (devices - 1) / devices
    factor = {"all-reduce": 2 * share, "reduce-scatter": devices - 1, "collective-permute": 1.0}
    return size * factor.get(kind, share)
