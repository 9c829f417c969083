"""Consistent hashing: the same key goes to the same host as long as that host is there, and few keys move when another comes or goes.

Rings and tables are those of Envoy to the last entry (`RingHashLoadBalancer`, `MaglevLoadBalancer`), so that both engines send a key to the
same host. Built anew when hosts, their weights or their health change: a ring of 1024 entries takes 0.5 ms, a table of 65537 about 10 ms
compiled and 200 ms as plain Python; so one is built at the first call that needs it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

from xxhash import xxh64_intdigest

Share = tuple[bytes, float]
"""A host's name in hashing, and its part of 1."""


def ring(shares: Sequence[Share], least: int, most: int) -> tuple[list[int], list[int]]:
    """Hashes in order, and for each the number of its host. A host has entries by its weight, at least `least` in all, at most `most`."""
    if not shares:
        return [], []
    lightest = min(share for _, share in shares)
    scale = min(ceil(lightest * least) / lightest, float(most))
    entries: list[tuple[int, int]] = []
    count, target = 0.0, 0.0
    for number, (name, share) in enumerate(shares):
        target += scale * share
        turn = 0
        while count < target:
            entries.append((xxh64_intdigest(b"%s_%d" % (name, turn)), number))
            turn += 1
            count += 1.0
    entries.sort()
    return [entry[0] for entry in entries], [entry[1] for entry in entries]


def on_ring(hashes: list[int], hosts: list[int], key: int, attempt: int) -> int:
    """The host of a key; for each further attempt the ring's next entry, which may be the same host's."""
    place = bisect_left(hashes, key)
    if place == len(hashes):
        place = 0
    return hosts[(place + attempt) % len(hosts)] if attempt else hosts[place]


def maglev(shares: Sequence[Share], size: int) -> list[int]:
    """A table of this size, a prime, that holds the number of a host at each place."""
    if not shares:
        return []
    heaviest = max(share for _, share in shares)
    order = sorted(range(len(shares)), key=lambda number: shares[number][0])
    weights = [shares[number][1] for number in order]
    places = [xxh64_intdigest(shares[number][0]) % size for number in order]
    skips = [xxh64_intdigest(shares[number][0], 1) % (size - 1) + 1 for number in order]
    targets = [0.0] * len(order)
    table = [-1] * size
    filled = 0
    turn = 0
    while filled < size:
        turn += 1
        for index in range(len(order)):
            if filled >= size:
                break
            if turn * weights[index] < targets[index]:
                continue  # a host of half the weight is served in every other turn
            targets[index] += heaviest
            place = places[index]
            skip = skips[index]
            while table[place] >= 0:
                place += skip
                if place >= size:
                    place -= size
            table[place] = order[index]
            place += skip
            places[index] = place - size if place >= size else place
            filled += 1
    return table


def in_table(table: list[int], key: int, attempt: int) -> int:
    """The host of a key; each further attempt looks elsewhere."""
    if attempt:
        key ^= 2**64 - attempt  # ~0 - attempt + 1, in 64 bits
    return table[key % len(table)]


def text_key(values: Sequence[bytes]) -> int:
    """The hash of one text, or of several, each hashed on top of the one before."""
    key = 0
    for value in values:
        key = xxh64_intdigest(value, key)
    return key


def combine(before: int | None, key: int) -> int:
    """The hash of one more part of a key, with those before it: in their order, and none cancels another out."""
    if before is None:
        return key
    return (((before << 1) | (before >> 63)) & (2**64 - 1)) ^ key
