"""A process that writes into an embedded store as fast as it can and prints each acknowledged number. Killed by its test.

Number n is two keys of one transaction, `left/n` and `right/n`, and a deletion of number n - 20. So what is there must be a gapless run
of pairs, at revisions that rise by one, whose last is at least the last that was printed.
"""

import asyncio
import sys
from pathlib import Path

from control_plane.store.contract import Delete, Put, Store
from control_plane.store.embedded import EmbeddedStore

KEPT = 20
AT_ONCE = 5


async def check(store: Store, told: int) -> int:
    """The last number that is there. AssertionError if something acknowledged is lost or half there."""
    left = {int(item.key[5:]): item for item in (await store.range(b"left/")).items}
    right = {int(item.key[6:]): item for item in (await store.range(b"right/")).items}
    assert left.keys() == right.keys(), "a transaction is half there"
    numbers = sorted(left)
    last = numbers[-1] if numbers else 0
    assert last >= told, f"{told} was acknowledged, the last that is there is {last}"
    assert numbers == list(range(max(1, last - KEPT + 1), last + 1)), f"not a gapless run: {numbers}"
    for number in numbers:
        assert left[number].value == right[number].value == b"%d" % number
        assert left[number].mod_revision == right[number].mod_revision == number
    assert (await store.range(b"")).revision == last
    return last


async def write(directory: Path) -> None:
    store = await EmbeddedStore.open(directory)
    last = await check(store, 0)

    async def one(number: int) -> int:
        ops: list[Put | Delete] = [
            Put(b"left/%04d" % number, b"%d" % number),
            Put(b"right/%04d" % number, b"%d" % number),
        ]
        if number > KEPT:
            ops += [Delete(b"left/%04d" % (number - KEPT)), Delete(b"right/%04d" % (number - KEPT))]
        await store.txn((), ops)
        return number

    print(last, flush=True)
    while True:
        # Some go together into one commit: they are acknowledged in order, and all of them are durable.
        for done in await asyncio.gather(*(one(last + ahead) for ahead in range(1, AT_ONCE + 1))):
            print(done, flush=True)
            last = done


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
