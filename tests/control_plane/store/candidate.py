"""A process that campaigns, and once it has owned writes as fast as it can until it is refused: `candidate.py TARGET NAME`. It is told that
its term is over, and does not listen. Prints `done` and `refused` with its token. Stopped and killed by its test.
"""

import asyncio
import sys

from control_plane.store import open_store
from control_plane.store.contract import Put, Store, StoreUnavailable
from control_plane.store.election import Deposed, Election, Term


async def write(store: Store, name: str, term: Term) -> None:
    number = 0
    while True:
        number += 1
        try:
            await term.txn(store, (), [Put(b"work", b"%s %d" % (name.encode(), number))])
        except StoreUnavailable:
            continue
        except Deposed:
            print("refused", term.token, flush=True)
            return
        print("done", term.token, flush=True)


async def main(target: str, name: str) -> None:
    store = await open_store(target)

    async def work(term: Term) -> None:
        await asyncio.shield(asyncio.create_task(write(store, name, term)))

    await Election(store, b"owner", name, ttl_s=5).run(work)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
